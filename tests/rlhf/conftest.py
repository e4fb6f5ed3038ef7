from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.speaking import Speaking, publish_all
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.audio import read_wave
from tts_assets.core.processes import LOOPBACK, Server, free_port, marked_processes
from tts_assets.rlhf.config import (
    EngineProgram,
    PromptsConfig,
    RlhfProgram,
    RlhfRecipe,
)
from tts_assets.rlhf.engine import hosted
from tts_assets.rlhf.prompts import PromptSet, RolloutPrompt
from tts_assets.rlhf.rewards import DecodedCompletion
from tts_assets.serving.config import VllmConfig

RATE = 16_000
TEXTS = ("one two", "three four five", "six", "seven eight", "nine", "two two two")


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Speaking:
    return publish_all(ArtifactStore(tmp_path_factory.mktemp("storage")), clips)


def engine_servers(program: RlhfProgram) -> list[psutil.Process]:
    """Returns the server processes of a run's engine."""
    config = str((program.run_dir / "engine").resolve() / "run.json")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"tts_assets.rlhf.engine_server", config} <= set(process.info["cmdline"] or ())
    ]


@pytest.fixture(scope="module")
def engine(speaking: Speaking, tmp_path_factory: pytest.TempPathFactory) -> EngineProgram:
    run_dir = tmp_path_factory.mktemp("engine")
    config = VllmConfig(start_seconds=300)
    return EngineProgram(run_dir=run_dir, serving_model=speaking.serving.path, vllm=config)


@pytest.fixture(scope="module")
def server(engine: EngineProgram) -> Iterator[Server]:
    """A real vLLM server; it needs about 25 s to start."""
    with hosted(engine, LOOPBACK, free_port(), print) as running:
        running.wait_until_healthy()
        yield running
    assert not marked_processes(running.launch_id)


@pytest.fixture(scope="session")
def sentences(clips: Path) -> list[DecodedCompletion]:
    """The test clips that are sentences, with their transcripts."""
    samples = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    return [
        DecodedCompletion(
            sample["transcript"], read_wave(clips / sample["wav_path"], RATE), RATE, True
        )
        for sample in samples
        if sample["duration"] > 2
    ]


def grpo_program(
    speaking: Speaking, run_dir: Path, vllm: VllmConfig | None = None, **changes: Any
) -> RlhfProgram:
    """A short GRPO run in ``run_dir``, whose reward is 1 for each completion that ends."""
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
    run_dir.mkdir()
    prompts = PromptSet([RolloutPrompt(text=text) for text in TEXTS])
    prompts.write(run_dir / "prompts.jsonl")
    made = RlhfProgram(
        run_dir=run_dir,
        name="tiny_grpo",
        recipe=RlhfRecipe.parse(recipe, "test"),
        serving_model=speaking.serving.path,
        prompts=run_dir / "prompts.jsonl",
        vllm=vllm or VllmConfig(),
    )
    (run_dir / "run.json").write_text(made.to_json())
    return made


@pytest.fixture
def program(speaking: Speaking, tmp_path: Path) -> Callable[..., RlhfProgram]:
    """Returns a factory of short GRPO runs: a name, and changes of the recipe."""
    return lambda name, **changes: grpo_program(speaking, tmp_path / name, **changes)
