"""Small published serving models with reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    EvaluationSuite,
    Handle,
    Report,
    ServingModel,
)
from tts_assets.evaluation.results import Figure, Figures
from tts_assets.promotion.config import PromotionConfig

SERVING = {
    "stage": "sft",
    "parameters": 1,
    "vocabulary": "v",
    "codec": "c",
    "codec_path": "../../../../codec/all/c",
    "sample_rate": 16000,
    "token_rate": 50.0,
    "codebook_size": 4096,
}
FIGURES = {"wer": 0.1, "dnsmos_p808": 3.0, "speaker_similarity": 0.8}
CANDIDATES = ("first", "second")


@dataclass
class Publisher:
    """Publishes serving models and their reports in a store."""

    store: ArtifactStore

    def publish(
        self,
        kind: type[Handle],
        asset: str,
        inputs: dict[str, Handle],
        files: dict[str, str],
        facts: object,
    ) -> Handle:
        build = Build(asset, inputs, {"files": files}, "1")
        result = self.store.work_folder(build) / "result"
        result.mkdir(exist_ok=True)
        for name, text in files.items():
            (result / name).write_text(text)
        return self.store.publish(kind, build, result, facts)

    def serving(self, recipe: str, weights: str) -> Handle:
        files = {"model.safetensors": weights, "serving.json": "{}"}
        facts = {"recipe": recipe, **SERVING}
        return self.publish(ServingModel, f"serving/{recipe}", {}, files, facts)

    def report(
        self,
        recipe: str,
        suite: str = "texts",
        digits: float = 0.1,
        target: str = "recordings",
        **figures: float | None,
    ) -> Handle:
        """A report of the current serving model with the reference recordings ``target``.

        A metric that is None could not be measured.
        """
        asked, references = self.texts("evaluation_suite", suite), self.texts("arrays", target)
        values = {**FIGURES, **figures}
        model = self.store.current(f"serving/{recipe}")
        inputs = {"serving": model, "suite": asked, "arrays": references}
        build = Build(f"report/{recipe}", inputs, {}, "1")
        result = self.store.work_folder(build) / "result"
        result.mkdir(exist_ok=True)
        (result / "report.json").write_text(
            json.dumps(
                {
                    "target": target,
                    "total": figures_of(values),
                    "categories": {"digits": figures_of({**values, "wer": digits})},
                }
            )
        )
        facts = {"recipe": recipe, "texts": 1, "wer_by_category": {}, **values}
        return self.store.publish(Report, build, result, facts)

    def texts(self, asset: str, text: str) -> Handle:
        """An input of which only the content matters."""
        facts = {"texts": 1, "categories": {}}
        return self.publish(EvaluationSuite, asset, {}, {"suite.jsonl": text}, facts)

    def candidate(self, recipe: str, weights: str, **figures: float | None) -> None:
        self.serving(recipe, weights)
        self.report(recipe, **figures)


def figures_of(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Totals in the format of ``report.json``."""
    metrics = {
        name: Figure(value=value, low=value, high=value, count=1, set_aside=0)
        for name, value in values.items()
        if value is not None
    }
    return Figures(texts=1, samples=1, metrics=metrics).model_dump(mode="json")


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(ArtifactStore(tmp_path / "storage"))


@pytest.fixture
def config() -> PromotionConfig:
    margins = {"wer": 0.01, "dnsmos_p808": -0.1, "speaker_similarity": -0.02}
    return PromotionConfig(candidates=CANDIDATES, margins=margins)
