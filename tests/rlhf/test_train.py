from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tts_assets.artifacts import CheckpointFacts
from tts_assets.program import STOPPED, Run
from tts_assets.rlhf import train
from tts_assets.rlhf.config import RlhfProgram
from tts_assets.rlhf.metrics import training_records
from tts_assets.rlhf.rollouts import completion_seed
from tts_assets.serving.synthesis import read_card
from tts_assets.speechlm.model import SpeechLM

Make = Callable[..., RlhfProgram]


def run(program: RlhfProgram) -> None:
    train.main([str(program.run_dir / "run.json")])


def metrics(program: RlhfProgram) -> list[dict[str, Any]]:
    """Of the steps of training."""
    return training_records(program.run_dir)


def weights(program: RlhfProgram) -> bytes:
    return (program.run_dir / "result" / "model.safetensors").read_bytes()


def test_grpo_raises_the_reward(program: Make) -> None:
    """The policy learns to end: an untrained one does in 1 of 7 cases."""
    made = program("run", steps=12, prompts_per_step=6)
    run(made)
    rewards = [record["reward"] for record in metrics(made)]
    assert len(rewards) == 12
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2, rewards


def test_result_is_a_checkpoint_of_the_same_vocabulary(program: Make) -> None:
    made = program("run", steps=1, iterations=2, beta=0.04)
    run(made)
    facts = CheckpointFacts.from_json(made.run_dir / "result.json")
    card = read_card(made.serving_model)
    assert (facts.stage, facts.recipe, facts.steps) == ("rlhf", "tiny_grpo", 1)
    assert (facts.vocabulary, facts.codec) == (card.vocabulary, card.codec)
    lm = SpeechLM.load(made.run_dir / "result", facts.codebook_size)
    assert lm.model.config.eos_token_id == lm.vocabulary.speech_end
    assert weights(made) != (made.serving_model / "model.safetensors").read_bytes()


def test_completions_are_kept_as_audio(program: Make) -> None:
    made = program("run", steps=3, audio_every=2, keep_audio=3, prompts_per_step=6)
    run(made)
    folder = made.run_dir / "result" / "rollouts"
    assert sorted(p.name for p in folder.glob("*.json")) == ["step-000000.json", "step-000002.json"]
    kept = json.loads((folder / "step-000000.json").read_text())
    assert len(kept) == 3
    for record in kept:
        assert record["ended"] == (record["rewards"]["rate"] > 0)
        if record["audio"]:
            assert soundfile.info(folder / record["audio"]).samplerate == 16_000


def test_stopped_and_resumed_is_the_same_run(program: Make) -> None:
    whole, parts = program("whole", steps=6), program("parts", steps=6)
    run(whole)
    stop_after_first_step(parts)
    with pytest.raises(SystemExit) as stopped:
        run(parts)
    assert stopped.value.code == STOPPED
    assert 1 <= len(metrics(parts)) < 6
    run(parts)
    assert weights(parts) == weights(whole)
    for ours, theirs in zip(metrics(parts), metrics(whole), strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["reward"] == theirs["reward"]


def stop_after_first_step(program: RlhfProgram) -> None:
    """Send this process SIGTERM as soon as the run has reported a step."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not (program.run_dir / "metrics.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def test_unfinished_checkpoints_are_not_resumed_from(tmp_path: Path) -> None:
    for number in (2, 10, 30):
        (tmp_path / f"checkpoint-{number}").mkdir()
    assert train.newest_checkpoint(tmp_path) is None
    for number in (2, 10):
        (tmp_path / f"checkpoint-{number}" / train.COMPLETE).touch()
    assert train.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_prompts_come_in_whole_rounds_of_different_orders() -> None:
    order = train.prompt_order(prompts=7, count=20, seed=1)
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert list(order[:7]) != list(order[7:14])
    assert list(train.prompt_order(7, 9, seed=1)) == list(order[:9])


def test_seeds_differ_by_place_and_step() -> None:
    seeds = {completion_seed(s, t, p) for s in range(3) for t in range(10) for p in range(10)}
    assert len(seeds) == 300
    assert max(seeds) < 2**63


def test_completions_that_do_not_divide_are_refused(
    program: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = program("run", prompts_per_step=3, generations=3).recipe
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="9 completions do not divide into 2 processes"):
        train.grpo_config(recipe, Run(tmp_path))


@pytest.mark.slow
def test_two_processes_make_the_rollouts_of_one(program: Make) -> None:
    one, two = program("one", steps=2), program("two", steps=2)
    run(one)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, "-m", "tts_assets.rlhf.train", str(two.run_dir / "run.json")],
        check=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert metrics(two)[0]["reward"] == pytest.approx(metrics(one)[0]["reward"], abs=1e-6)
    assert CheckpointFacts.from_json(two.run_dir / "result.json").steps == 2
