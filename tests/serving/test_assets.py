"""The blocking check of serving models: agreement with the checkpoint, and unchanged files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetCheckResult, AssetsDefinition

from resources.artifact_store import ArtifactStoreResource
from tests.support.speaking import Speaking
from tts_assets.core.artifacts import MANIFEST, ServingModel
from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import TextConfig
from tts_assets.serving.assets import agreement_check, build_assets
from tts_assets.serving.config import ServingConfig, VerifyProgram
from tts_assets.serving.verify import agreements


@pytest.fixture(scope="module")
def program(speaking: Speaking) -> VerifyProgram:
    return VerifyProgram(
        run_dir=Path(),
        checkpoint=speaking.checkpoint.path,
        serving_model=speaking.serving.path,
        codebook_size=256,
        texts=("one two", "three"),
        tokens=12,
        vllm=False,
    )


@pytest.fixture(scope="module")
def compared(program: VerifyProgram) -> dict[str, Any]:
    return {engine: agreement.model_dump() for engine, agreement in agreements(program).items()}


def model_with(speaking: Speaking, agreed: dict[str, Any], folder: Path) -> ServingModel:
    """A copy of the serving model with the given agreements in its facts."""
    shutil.copytree(speaking.serving.path, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["facts"]["agreements"] = agreed
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return ServingModel.open(folder)


def check(model: ServingModel) -> AssetCheckResult:
    asset = next(
        definition
        for definition in build_assets(
            ServingConfig(), {"sft": {"voice": ["clips"]}}, Shape(), TextConfig(), lambda *_: {}
        )
        if isinstance(definition, AssetsDefinition) and not definition.check_keys
    )
    store = ArtifactStoreResource(root=str(model.path.parent))
    result = agreement_check(asset, "transformers")(store=store, made=model)
    assert isinstance(result, AssetCheckResult)
    return result


def test_agreement_passes(speaking: Speaking, compared: dict[str, Any], tmp_path: Path) -> None:
    result = check(model_with(speaking, compared, tmp_path / "model"))
    assert result.passed
    assert result.metadata["tokens_compared"].value == 24


def test_difference_fails(speaking: Speaking, compared: dict[str, Any], tmp_path: Path) -> None:
    differing = {"transformers": compared["transformers"] | {"different": 1}}
    assert not check(model_with(speaking, differing, tmp_path / "model")).passed


def test_changed_bytes_fail(speaking: Speaking, compared: dict[str, Any], tmp_path: Path) -> None:
    model = model_with(speaking, compared, tmp_path / "model")
    weights = model.path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = check(model)
    assert not result.passed and "model.safetensors" in str(result.description)


def test_missing_vllm_is_reported(program: VerifyProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"\[vllm\] python, or write check_vllm = false"):
        agreements(program.model_copy(update={"vllm": True}))
