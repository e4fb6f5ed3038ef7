"""The assets ``codec`` and ``codec_shards``: unchanged codecs and codes are not made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from dagster import (
    AssetsDefinition,
    AssetSpec,
    DagsterInstance,
    ExecuteInProcessResult,
    materialize,
)

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.codec.conftest import VENDORED, published
from tests.codec.test_original import original_weights, save
from tests.support.codecs import saved
from tts_assets.codec.assets import build_assets
from tts_assets.codec.config import CodecConfig
from tts_assets.codec.model import Codec
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    CodecCheckpoint,
    CodecShards,
    SampleFacts,
    SampleManifest,
)
from tts_assets.core.compute import Shape
from tts_assets.corpora.samples import Sample, write_samples
from tts_assets.orchestration.dependencies import corpus_partitions


def resources(store: ArtifactStore) -> dict[str, object]:
    return {
        "store": ArtifactStoreResource(root=str(store.root)),
        "io_manager": ArtifactIOManager(root=str(store.root)),
        "launcher": TorchrunLauncher(),
    }


def fetch(
    root: Path, store: ArtifactStore, name: str = "codec", codebooks: int | None = None
) -> ExecuteInProcessResult:
    config = CodecConfig(checkpoint=name, codebooks=codebooks)
    codec = build_assets(config, ValidationSplit(), Shape(processes=1), root)[0]
    assert isinstance(codec, AssetsDefinition)
    return materialize([codec], resources=resources(store))


def publish(store: ArtifactStore, corpus: str, samples: Sequence[Sample]) -> None:
    """Publish these samples as the ``filtered_samples`` of a corpus."""
    build = Build("filtered_samples", {}, {"ids": [s.id for s in samples]}, "1", partition=corpus)
    result = store.work_folder(build) / "result"
    result.mkdir()
    write_samples(result / "kept.jsonl", samples)
    count = len(samples)
    facts = SampleFacts(
        corpus=corpus, samples_in=count, kept=count, rejected=0, reasons={}, hours=0.0, speakers=1
    )
    store.publish(SampleManifest, build, result, facts)


def encode(store: ArtifactStore, instance: DagsterInstance, corpus: str) -> CodecShards:
    upstream = AssetSpec("filtered_samples", partitions_def=corpus_partitions)
    config = CodecConfig(checkpoint=str(VENDORED), shard_samples=4)
    result = materialize(
        [upstream, *build_assets(config, ValidationSplit(), Shape(processes=1), Path())],
        instance=instance,
        partition_key=corpus,
        resources=resources(store),
    )
    assert all(check.passed for check in result.get_asset_check_evaluations())
    handle = store.current("codec_shards", corpus)
    assert isinstance(handle, CodecShards)
    (event,) = result.asset_materializations_for_node("codec_shards")
    assert event.metadata["encoded"].value == handle.facts.encoded
    columns = event.metadata["dagster/column_schema"].value.columns
    with (handle.path / "shard-00000.samples.jsonl").open() as lines:
        assert [column.name for column in columns] == list(json.loads(next(lines)))
    return handle


@pytest.mark.slow
def test_a_corpus_that_grows_has_only_its_new_clips_encoded(
    store: ArtifactStore, samples: list[Sample]
) -> None:
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["announcer", "again"])
        publish(store, "announcer", samples[4:9])
        first = encode(store, instance, "announcer").facts
        assert (first.samples, first.encoded, first.reused_codes) == (5, 5, 0)
        publish(store, "announcer", samples[:10])
        grown = encode(store, instance, "announcer").facts
        assert (grown.samples, grown.encoded, grown.reused_codes) == (10, 5, 5)
        publish(store, "again", samples[:10])
        again = encode(store, instance, "again")
        assert (again.facts.encoded, again.facts.reused_codes) == (0, 10)
        assert again.content == store.current("codec_shards", "announcer").content


def test_a_folder_is_published_once(tmp_path: Path, store: ArtifactStore, vendored: Codec) -> None:
    shutil.copytree(VENDORED, tmp_path / "codec")
    first, second = fetch(tmp_path, store), fetch(tmp_path, store)
    handle = store.current("codec")
    assert isinstance(handle, CodecCheckpoint)
    assert handle.facts == vendored.facts
    events = [r.asset_materializations_for_node("codec")[0] for r in (first, second)]
    assert [event.metadata["reused"].value for event in events] == [False, True]
    assert events[0].metadata["bookkeeping"].value["facts"]["token_rate"] == 50.0
    assert "token_rate" not in events[0].metadata, "a constant needs no plot"
    assert "perplexity" not in events[0].metadata, "it is unknown"
    (tmp_path / "codec" / "README.md").write_text("the model card is not part of the codec")
    fetch(tmp_path, store)
    assert store.current("codec").content == handle.content
    (tmp_path / "codec" / "recipe.json").write_text("{}")
    fetch(tmp_path, store)
    assert store.current("codec").content != handle.content


def test_the_number_of_codebooks_is_part_of_the_codec(tmp_path: Path, store: ArtifactStore) -> None:
    saved("mimi", tmp_path)
    fetch(tmp_path, store)
    whole = store.current("codec")
    fetch(tmp_path, store, codebooks=2)
    some = store.current("codec")
    assert whole.content != some.content
    assert (whole.facts.frame, some.facts.frame) == (4 * (64,), 2 * (64,))
    assert "codebooks" not in CodecConfig(checkpoint="a").canonical()
    with pytest.raises(ValueError, match="trained here have one codebook"):
        CodecConfig.model_validate({"train": {"corpora": {"a": 1.0}}, "codebooks": 2})
    shutil.copytree(VENDORED, tmp_path / "one")
    with pytest.raises(ValueError, match="this content_xcodec2 has one: remove it"):
        fetch(tmp_path, store, "one", codebooks=2)


def test_an_original_checkpoint_is_converted_once(tmp_path: Path, store: ArtifactStore) -> None:
    model = published("xcodec2")
    save(tmp_path, model, original_weights(model))
    first, second = (fetch(tmp_path, store, "xcodec2.ckpt") for _ in range(2))
    events = [r.asset_materializations_for_node("codec")[0] for r in (first, second)]
    assert [event.metadata["reused"].value for event in events] == [False, True]
    assert Codec.load(store.current("codec").path).facts == store.current("codec").facts


def test_a_folder_that_holds_no_codec_is_not_published(
    tmp_path: Path, store: ArtifactStore
) -> None:
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "notes.txt").write_text("no codec")
    with pytest.raises(ValueError, match=r"no config\.json"):
        fetch(tmp_path, store)
