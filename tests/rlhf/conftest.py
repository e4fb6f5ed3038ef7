from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.speaking import Speaking, publish_all
from tts_assets.artifacts import ArtifactStore
from tts_assets.audio import read_wave
from tts_assets.rlhf.config import PromptsConfig, RlhfProgram, RlhfRecipe
from tts_assets.rlhf.prompts import PromptSet, RolloutPrompt
from tts_assets.rlhf.spoken import Spoken

RATE = 16_000
TEXTS = ("one two", "three four five", "six", "seven eight", "nine", "two two two")


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Speaking:
    return publish_all(ArtifactStore(tmp_path_factory.mktemp("storage")), clips)


@pytest.fixture(scope="session")
def sentences(clips: Path) -> list[Spoken]:
    """The real sentences of the test clips, with what they say."""
    samples = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    return [
        Spoken(sample["transcript"], read_wave(clips / sample["wav_path"], RATE), RATE, True)
        for sample in samples
        if sample["duration"] > 2
    ]


@pytest.fixture
def program(speaking: Speaking, tmp_path: Path) -> Callable[..., RlhfProgram]:
    """A GRPO run of seconds; its reward is 1 for whatever ends within the token limit."""

    def make(name: str, **changes: Any) -> RlhfProgram:
        recipe = {
            "base": "tiny",
            "prompts": PromptsConfig(texts=Path("texts.txt")),
            "rewards": [{"kind": "rate", "slowest": 1e-3, "fastest": 1e6}],
            "sampling": {
                "temperature": 1.0,
                "top_k": 0,
                "repetition_penalty": 1.0,
                "min_tokens": 5,
                "max_tokens": 40,
            },
            "steps": 4,
            "prompts_per_step": 4,
            "learning_rate": 3e-3,
            "beta": 0.0,
            "save_every": 1,
            **changes,
        }
        run_dir = tmp_path / name
        run_dir.mkdir()
        prompts = PromptSet([RolloutPrompt(text=text) for text in TEXTS])
        prompts.write(run_dir / "prompts.jsonl")
        made = RlhfProgram(
            run_dir=run_dir,
            name="tiny_grpo",
            recipe=RlhfRecipe.parse(recipe, "test"),
            serving_model=speaking.serving.path,
            prompts=run_dir / "prompts.jsonl",
        )
        (run_dir / "run.json").write_text(made.to_json())
        return made

    return make
