"""A tiny VITS from scratch, really: trained by coqui-tts, asked a suite, scored by the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetSpec, DagsterInstance, Definitions, define_asset_job, in_process_executor

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.families.conftest import publish_samples
from tests.speaking import publish_arrays, publish_codec
from tts_assets.artifacts import ArtifactStore
from tts_assets.compute import Shape
from tts_assets.evaluation.assets import build_assets as evaluation_assets
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.results import read_samples
from tts_assets.families.assets import build_assets
from tts_assets.families.config import FamiliesConfig
from tts_assets.metrics import read_metrics
from tts_assets.partitions import corpus_partitions
from tts_assets.split import ValidationSplit

TINY = {
    "hidden_channels": 32,
    "hidden_channels_ffn_text_encoder": 64,
    "num_layers_text_encoder": 1,
    "num_layers_posterior_encoder": 2,
    "num_layers_flow": 1,
    "upsample_initial_channel_decoder": 32,
    "periods_multi_period_discriminator": [2],
}
ASSETS = ["evaluation_suite", "family/tiny", "spoken/tiny", "report/tiny", "model_families"]


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        ephemeral.add_dynamic_partitions("corpus", ["clips"])
        yield ephemeral


def definitions(coqui: Path, store: ArtifactStore, folder: Path) -> Definitions:
    rows = [{"id": "t0", "category": "short", "text": "nobody is here"}]
    (folder / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"family": "vits", "corpora": ["clips"], "epochs": 1, "batch_size": 4}
    recipe |= {"sample_rate": 16000, "log_steps": 1, "config": {"model_args": TINY}}
    families = FamiliesConfig.model_validate({"python": coqui, "recipes": {"tiny": recipe}})
    given: dict[str, Any] = {"suite": "suite.jsonl", "references": 1, "window_seconds": 5}
    evaluation = EvaluationConfig.model_validate(given | {"temperatures": [0.5]})
    shape = Shape(processes=1, threads=1)
    upstream = [
        AssetSpec(name, partitions_def=corpus_partitions)
        for name in ("filtered_samples", "code_arrays")
    ]
    validation = ValidationSplit(fraction=0.2)
    return Definitions(
        assets=[
            *upstream,
            *evaluation_assets(evaluation, {}, {}, folder, shape, {"tiny": ["clips"]}),
            *build_assets(
                families,
                evaluation,
                validation,
                {"announcer": "sft"},
                shape,
                folder,
                lambda name: {"clips": "synthetic"},
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


@pytest.mark.slow
def test_vits_is_trained_and_scored(
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
    job = definitions(coqui, store, tmp_path).resolve_job_def("everything")
    result = job.execute_in_process(instance=instance)
    assert all(check.passed for check in result.get_asset_check_evaluations())

    model = store.current("family/tiny")
    assert model.facts.train_samples + model.facts.val_samples + model.facts.set_aside == 13
    assert model.facts.losses["loss_mel"] > 0
    assert not list(model.path.rglob("*.pth")), "pickles are not published"
    assert any("val_loss_mel" in record for record in read_metrics(model.path / "metrics.jsonl"))
    (sample,) = read_samples(store.current("report/tiny").path)
    assert sample.seconds > 0
    assert (store.current("report/tiny").path / sample.audio).is_file()
    table = (store.current("model_families").path / "families.md").read_text()
    assert "| tiny | vits | reported | 1 |" in table
    assert "| announcer | speechlm | not trained yet | 0 |" in table

    again = job.execute_in_process(instance=instance)
    events = again.get_asset_materialization_events()
    assert all(event.materialization.metadata["reused"].value for event in events)
