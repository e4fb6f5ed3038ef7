"""The asset as Dagster runs it: real launcher, real store, inputs published beforehand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, AssetSpec, DagsterInstance, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.sft.conftest import CODEBOOK, recipe_values
from tts_assets.artifacts import (
    ArtifactError,
    ArtifactStore,
    Build,
    Checkpoint,
    CodeArrays,
    CodecCheckpoint,
    Handle,
    TokenArrays,
)
from tts_assets.compute import Shape
from tts_assets.partitions import corpus_partitions
from tts_assets.sft.assets import find_tokens, sft_asset, sft_program
from tts_assets.sft.config import SftRecipe

CODEC_FACTS = {
    "sample_rate": 16000,
    "token_rate": 50.0,
    "codebook_size": CODEBOOK,
}


def publish(store: ArtifactStore, kind: type[Handle], build: Build, facts: object) -> Handle:
    return store.publish(kind, build, store.work_folder(build) / "result", facts)


@pytest.fixture
def inputs(
    arrays: Path, codec: Path, tmp_path: Path
) -> tuple[ArtifactStore, CodeArrays, CodecCheckpoint]:
    """A store in which a codec and the arrays it made are published."""
    store = ArtifactStore(tmp_path / "storage")
    codec_build = Build("codec", {}, {}, "1")
    shutil.copytree(codec, store.work_folder(codec_build) / "result")
    facts = CODEC_FACTS | {"hop_length": 320, "parameters": 1}
    handle = publish(store, CodecCheckpoint, codec_build, facts)
    build = Build("code_arrays", {"codec": handle}, {}, "1", partition="asterisk")
    shutil.copytree(arrays, store.work_folder(build) / "result")
    counts = {"train_samples": 56, "val_samples": 8, "train_codes": 1, "val_codes": 1}
    extra = {"corpus": "asterisk", "hours": 0.05, "codec": handle.content, "speakers": 1}
    published = publish(store, CodeArrays, build, CODEC_FACTS | counts | extra)
    assert isinstance(handle, CodecCheckpoint) and isinstance(published, CodeArrays)
    return store, published, handle


@pytest.mark.slow
def test_a_recipe_is_materialized_once(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint],
) -> None:
    store, arrays, codec = inputs
    recipe = SftRecipe.model_validate(recipe_values(steps=3, listen=1))
    asset = sft_asset("test", recipe, Shape(processes=2, threads=1))
    upstream: list[Any] = [
        AssetSpec("codec"),
        AssetSpec("code_arrays", partitions_def=corpus_partitions),
    ]
    resources = {
        "store": ArtifactStoreResource(root=str(store.root)),
        "io_manager": ArtifactIOManager(root=str(store.root)),
        "launcher": TorchrunLauncher(grace_seconds=5.0),
    }
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["asterisk"])
        results = [
            materialize(
                [*upstream, asset], instance=instance, resources=resources, selection=[asset]
            )
            for _ in range(2)
        ]
        event = instance.get_latest_materialization_event(AssetKey(["sft", "test"]))
    checkpoint = store.current("sft/test")
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.facts.steps == 3 and checkpoint.facts.codec == codec.content
    assert checkpoint.manifest.inputs["arrays[asterisk]"].content == arrays.content
    metadata = [r.asset_materializations_for_node("sft__test")[0].metadata for r in results]
    assert metadata[0]["val_loss"].value == checkpoint.facts.val_loss
    assert metadata[0]["tokens_per_second"].value > 0
    assert metadata[0]["loss_curve"].value.startswith("![loss curve](data:image/png;base64,")
    assert metadata[0]["val_entropy"].value > 0 and metadata[0]["update_ratio"].value > 0
    assert metadata[0]["health"].value.startswith("![signs of health](data:image/png;base64,")
    assert Path(metadata[1]["listening"].path) == checkpoint.path / "listening.ipynb"
    assert "data:audio/flac" in (checkpoint.path / "listening.ipynb").read_text()
    assert event is not None and event.asset_materialization is not None
    folders = [p for p in (store.root / "sft" / "test" / "all").iterdir() if not p.is_symlink()]
    assert len(folders) == 1  # the second time there was nothing to do


def test_texts_of_other_arrays_are_not_used(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint],
) -> None:
    store, arrays, _ = inputs
    assert find_tokens(store, {"asterisk": arrays}) == {}
    for version, used in (("1", True), ("2", False)):
        build = Build("code_arrays", {}, {}, version, partition="asterisk")
        folder = store.work_folder(build) / "result"
        folder.mkdir()
        (folder / "other").write_text(version)
        made_from = arrays if used else publish(store, CodeArrays, build, arrays.facts.model_dump())
        build = Build("token_arrays", {"code_arrays": made_from}, {}, "1", partition="asterisk")
        folder = store.work_folder(build) / "result"
        folder.mkdir()
        (folder / "tokenizers.json").write_text("[]")
        published = publish(store, TokenArrays, build, {"corpus": "asterisk", "text_tokens": {}})
        found = find_tokens(store, {"asterisk": arrays})
        assert found == ({"asterisk": published.path} if used else {})


def test_arrays_of_another_codec_are_refused(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint], tmp_path: Path
) -> None:
    store, arrays, _ = inputs
    build = Build("codec", {}, {"other": True}, "1")
    folder = store.work_folder(build) / "result"
    folder.mkdir()
    (folder / "config.json").write_text('{"other": true}')
    facts = CODEC_FACTS | {"hop_length": 320, "parameters": 1}
    other = publish(store, CodecCheckpoint, build, facts)
    assert isinstance(other, CodecCheckpoint)
    recipe = SftRecipe.model_validate(recipe_values())
    with pytest.raises(ArtifactError, match=r"materialize code_arrays\[asterisk\] again"):
        sft_program("test", recipe, tmp_path, {"asterisk": arrays}, other)
