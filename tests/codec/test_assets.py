"""The codec in the graph: fetched from a folder, and taken again when nothing changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dagster import AssetsDefinition, ExecuteInProcessResult, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.codec.conftest import VENDORED
from tts_assets.artifacts import ArtifactStore, CodecCheckpoint
from tts_assets.codec.assets import build_assets
from tts_assets.codec.config import CodecConfig
from tts_assets.codec.model import Codec
from tts_assets.compute import Shape
from tts_assets.split import ValidationSplit


def fetch(root: Path, store: ArtifactStore) -> ExecuteInProcessResult:
    config = CodecConfig(checkpoint="codec")
    codec = build_assets(config, ValidationSplit(), Shape(processes=1), root)[0]
    assert isinstance(codec, AssetsDefinition)
    resources = {
        "store": ArtifactStoreResource(root=str(store.root)),
        "io_manager": ArtifactIOManager(root=str(store.root)),
        "launcher": TorchrunLauncher(),
    }
    return materialize([codec], resources=resources)


def test_a_folder_is_published_once(tmp_path: Path, store: ArtifactStore, vendored: Codec) -> None:
    shutil.copytree(VENDORED, tmp_path / "codec")
    first, second = fetch(tmp_path, store), fetch(tmp_path, store)
    handle = store.current("codec")
    assert isinstance(handle, CodecCheckpoint)
    assert handle.facts == vendored.facts
    events = [r.asset_materializations_for_node("codec")[0] for r in (first, second)]
    assert [event.metadata["reused"].value for event in events] == [False, True]
    assert events[0].metadata["token_rate"].value == 50.0
    (tmp_path / "codec" / "README.md").write_text("other words make no other codec")
    fetch(tmp_path, store)
    assert store.current("codec").content == handle.content
    (tmp_path / "codec" / "recipe.json").write_text("{}")
    fetch(tmp_path, store)
    assert store.current("codec").content != handle.content


def test_a_folder_that_holds_no_codec_is_not_published(
    tmp_path: Path, store: ArtifactStore
) -> None:
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "notes.txt").write_text("no codec")
    with pytest.raises(ValueError, match=r"no config\.json"):
        fetch(tmp_path, store)
