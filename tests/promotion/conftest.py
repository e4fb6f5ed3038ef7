"""Small published serving models with reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
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
from tts_assets.evaluation.results import SampleResult, write_samples
from tts_assets.promotion.decision import PromotionConfig

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
TEXTS = 20
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

    def serving(self, recipe: str, weights: str, card: str = "{}") -> Handle:
        files = {"model.safetensors": weights, "serving.json": card}
        facts = {"recipe": recipe, **SERVING}
        return self.publish(ServingModel, f"serving/{recipe}", {}, files, facts)

    def report(
        self,
        recipe: str,
        suite: str = "texts",
        digits: float | None = None,
        target: str = "recordings",
        spread: Mapping[str, Sequence[float]] = MappingProxyType({}),
        **figures: float | None,
    ) -> Handle:
        """A report of the current serving model with the reference recordings ``target``.

        All texts have the same values, with three exceptions: a metric that is None could not be
        measured, ``spread`` has values by text, and ``digits`` is the WER of the category digits.
        """
        asked, references = self.texts("evaluation_suite", suite), self.texts("arrays", target)
        values = {**FIGURES, **figures}
        model = self.store.current(f"serving/{recipe}")
        inputs = {"serving": model, "suite": asked, "arrays": references}
        build = Build(f"report/{recipe}", inputs, {}, "1")
        result = self.store.work_folder(build) / "result"
        result.mkdir(exist_ok=True)
        known = {name: [value] * TEXTS for name, value in values.items() if value is not None}
        if digits is not None:
            others = 2 * known["wer"][0] - digits  # so that the total is as asked
            known["wer"] = [digits, others] * (TEXTS // 2)
        known |= {name: list(numbers) for name, numbers in spread.items()}
        write_samples(result / "samples.jsonl", samples_with(known))
        (result / "report.json").write_text(json.dumps({"target": target}))
        facts = {"recipe": recipe, "texts": 1, "wer_by_category": {}, **values}
        return self.store.publish(Report, build, result, facts)

    def texts(self, asset: str, text: str) -> Handle:
        """An input of which only the content matters."""
        facts = {"texts": 1, "categories": {}}
        return self.publish(EvaluationSuite, asset, {}, {"suite.jsonl": text}, facts)

    def candidate(self, recipe: str, weights: str, card: str = "{}", **figures: Any) -> None:
        self.serving(recipe, weights, card)
        self.report(recipe, **figures)


def samples_with(values: Mapping[str, Sequence[float]]) -> Iterator[SampleResult]:
    """Syntheses of 10 words each; the categories alternate. ``values``: by metric and text."""
    for number, numbers in enumerate(zip(*values.values(), strict=True)):
        yield SampleResult(
            id=f"text{number}",
            category=("digits", "sentences")[number % 2],
            text="text",
            seed=1,
            heard="text",
            word_errors=0,
            words=10,
            character_errors=0,
            characters=40,
            seconds=1.0,
            ended=True,
            audio=None,
            values=dict(zip(values, numbers, strict=True)),
        )


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(ArtifactStore(tmp_path / "storage"))


@pytest.fixture
def config() -> PromotionConfig:
    margins = {"wer": 0.01, "dnsmos_p808": -0.1, "speaker_similarity": -0.02}
    return PromotionConfig(candidates=CANDIDATES, margins=margins)
