"""Metadata and checks of the asset of a GRPO run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetsDefinition,
    MarkdownMetadataValue,
)

from resources.artifact_store import ArtifactStoreResource, for_dagster, rounded
from tests.support.links import linked_file
from tts_assets.core.artifacts import ArtifactStore, Build, Checkpoint, CheckpointFacts
from tts_assets.core.compute import Shape
from tts_assets.rlhf.assets import build_assets, collapse_check
from tts_assets.rlhf.config import RlhfProgram, RlhfRecipe
from tts_assets.rlhf.reporting import describe_checkpoint
from tts_assets.serving.config import VllmConfig


@pytest.fixture
def trained(program: Callable[..., RlhfProgram], tmp_path: Path) -> tuple[Checkpoint, RlhfRecipe]:
    """The published checkpoint of a real run of four steps, and its recipe."""
    from tts_assets.rlhf import train

    made = program("run", steps=4, beta=0.01, heldout={"fraction": 0.5, "every": 2}, audio_every=2)
    train.main([str(made.run_dir / "run.json")])
    store = ArtifactStore(tmp_path / "storage")
    facts = CheckpointFacts.from_json(made.run_dir / "result.json")
    build = Build("rlhf/tiny", {}, {}, "1")
    handle = store.publish(Checkpoint, build, made.run_dir / "result", facts)
    assert isinstance(handle, Checkpoint)
    return handle, made.recipe


@pytest.mark.slow
def test_metadata_has_numbers_plots_and_audio(
    trained: tuple[Checkpoint, RlhfRecipe], tmp_path: Path
) -> None:
    checkpoint, recipe = trained
    root = tmp_path / "storage"
    shown = for_dagster(describe_checkpoint(checkpoint, recipe), root)
    lines = (checkpoint.path / "metrics.jsonl").read_text().splitlines()
    held_out = [json.loads(line)["reward_heldout"] for line in lines if "reward_heldout" in line]
    assert (shown["reward_heldout_first"], shown["reward_heldout_last"]) == (
        rounded(held_out[0]),
        rounded(held_out[-1]),
    )
    for name in ("reward_first", "reward_rate_last", "seconds_last", "kl", "entropy", "ended"):
        assert isinstance(shown[name], float)
    for name in ("curves", "health"):
        assert isinstance(shown[name], MarkdownMetadataValue)
    assert linked_file(shown["listening"], root) == checkpoint.path / "listening.ipynb"


@pytest.mark.slow
def test_the_collapse_check_warns_and_does_not_block(
    trained: tuple[Checkpoint, RlhfRecipe],
) -> None:
    checkpoint, recipe = trained
    assert evaluate(checkpoint, recipe).passed
    strict = recipe.model_copy(
        update={"alarms": recipe.alarms.model_copy(update={"window": 1, "length": 1.0001})}
    )
    result = evaluate(checkpoint, strict)
    assert not result.passed
    assert result.severity == AssetCheckSeverity.WARN
    assert "length" in result.metadata
    assert "length" in describe_checkpoint(checkpoint, strict)["alarms"]


def evaluate(checkpoint: Checkpoint, recipe: RlhfRecipe) -> AssetCheckResult:
    asset = build_assets({"tiny": recipe}, Shape(), Path(), VllmConfig())[0]
    assert isinstance(asset, AssetsDefinition)
    store = ArtifactStoreResource(root=str(checkpoint.path.parent))
    result = collapse_check(asset, recipe)(store=store, made=checkpoint)
    assert isinstance(result, AssetCheckResult)
    return result
