"""The assets of a corpus of utterances in real Dagster runs: accounting, reuse, lineage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from dagster import DagsterInstance, ExecuteInProcessResult, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.support.links import linked_file
from tts_assets.core.artifacts import ArtifactStore, Handle
from tts_assets.core.compute import Shape
from tts_assets.corpora.assets import build_assets
from tts_assets.corpora.config import CorpusConfig, DiscoveryConfig, FilterConfig
from tts_assets.corpora.describe import describe_corpus, describe_samples, describe_segments
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.samples import located_samples, read_samples

CORPUS = "clips.v1"
ASSETS = ("raw_corpus", "speech_segments", "filtered_samples")


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", [CORPUS, "undeclared"])
        yield instance


def run(
    instance: DagsterInstance,
    store: ArtifactStore,
    corpus: Path,
    filters: FilterConfig | None = None,
    partition: str | None = CORPUS,
    own: dict[str, Any] | None = None,
) -> ExecuteInProcessResult:
    config = CorpusConfig(path=Path(corpus.name), reader="jsonl", language="en", filters=own or {})
    corpora = Corpora({CORPUS: config}, DiscoveryConfig(), corpus.parent)
    root = str(store.root)
    return materialize(
        build_assets(corpora, filters or FilterConfig(), shape=Shape(processes=2)),
        instance=instance,
        partition_key=partition,
        resources={
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
            "launcher": TorchrunLauncher(),
        },
        raise_on_error=False,
    )


def current(store: ArtifactStore) -> list[Handle]:
    return [store.current(asset, CORPUS) for asset in ASSETS]


def reused(result: ExecuteInProcessResult) -> list[bool]:
    return [
        result.asset_materializations_for_node(asset)[0].metadata["reused"].value
        for asset in ASSETS
    ]


def checks(result: ExecuteInProcessResult) -> dict[str, bool]:
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def test_a_run_accounts_for_every_clip_in_its_metadata(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    (corpus / "audio" / "silent.wav").write_bytes(b"")
    with (corpus / "samples.jsonl").open("a") as lines:
        lines.write(json.dumps({"wav_path": "audio/silent.wav", "transcript": "nothing"}) + "\n")
    result = run(instance, store, corpus, FilterConfig(min_duration=0.8))
    assert result.success
    assert checks(result) == {
        "columns_are_plausible": True,
        "every_entry_is_accounted_for": True,
        "every_second_is_accounted_for": True,
        "every_sample_is_accounted_for": True,
    }
    (raw,) = result.asset_materializations_for_node("raw_corpus")
    assert (raw.metadata["utterances"].value, raw.metadata["set_aside"].value) == (13, 1)
    assert raw.metadata["set_aside_reasons"].value == {"empty file": 1}
    (event,) = result.asset_materializations_for_node("filtered_samples")
    kept, rejected = event.metadata["kept"].value, event.metadata["rejected"].value
    assert (kept + rejected, rejected > 0) == (13, True)
    assert event.metadata["reasons/too short"].value == rejected
    assert "transcript" in str(event.metadata["samples_preview"].value)
    assert "2 to 4 s" in str(event.metadata["durations"].value)
    notebook = linked_file(event.metadata["listening"], store.root)
    assert notebook.read_text().count("data:audio/flac;base64,") == min(kept, 8) + min(rejected, 4)


def test_column_schemas_match_the_files(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    result = run(instance, store, corpus)
    shown = {}
    for name in ASSETS:
        (event,) = result.asset_materializations_for_node(name)
        shown[name] = event.metadata["dagster/column_schema"].value.columns
    *tables, samples = current(store)
    for table in tables:
        written = pl.read_parquet_schema(table.path / "utterances.parquet")
        columns = {column.name: column.type for column in shown[table.asset]}
        assert columns == {name: str(kind) for name, kind in written.items()}
    kinds = {"String": str, "Float64": float, "Int64": int, "Object": dict}
    first = json.loads((samples.path / "kept.jsonl").read_text().splitlines()[0])
    for column, (name, value) in zip(shown["filtered_samples"], first.items(), strict=True):
        assert (column.name, kinds[column.type]) == (name, type(value))
    about = {column.name: column.description for column in shown["raw_corpus"]}
    assert about["duration"] == "seconds"


def test_samples_are_ready_for_training(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    assert run(instance, store, corpus).success
    samples = list(located_samples(store.current("filtered_samples", CORPUS).path / "kept.jsonl"))
    assert [sample.id for sample in samples] == sorted(sample.id for sample in samples)
    for sample in samples:
        assert Path(sample.wav_path).is_file()
        assert sample.id == sample.original_data["audio_sha256"][:16]
        assert sample.transcript
        assert (sample.language, sample.dataset_name) == ("en", CORPUS)
        assert 0.5 < sample.duration < 6
    assert {sample.original_data["key"] for sample in samples} >= {"digits/1", "demo-nomatch"}


@pytest.mark.slow
def test_touched_files_are_reused_and_changed_files_are_not(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    assert reused(run(instance, store, corpus)) == [False, False, False]
    before = current(store)
    assert reused(run(instance, store, corpus)) == [True, True, True]
    (corpus / "NOTES.txt").write_text("no part of the corpus")
    assert reused(run(instance, store, corpus)) == [True, True, True]

    first = json.loads((corpus / "samples.jsonl").read_text().splitlines()[0])["wav_path"]
    os.utime(corpus / first, (1, 1))
    assert reused(run(instance, store, corpus)) == [
        False,
        True,
        True,
    ]  # read again, and found the same
    assert [handle.content for handle in current(store)] == [handle.content for handle in before]

    with (corpus / first).open("ab") as audio:
        audio.write(b"\xfa" * 800)
    assert reused(run(instance, store, corpus)) == [False, False, False]
    ids = [
        {sample.id for sample in read_samples(h.path / "kept.jsonl")}
        for h in (before[2], current(store)[2])
    ]
    assert len(ids[0] - ids[1]) == len(ids[1] - ids[0]) == 1


def test_a_lost_entry_fails_the_run(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    assert run(instance, store, corpus).success
    path = store.current("raw_corpus", CORPUS).path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["entries"] += 1
    path.write_text(json.dumps(manifest))
    result = run(instance, store, corpus)
    assert not result.success
    assert checks(result)["every_entry_is_accounted_for"] is False


def test_other_filters_reuse_the_index(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    assert run(instance, store, corpus).success
    assert reused(run(instance, store, corpus, FilterConfig(max_duration=3))) == [True, True, False]


def test_another_whisper_model_in_the_same_folder_filters_again(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "whisper"
    folder.mkdir()
    filters = FilterConfig(whisper=str(folder))
    again = []
    for weights in ("old", "old", "new"):
        (folder / "model.bin").write_text(weights)
        again.append(reused(run(instance, store, corpus, filters))[-1])
    assert again == [False, True, False]


@pytest.mark.slow
def test_launched_ranks_measure_metrics_for_the_filters(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    filters = FilterConfig(min_p808=3.5, measure=("snr", "silence"))
    result = run(instance, store, corpus, filters)
    assert result.success
    (event,) = result.asset_materializations_for_node("filtered_samples")
    assert 0 < event.metadata["reasons/P.808 too low"].value < 13
    assert "P.808 too low" in str(event.metadata["rejected_in_order"].value)
    assert "SNR, dB" in str(event.metadata["quality"].value)
    assert "data:image/png" in str(event.metadata["distributions"].value)
    artifact = store.current("filtered_samples", CORPUS)
    rejected = [json.loads(line) for line in (artifact.path / "rejected.jsonl").open()]
    for line in rejected:
        assert line["value"] == line["original_data"]["quality"]["p808"] < line["limit"] == 3.5
    for sample in read_samples(artifact.path / "kept.jsonl"):
        assert sample.original_data["quality"]["p808"] >= 3.5
        assert sample.original_data["quality"]["snr"] is not None

    before = digests(artifact)
    shutil.rmtree(store.caches)  # a cache decides nothing
    shutil.rmtree(artifact.path)
    assert run(
        instance, store, corpus, FilterConfig(min_p808=3.5, measure=("snr", "silence"))
    ).success
    assert digests(store.current("filtered_samples", CORPUS)) == before


def digests(handle: Handle) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in handle.manifest.files.items()}


def test_sample_fields_of_the_corpus_are_kept(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    """This holds for a corpus that is itself a result; no field occurs twice."""
    assert run(instance, store, corpus).success
    first = store.current("filtered_samples", CORPUS)
    kept = [json.loads(line) for line in (first.path / "kept.jsonl").open()]
    kept[0] |= {"style": "calm", "dnsmos_mos_ovr": 3.25}
    kept[0]["original_data"] |= {'a "key"': {"deep": ["\\", None, 1.5]}, "quality": {"p808": 1.0}}
    (corpus / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in kept))
    assert run(instance, store, corpus).success
    second = store.current("filtered_samples", CORPUS)
    again = list(read_samples(second.path / "kept.jsonl"))
    assert (again[0].style, again[0].dnsmos_mos_ovr) == ("calm", 3.25)
    del kept[0]["original_data"]["quality"]
    for sample, given in zip(again, kept, strict=True):
        assert sample.original_data == given["original_data"] | {"text": given["transcript"]}
    for line in (second.path / "kept.jsonl").read_text().splitlines():
        assert line.count('"audio_sha256"') == 1


def test_a_corpus_overrides_filters(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    assert run(instance, store, corpus).success
    own = {"max_duration": 3.0}
    result = run(instance, store, corpus, own=own)
    assert reused(result) == [True, True, False]  # the index does not depend on them
    (event,) = result.asset_materializations_for_node("filtered_samples")
    assert event.metadata["reasons/too long"].value > 0


def failure(result: ExecuteInProcessResult) -> str:
    """The message of the only failed step."""
    (event,) = result.get_step_failure_events()
    return str(event.step_failure_data)


def test_a_corpus_without_kept_samples_fails_with_the_reasons(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    result = run(instance, store, corpus, FilterConfig(allowed_languages=("de",)))
    assert not result.success
    assert "no sample that passes the filters" in failure(result)
    assert "language not allowed: 13, for example" in failure(result)
    assert "every_sample_is_accounted_for" not in checks(result)


def test_a_corpus_without_usable_audio_fails_with_the_reasons(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    shutil.rmtree(corpus / "audio")
    result = run(instance, store, corpus)
    assert not result.success
    assert "no usable utterance of 13" in failure(result)
    assert "no such file: 13, for example samples.jsonl:1" in failure(result)


def test_metadata_of_empty_results(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path, tmp_path: Path
) -> None:
    """All descriptions work without rows."""
    assert run(instance, store, corpus).success
    raw, segments, samples = current(store)
    for handle in (raw, segments):
        table = handle.path / "utterances.parquet"
        pl.read_parquet(table).clear().write_parquet(tmp_path / "empty.parquet")
        table.unlink()
        (tmp_path / "empty.parquet").rename(table)
    (samples.path / "kept.jsonl").write_bytes(b"")
    assert describe_corpus(raw)["dagster/partition_row_count"] == 0  # type: ignore[arg-type]
    assert describe_segments(segments)["dagster/partition_row_count"] == 0  # type: ignore[arg-type]
    assert "samples_preview" in describe_samples(samples, FilterConfig())  # type: ignore[arg-type]


def test_a_partition_that_is_not_declared_is_named(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    result = run(instance, store, corpus, partition="undeclared")
    (failure,) = result.get_step_failure_events()
    assert "add [corpora.undeclared]" in str(failure.step_failure_data)


def test_a_run_without_a_corpus_names_the_corpora(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    result = run(instance, store, corpus, partition=None)
    (failure,) = result.get_step_failure_events()
    message = str(failure.step_failure_data)
    assert f"raw_corpus needs a corpus: launch the run with --partition and one of {CORPUS}" in (
        message
    )
