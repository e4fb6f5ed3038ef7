"""``code_arrays`` in a real Dagster run: lineage, reuse, and checks that block damaged data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dagster import (
    AssetSpec,
    DagsterInstance,
    ExecuteInProcessResult,
    asset,
    materialize,
)

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.arrays.conftest import Utterance, publish_shards
from tts_assets.arrays.arrays import CodeTable
from tts_assets.arrays.assets import build_assets
from tts_assets.arrays.inworld import ArraysConfig
from tts_assets.arrays.merge import check_digests
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    Build,
    CodeArrays,
    CodecShards,
    Handle,
    sha256_file,
)
from tts_assets.core.artifacts.handle import FileEntry
from tts_assets.core.config import digest_of
from tts_assets.orchestration.dependencies import corpus_partitions

HALF = ValidationSplit(fraction=0.5)
CORPUS = "asterisk.v1"
CHECKS = {
    "no_sample_is_lost",
    "index_fits_codes",
    "samples_fit_index",
    "codes_are_in_codebook",
    "files_are_unchanged",
    "validation_has_its_own_recordings",
}


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", [CORPUS, "never built"])
        yield instance


@pytest.fixture
def shards(store: ArtifactStore, utterances: list[Utterance]) -> CodecShards:
    return publish_shards(store, utterances, (4, 4, 5), CORPUS)


@asset(partitions_def=corpus_partitions)
def trained_on(code_arrays: CodeArrays) -> Handle:
    return code_arrays


def run(
    instance: DagsterInstance, store: ArtifactStore, validation: ValidationSplit = HALF
) -> ExecuteInProcessResult:
    upstream = AssetSpec("codec_shards", partitions_def=corpus_partitions)
    root = str(store.root)
    return materialize(
        [upstream, *build_assets(ArraysConfig(), validation, None, store.root), trained_on],
        instance=instance,
        partition_key=CORPUS,
        resources={
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
        },
        raise_on_error=False,
    )


def arrays(store: ArtifactStore) -> CodeArrays:
    handle = store.current("code_arrays", CORPUS)
    assert isinstance(handle, CodeArrays)
    return handle


def failed(result: ExecuteInProcessResult) -> dict[str, str]:
    """The checks that failed, with their messages."""
    evaluations = result.get_asset_check_evaluations()
    assert {e.check_name for e in evaluations} == CHECKS
    return {e.check_name: e.description or "" for e in evaluations if not e.passed}


def trained(result: ExecuteInProcessResult) -> bool:
    return bool(result.asset_materializations_for_node("trained_on"))


def test_a_recording_in_both_splits_is_a_warning(
    instance: DagsterInstance, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    """Six clips are cut from one recording, as by ``speech_segments``; the others are files."""
    cut = [
        Utterance(
            u.sample
            | {"original_data": u.sample["original_data"] | {"recording_sha256": "f" * 64}},
            u.codes,
        )
        for u in utterances[:6]
    ]
    publish_shards(store, [*cut, *utterances[6:]], (4, 4, 5), CORPUS)
    result = run(instance, store)
    warned = failed(result)
    assert trained(result), "it only warns"
    own = CodeTable.of_split(arrays(store).path, "val").samples
    clips = sum("recording_sha256" in sample["original_data"] for sample in own)
    assert 0 < clips < 6
    message = warned["validation_has_its_own_recordings"]
    assert message.startswith(f"{clips} of {len(own)} validation clips are cut from 1 recordings")
    (event,) = result.asset_materializations_for_node("code_arrays")
    assert event.metadata["val_samples_of_training_recordings"].value == clips
    assert event.metadata["speakers_in_both_splits"].value == 1


@pytest.mark.usefixtures("shards")
def test_a_run_publishes_arrays_and_all_checks_pass(
    instance: DagsterInstance, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    result = run(instance, store)
    assert result.success
    assert failed(result) == {}
    assert trained(result)
    (event,) = result.asset_materializations_for_node("code_arrays")
    assert event.metadata["samples"].value == len(utterances)
    columns = event.metadata["dagster/column_schema"].value.columns
    assert utterances[0].sample.keys() <= {column.name for column in columns}
    assert event.metadata["hours"].value == pytest.approx(32 / 3600, rel=0.05)
    assert (event.tags or {})["dagster/data_version"] == arrays(store).content
    assert len(CodeTable.of_split(arrays(store).path, "val")) == arrays(store).facts.val_samples


@pytest.mark.usefixtures("shards")
def test_the_split_changes_the_fingerprint(instance: DagsterInstance, store: ArtifactStore) -> None:
    contents = []
    for validation in (HALF, ValidationSplit(fraction=0.5, salt="other"), HALF):
        result = run(instance, store, validation)
        assert result.success
        (event,) = result.asset_materializations_for_node("code_arrays")
        contents.append((arrays(store).content, event.metadata["reused"].value))
    assert contents[0][0] == contents[2][0] != contents[1][0]
    assert [reused for _, reused in contents] == [False, False, True]


def test_the_same_samples_in_other_shards_are_the_same_data(
    instance: DagsterInstance, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    contents = set()
    for layout in ((13,), (6, 7)):
        publish_shards(store, utterances, layout, CORPUS)
        assert run(instance, store).success
        contents.add(arrays(store).content)
    assert len(contents) == 1


def test_an_empty_validation_set_passes(
    instance: DagsterInstance, store: ArtifactStore, shards: CodecShards
) -> None:
    result = run(instance, store, ValidationSplit(fraction=0))
    assert result.success
    assert arrays(store).facts.train_samples == shards.facts.samples


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    assert len(old) == len(new)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def spoil_code(folder: Path) -> None:
    codes = np.load(folder / "train_codes.npy", mmap_mode="r+")
    codes[-1] = 64
    codes.flush()


def spoil_index(folder: Path) -> None:
    index = np.load(folder / "val_codes_index.npy", mmap_mode="r+")
    index[1] = 2**40
    index.flush()


def spoil_sample(folder: Path) -> None:
    overwrite(folder / "train_samples.jsonl", b'}\n{"', b'} {"')


def move_sample(folder: Path) -> None:
    """An id of the other split, of the same length."""
    name = CodeTable.of_split(folder, "train").samples[0]["id"].encode()
    other = next(
        sample["id"].encode()
        for sample in CodeTable.of_split(folder, "val").samples
        if len(sample["id"]) == len(name)
    )
    overwrite(folder / "train_samples.jsonl", b'"id": "' + name, b'"id": "' + other)


def spoil_text(folder: Path) -> None:
    overwrite(folder / "train_samples.jsonl", b'"language": "en"', b'"language": "de"')


SPOILED: list[tuple[Any, dict[str, str]]] = [
    (spoil_code, {"codes_are_in_codebook": "has code 64, but the codebook has 64"}),
    (
        spoil_index,
        {
            "index_fits_codes": "does not describe",
            "samples_fit_index": "does not describe",
            "codes_are_in_codebook": "does not describe",
            "no_sample_is_lost": "does not describe",
        },
    ),
    (
        spoil_sample,
        {
            "samples_fit_index": "samples, but its index",
            "validation_has_its_own_recordings": "cannot be read",
        },
    ),
    (move_sample, {"samples_fit_index": "is not of split train"}),
]


@pytest.mark.usefixtures("shards")
def test_damaged_files_block_training(instance: DagsterInstance, store: ArtifactStore) -> None:
    assert run(instance, store).success
    spoil_text(arrays(store).path)
    result = run(instance, store)
    assert not result.success
    assert not trained(result)
    (error,) = (failure.step_failure_data.error for failure in result.get_step_failure_events())
    assert error is not None and f"code_arrays[{CORPUS}] is damaged" in str(error)
    assert f"materialize code_arrays[{CORPUS}] again" in str(error)
    with pytest.raises(ArtifactError, match="has changed since it was published"):
        check_digests(arrays(store))


@pytest.mark.parametrize(("spoil", "said"), SPOILED)
@pytest.mark.usefixtures("shards")
def test_wrong_arrays_fail_their_checks_and_block_training(
    instance: DagsterInstance, store: ArtifactStore, spoil: Any, said: dict[str, str]
) -> None:
    """The manifest fits the files, as if the program had written them like this."""
    assert run(instance, store).success
    spoil(arrays(store).path)
    sign(arrays(store))
    result = run(instance, store)
    assert not result.success
    assert not trained(result)
    problems = failed(result)
    assert set(problems) == set(said)
    for check, words in said.items():
        assert words in problems[check]


def sign(made: CodeArrays) -> None:
    """Write the digests of the files as they are into the manifest."""
    files = {
        name: FileEntry(size=entry.size, sha256=sha256_file(made.path / name))
        for name, entry in made.manifest.files.items()
    }
    digests = {name: entry.sha256 for name, entry in files.items()}
    content = digest_of({"kind": made.kind, "files": digests})
    manifest = made.manifest.model_copy(update={"files": files, "content": content})
    (made.path / MANIFEST).write_text(manifest.to_json())


def republish(store: ArtifactStore, source: CodeArrays, **facts: Any) -> None:
    """Put the files of ``source`` and wrong facts where the arrays of HALF belong."""
    shards = store.current("codec_shards", CORPUS)
    build = Build("code_arrays", {"codec_shards": shards}, HALF, "2", partition=CORPUS)
    result = store.work_folder(build) / "result"
    shutil.copytree(source.path, result)
    store.publish(CodeArrays, build, result, source.facts.model_copy(update=facts))


def test_arrays_with_fewer_samples_than_their_shards_fail(
    instance: DagsterInstance, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    publish_shards(store, utterances[:12], (12,), CORPUS)
    assert run(instance, store).success
    fewer = arrays(store)
    publish_shards(store, utterances, (13,), CORPUS)
    republish(store, fewer)
    result = run(instance, store)
    assert not trained(result)
    problems = failed(result)
    assert set(problems) == {"no_sample_is_lost"}
    assert "train + val samples are 12, but should be 13" in problems["no_sample_is_lost"]


@pytest.mark.usefixtures("shards")
def test_facts_that_differ_from_the_files_fail(
    instance: DagsterInstance, store: ArtifactStore
) -> None:
    assert run(instance, store).success
    true = arrays(store)
    away = store.root / "moved"
    true.path.rename(away)
    republish(store, CodeArrays.open(away), val_codes=true.facts.val_codes + 1)
    result = run(instance, store)
    assert not trained(result)
    problems = failed(result)
    assert set(problems) == {"index_fits_codes"}
    assert f"recorded is {true.facts.val_codes + 1}" in problems["index_fits_codes"]


@pytest.mark.usefixtures("shards")
def test_a_truncated_file_is_rejected_before_any_check(
    instance: DagsterInstance, store: ArtifactStore
) -> None:
    assert run(instance, store).success
    file = arrays(store).path / "train_codes.npy"
    file.write_bytes(file.read_bytes()[:-2])
    result = run(instance, store)
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert "train_codes.npy has another size than recorded" in str(failure.step_failure_data)
