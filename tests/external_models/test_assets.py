"""Tiny models of each family: training by coqui-tts, synthesis, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    AssetSpec,
    DagsterInstance,
    Definitions,
    define_asset_job,
    in_process_executor,
)

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.external_models.conftest import TINY_TORTOISE, TINY_VITS, TINY_XTTS, publish_samples
from tests.support.programs import ONE_THREAD
from tests.support.speaking import publish_arrays, publish_codec
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.compute import Shape
from tts_assets.core.program import METRICS_FILE, read_metrics
from tts_assets.corpora.config import ConsentError, VoiceConsent
from tts_assets.evaluation.assets import build_assets as evaluation_assets
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.results import read_samples
from tts_assets.external_models.assets import build_assets
from tts_assets.external_models.config import ExternalModelsConfig
from tts_assets.orchestration.dependencies import corpus_partitions

ASSETS = ["evaluation_suite", "family/tiny", "spoken/tiny", "report/tiny", "model_families"]


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        ephemeral.add_dynamic_partitions("corpus", ["clips"])
        yield ephemeral


EACH_STEP = {"plot_step": 1}  # has a line of metrics
VITS: dict[str, Any] = {"config": {"model_args": TINY_VITS} | EACH_STEP, "sample_rate": 16000}
XTTS: dict[str, Any] = {"config": {"model_args": TINY_XTTS} | EACH_STEP, "max_seconds": 5.0}
TORTOISE: dict[str, Any] = {
    "config": {
        "model_args": TINY_TORTOISE,
        "num_autoregressive_samples": 1,
        "diffusion_iterations": 2,
    }
}


def definitions(
    coqui: Path,
    store: ArtifactStore,
    folder: Path,
    recipe: dict[str, Any],
    consent: VoiceConsent | None = "synthetic",
) -> Definitions:
    rows = [{"id": "t0", "category": "short", "text": "nobody is here"}]
    (folder / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe | {"corpora": ["clips"], "epochs": 1, "batch_size": 4}
    config = ExternalModelsConfig.model_validate({"python": coqui, "recipes": {"tiny": recipe}})
    given: dict[str, Any] = {"suite": "suite.jsonl", "reference_clips": 1, "window_seconds": 5}
    evaluation = EvaluationConfig.model_validate(given | {"temperatures": [0.5]})
    shape = Shape(processes=1, environment=ONE_THREAD)
    upstream = [
        AssetSpec(name, partitions_def=corpus_partitions)
        for name in ("filtered_samples", "code_arrays")
    ]
    validation = ValidationSplit(fraction=0.2)
    return Definitions(
        assets=[
            *upstream,
            *evaluation_assets(
                evaluation, {}, {}, folder, shape, lambda name: ["clips"], {"tiny": ["clips"]}
            ),
            *build_assets(
                config,
                evaluation,
                validation,
                {"announcer": "sft"},
                shape,
                folder,
                lambda *_: {"clips": consent},
            ),
        ],
        jobs=[define_asset_job("everything", ASSETS)],
        executor=in_process_executor,
        resources={
            "store": ArtifactStoreResource(root=str(store.root)),
            "io_manager": ArtifactIOManager(root=str(store.root)),
            "launcher": TorchrunLauncher(),
        },
    )


def test_training_needs_consent(
    store: ArtifactStore, kept: Path, instance: DagsterInstance, tmp_path: Path
) -> None:
    publish_samples(store, kept, "clips")
    tiny = definitions(Path("unused"), store, tmp_path, {"family": "vits", **VITS}, consent=None)
    job = tiny.resolve_implicit_global_asset_job_def()
    with pytest.raises(ConsentError, match=r"family/tiny is not published: corpora\.clips"):
        job.execute_in_process(instance=instance, asset_selection=[AssetKey(["family", "tiny"])])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "recipe", "loss"),
    [("vits", VITS, "loss_mel"), ("xtts", XTTS, "loss_mel_ce"), ("tortoise", TORTOISE, None)],
)
def test_training_synthesis_and_report(
    family: str,
    recipe: dict[str, Any],
    loss: str | None,
    coqui: Path,
    store: ArtifactStore,
    clips: Path,
    kept: Path,
    instance: DagsterInstance,
    tmp_path: Path,
) -> None:
    publish_samples(store, kept, "clips")
    (tmp_path / "arrays").mkdir()
    absolute = tmp_path / "arrays" / "samples.jsonl"
    absolute.write_text(kept.read_text())
    publish_arrays(store, publish_codec(store), absolute.parent)
    tiny = definitions(coqui, store, tmp_path, {"family": family, **recipe})
    job = tiny.resolve_job_def("everything")
    result = job.execute_in_process(instance=instance)
    assert all(check.passed for check in result.get_asset_check_evaluations())

    model = store.current("family/tiny")
    assert model.facts.train_samples + model.facts.val_samples + model.facts.set_aside == 13
    assert not list(model.path.rglob("*.pth")), "pickles are not published"
    if loss is not None:
        assert model.facts.losses[loss] > 0
        assert any(f"val_{loss}" in record for record in read_metrics(model.path / METRICS_FILE))
    (sample,) = read_samples(store.current("report/tiny").path)
    assert sample.seconds > 0
    assert (store.current("report/tiny").path / sample.audio).is_file()
    table = (store.current("model_families").path / "families.md").read_text()
    assert f"| tiny | {family} | reported | 1 |" in table
    assert "| announcer | speechlm | not trained yet | 0 |" in table

    again = job.execute_in_process(instance=instance)
    events = again.get_asset_materialization_events()
    assert all(event.materialization.metadata["reused"].value for event in events)
