"""Trainings with invalid losses block downstream assets, in all stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import (
    AssetCheckKey,
    DagsterInstance,
    ExecuteInProcessResult,
    Output,
    asset,
    materialize,
)

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tts_assets.core.artifacts import ArtifactStore, Build, Texts
from tts_assets.definitions import build_defs
from tts_assets.orchestration.checks import losses_check
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.settings import load_settings

DECODER = {"corpora": {"asterisk_en": 1.0}, "sample_rate": 16000, "steps": 1}
COUNTS = dict.fromkeys(("lines", "train_samples", "val_samples", "set_aside"), 0)
FACTS = {"name": "trained", "licence": "", **COUNTS}


def train(root: Path, metrics: str) -> ExecuteInProcessResult:
    """A model with such a ``metrics.jsonl`` and what is made of it, in the run of a corpus."""

    @asset(io_manager_key="io_manager")
    def trained() -> Output[Texts]:
        store, build = ArtifactStore(root), Build("trained", {}, {}, "1")
        result = store.work_folder(build) / "result"
        result.mkdir()
        (result / "metrics.jsonl").write_text(metrics)
        handle = store.publish(Texts, build, result, FACTS)
        assert isinstance(handle, Texts)
        return Output(handle)

    @asset(partitions_def=corpus_partitions, deps=[trained])
    def follower() -> None: ...

    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["clips"])
        return materialize(
            [trained, losses_check(trained), follower],
            instance=instance,
            partition_key="clips",
            resources={
                "io_manager": ArtifactIOManager(root=str(root)),
                "store": ArtifactStoreResource(root=str(root)),
            },
            raise_on_error=False,
        )


@pytest.mark.parametrize(
    ("last", "passes"),
    [
        ('{"step": 2, "val_loss": 1.5, "lr": NaN}', True),  # no loss
        ('{"step": 2, "val_loss": NaN}', False),
        ('{"step": 2, "val_loss/clips": Infinity}', False),
        ('{"step": 2, "val_mel": NaN}', False),
    ],
)
def test_losses_that_are_not_finite_block_downstream_assets(
    last: str, passes: bool, tmp_path: Path
) -> None:
    result = train(tmp_path, f'{{"step": 1, "loss": 2.0}}\n{last}\n')
    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, result.success) == (passes, passes)
    assert passes or "of step 2 is" in (check.description or "")
    followed = result.get_asset_materialization_events()
    assert (len(followed) == 2) == passes


def test_a_run_without_losses_does_not_pass(tmp_path: Path) -> None:
    (check,) = train(tmp_path, '{"step": 1, "lr": 0.1}\n').get_asset_check_evaluations()
    assert not check.passed


def test_all_trained_assets_have_the_check() -> None:
    def checked(profile: str, codec: dict[str, object]) -> set[str]:
        environment = {"TTS_PROFILE": profile} if profile else {}
        settings = load_settings(environment=environment, overrides={"codec": codec})
        keys: set[AssetCheckKey] = build_defs(settings).resolve_asset_graph().asset_check_keys
        return {k.asset_key.to_user_string() for k in keys if k.name == "losses_are_finite"}

    assert "codec" in checked("codec_demo", {})
    found = checked("", {"decoder": DECODER})
    assert {"sft/announcer", "rlhf/announcer_grpo", "codec_decoder"} <= found
    assert "codec" not in found  # a published one
