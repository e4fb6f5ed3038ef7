"""Trainings under torchrun are converted to serving models by the asset with its checks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetSpec,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
    define_asset_job,
    in_process_executor,
)

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.sft.conftest import program_values
from tests.sft.test_strategies import STRATEGIES, launch
from tests.support.speaking import SAMPLING, Speaking, publish_trained
from tts_assets.core.compute import Shape
from tts_assets.corpora.config import TextConfig
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.serving.assets import build_assets
from tts_assets.serving.config import ServingConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(speaking: Speaking, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one training run per strategy: two steps on two ranks."""
    root = tmp_path_factory.mktemp("trained")
    base = {"hub": str(speaking.checkpoint.path)}
    adapted = {"strategy": "fsdp", "base": base, "lora": {"rank": 4}}
    changes: dict[str, dict[str, Any]] = {name: {"strategy": name} for name in STRATEGIES}
    entries = [
        {"program": own_values(speaking, root / name, **own)}
        for name, own in (changes | {"lora": adapted}).items()
    ]
    path = root / "runs.json"
    path.write_text(json.dumps(entries))
    done = launch(path)
    assert done.returncode == 0, done.stderr[-6000:]
    return root


def own_values(speaking: Speaking, run_dir: Path, **changes: Any) -> dict[str, Any]:
    values = program_values(run_dir, speaking.arrays.path, steps=2, **changes)
    return values | {"name": run_dir.name, "codec": speaking.codec.content}


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        ephemeral.add_dynamic_partitions("corpus", ["clips"])
        yield ephemeral


def serve(
    instance: DagsterInstance, speaking: Speaking, name: str, vllm: bool
) -> ExecuteInProcessResult:
    """Materialize ``serving/<name>`` of the published checkpoint ``sft/<name>``."""
    config = ServingConfig(sampling=SAMPLING, check_vllm=vllm)
    root = str(speaking.store.root)
    upstream = [
        AssetSpec(["sft", name]),
        AssetSpec("codec"),
        AssetSpec("code_arrays", partitions_def=corpus_partitions),
    ]
    definitions = Definitions(
        assets=[
            *upstream,
            *build_assets(
                config, {"sft": {name: ["clips"]}}, Shape(processes=1), TextConfig(), lambda *_: {}
            ),
        ],
        jobs=[define_asset_job("serve", f"serving/{name}")],
        executor=in_process_executor,
        resources={
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
            "launcher": TorchrunLauncher(),
        },
    )
    job = definitions.resolve_job_def("serve")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def compared(result: ExecuteInProcessResult) -> Mapping[str, tuple[bool, object]]:
    """By check: whether it passed, and the number of compared tokens."""
    return {
        check.check_name: (check.passed, check.metadata["tokens_compared"].value)
        for check in result.get_asset_check_evaluations()
    }


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_agreement_in_transformers(
    instance: DagsterInstance, speaking: Speaking, runs: Path, name: str
) -> None:
    publish_trained(speaking, runs / name)
    result = serve(instance, speaking, name, vllm=False)
    assert result.success
    assert compared(result) == {"transformers_agrees": (True, 64)}


@pytest.mark.parametrize("name", ["fsdp", "lora"])
def test_agreement_in_vllm(
    instance: DagsterInstance, speaking: Speaking, runs: Path, name: str
) -> None:
    """FSDP shards are gathered, LoRA adapters merged."""
    publish_trained(speaking, runs / name)
    result = serve(instance, speaking, name, vllm=True)
    assert result.success
    found = compared(result)
    assert found["transformers_agrees"] == (True, 64)
    passed, tokens = found["vllm_agrees"]
    assert passed and tokens == 64
