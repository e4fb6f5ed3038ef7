from __future__ import annotations

import dataclasses
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
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.support.speaking import SAMPLING, Speaking, publish_serving, publish_trained
from tts_assets.core.artifacts import CheckpointFacts
from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.core.program import STOPPED, ProgramConfig, Run, read_metrics
from tts_assets.rlhf.config import RlhfProgram, VllmRollouts
from tts_assets.rlhf.inputs import with_engine
from tts_assets.rlhf.prompts import read_prompts
from tts_assets.rlhf.reporting import training_records
from tts_assets.rlhf.rewards import RewardError
from tts_assets.rlhf.rollouts import (
    HeldOutEvaluation,
    RolloutsStopped,
    completion_seed,
    hold_out,
    spare_devices,
)
from tts_assets.serving.config import ServingConfig
from tts_assets.serving.served_model import read_card
from tts_assets.serving.verify import compare_transformers
from tts_assets.speechlm.config import LlamaSize, VocabularyConfig
from tts_assets.speechlm.model import SpeechLM, new_llama

pytestmark = pytest.mark.slow

Make = Callable[..., RlhfProgram]


def run(program: RlhfProgram) -> None:
    from tts_assets.rlhf import train

    train.main([str(program.run_dir / "run.json")])


def metrics(program: RlhfProgram) -> list[dict[str, Any]]:
    """Returns the metrics of the training steps."""
    return training_records(program.run_dir)


def weights(program: RlhfProgram) -> bytes:
    return (program.run_dir / "result" / "model.safetensors").read_bytes()


def test_grpo_raises_the_reward(program: Make) -> None:
    """The policy learns to end: an untrained one ends 1 of 7 completions."""
    made = program("run", steps=12, prompts_per_step=6)
    run(made)
    rewards = [record["reward"] for record in metrics(made)]
    assert len(rewards) == 12
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2, rewards


def test_the_result_is_a_checkpoint_of_the_same_vocabulary(program: Make) -> None:
    made = program("run", steps=1, iterations=2, beta=0.04)
    run(made)
    facts = CheckpointFacts.from_json(made.run_dir / "result.json")
    card = read_card(made.serving_model)
    assert (facts.stage, facts.recipe, facts.steps) == ("rlhf", "tiny_grpo", 1)
    assert (facts.vocabulary, facts.codec) == (card.vocabulary, card.codec)
    lm = SpeechLM.load(made.run_dir / "result", facts.codebook_size)
    assert lm.model.config.eos_token_id == lm.vocabulary.speech_end
    assert weights(made) != (made.serving_model / "model.safetensors").read_bytes()


def test_the_result_becomes_a_serving_model(program: Make, speaking: Speaking) -> None:
    made = program("run", steps=1)
    run(made)
    checkpoint = publish_trained(speaking, made.run_dir)
    sources = dataclasses.replace(speaking.sources, checkpoint=checkpoint)
    serving = publish_serving(speaking.store, sources, ServingConfig(sampling=SAMPLING))
    agreement = compare_transformers(checkpoint.path, serving.path, 256, ["one two"], tokens=16)
    assert agreement.holds and serving.facts.stage == "rlhf", agreement


def test_completions_are_saved_as_audio(program: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tts_assets.rlhf.train.KEPT_AUDIO", 3)
    made = program("run", steps=3, audio_every=2, prompts_per_step=6)
    run(made)
    folder = made.run_dir / "result" / "rollouts"
    assert sorted(p.name for p in folder.glob("*.json")) == ["step-000000.json", "step-000002.json"]
    kept = json.loads((folder / "step-000000.json").read_text())
    assert len(kept) == 3
    for record in kept:
        assert record["ended"] == (record["rewards"]["rate"] > 0)
        if record["audio"]:
            assert soundfile.info(folder / record["audio"]).samplerate == 16_000


def test_the_checkpoint_has_an_audio_notebook(
    program: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tts_assets.rlhf.train.KEPT_AUDIO", 4)
    made = program("run", steps=3, audio_every=1)
    run(made)
    notebook = json.loads((made.run_dir / "result" / "listening.ipynb").read_text())
    cells = [cell["source"] for cell in notebook["cells"]]
    assert [cell.split(":")[0] for cell in cells if "step" in cell] == [
        "## step 0",
        "## step 1",
        "## step 2",
    ]
    kept = json.loads((made.run_dir / "result" / "rollouts" / "step-000002.json").read_text())
    assert len({record["text"] for record in kept}) == 4  # one of each prompt
    playable = [record["text"] for record in kept if record["audio"]]
    assert playable
    assert all(text in json.dumps(notebook) for text in playable)


HELD_OUT = {"fraction": 0.5, "samples": 2}


def test_held_out_prompts_are_evaluated_and_never_trained_on(
    program: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tts_assets.rlhf.train.KEPT_AUDIO", 99)
    made = program("run", steps=4, heldout={**HELD_OUT, "every": 2}, audio_every=1)
    run(made)
    records = read_metrics(made.run_dir / "metrics.jsonl")
    measured = [record for record in records if "reward_heldout" in record]
    assert [record["step"] for record in measured] == [0, 2, 4]
    assert len({record["reward_heldout"] for record in measured}) > 1
    training, held_out = hold_out(read_prompts(made.prompts), made.recipe.heldout)
    folder = made.run_dir / "result" / "rollouts"
    saved = {one["text"] for path in folder.glob("*.json") for one in json.loads(path.read_text())}
    assert held_out
    assert saved == {prompt.text for prompt in training}


def test_evaluation_does_not_change_the_training(program: Make) -> None:
    often, seldom = (
        program(f"every-{every}", steps=2, heldout={**HELD_OUT, "every": every}) for every in (1, 9)
    )
    run(often)
    run(seldom)
    assert weights(often) == weights(seldom)


def test_a_collapsed_run_publishes_the_checkpoint_before_it(program: Make) -> None:
    """Almost without KL divergence and with a large step the policy leaves the base quickly."""
    changes = {"beta": 1e-9, "alarms": {"window": 2, "kl": 1e-4}, "save_every": 2}
    made = program("run", steps=12, stop_on_collapse=True, **changes)
    run(made)
    trained = metrics(made)
    assert 4 <= len(trained) < 12
    assert "alarm/kl" in trained[-1]
    assert not any("alarm/kl" in record for record in trained[:-1])
    facts = CheckpointFacts.from_json(made.run_dir / "result.json")
    good = (len(trained) - 1) // 2 * 2
    assert facts.steps == good
    assert facts.reward == pytest.approx(trained[good - 1]["reward"])  # of its last tenth: one step
    result, saved = (
        load_file(folder / "model.safetensors")
        for folder in (
            made.run_dir / "result",
            made.run_dir / "checkpoints" / f"checkpoint-{good}",
        )
    )
    assert all(torch.equal(tensor, saved[name]) for name, tensor in result.items())


@pytest.mark.parametrize(
    ("workers", "returned", "message"),
    [(1, "float('nan')", "steady returned nan"), (0, "None", "(?s)reward steady: .*TypeError")],
)
def test_a_checkpoint_is_saved_if_a_reward_fails(
    program: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    returned: str,
    message: str,
) -> None:
    """The run ends with the error. Once the reward works again, the run resumes."""
    from tts_assets.rlhf import train

    source = tmp_path / f"mended_later_{workers}.py"
    flag = tmp_path / "broken"
    source.write_text(
        "import pathlib\n"
        "def steady(batch, flag):\n"
        "    broken = pathlib.Path(flag).exists()\n"
        f"    return [{returned} if broken else 1.0 for _ in batch]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {"flag": str(flag)}
    reward = {"kind": "function", "call": f"{source.stem}:steady", "options": options}
    made = program("run", steps=4, rewards=[reward], save_every=99, reward_workers=workers)
    original = train.TrainingRollouts.generate

    def break_at_the_third(self: train.TrainingRollouts, prompts: list[str], trainer: Any) -> Any:
        if trainer.state.global_step == 2 and not (made.run_dir / "seen").exists():
            (made.run_dir / "seen").touch()
            flag.touch()
        return original(self, prompts, trainer)

    monkeypatch.setattr(train.TrainingRollouts, "generate", break_at_the_third)
    with pytest.raises(RewardError, match=message):
        run(made)
    flag.unlink()
    run(made)
    assert len(metrics(made)) == 4
    assert CheckpointFacts.from_json(made.run_dir / "result.json").steps == 4
    assert (made.run_dir / "checkpoints" / "checkpoint-2").is_dir()


def test_a_loss_that_is_not_finite_ends_the_run_without_a_checkpoint(
    program: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_assets.rlhf import train
    from tts_assets.rlhf.trainer import newest_checkpoint

    made = program("run", steps=3, save_every=1)
    original = train.TrainingRollouts.generate

    def spoil_the_second(self: train.TrainingRollouts, prompts: list[str], trainer: Any) -> Any:
        rollouts = original(self, prompts, trainer)
        if trainer.state.global_step == 1:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("nan"))
        return rollouts

    monkeypatch.setattr(train.TrainingRollouts, "generate", spoil_the_second)
    with pytest.raises(FloatingPointError, match="of update 2 is nan: lower the recipe's learning"):
        run(made)
    newest = newest_checkpoint(made.run_dir / "checkpoints")
    assert newest is not None and newest.name == "checkpoint-1"


def test_a_resumed_run_ends_with_the_same_weights(program: Make) -> None:
    changes = {"steps": 6, "heldout": {**HELD_OUT, "every": 1}}
    whole, parts = program("whole", **changes), program("parts", **changes)
    run(whole)
    stop_after_first_step(parts)
    with pytest.raises(SystemExit) as stopped:
        run(parts)
    assert stopped.value.code == STOPPED
    assert 1 <= len(metrics(parts)) < 6
    run(parts)
    assert weights(parts) == weights(whole)
    published = [
        (made.run_dir / "result" / "metrics.jsonl").read_bytes() for made in (parts, whole)
    ]
    assert published[0] == published[1], "the result must not contain times"
    logged = [read_metrics(made.run_dir / "metrics.jsonl") for made in (parts, whole)]
    for ours, theirs in zip(*logged, strict=True):
        for key in ("step", "reward", "reward_heldout"):
            assert ours.get(key) == theirs.get(key)


LORA = {"lora_rank": 4, "gradient_checkpointing": True, "beta": 0.04, "learning_rate": 0.03}


def test_adapters_are_trained_resumed_and_merged(program: Make, speaking: Speaking) -> None:
    """The published folder has the names and shapes of the policy; embeddings are unchanged."""
    whole, parts = program("whole", steps=3, **LORA), program("parts", steps=3, **LORA)
    run(whole)
    stop_after_first_step(parts)
    with pytest.raises(SystemExit):
        run(parts)
    saved = {path.name for path in (parts.run_dir / "checkpoints").glob("*/*.safetensors")}
    assert saved == {"adapter_model.safetensors"}
    run(parts)
    assert weights(parts) == weights(whole)
    before = load_file(whole.serving_model / "model.safetensors")
    after = load_file(whole.run_dir / "result" / "model.safetensors")
    assert {n: w.shape for n, w in after.items()} == {n: w.shape for n, w in before.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    configs = [
        json.loads((folder / "config.json").read_text())
        for folder in (whole.serving_model, whole.run_dir / "result")
    ]
    assert configs[0] == configs[1]


def test_the_engine_gets_merged_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    from tts_assets.rlhf.engine_client import named_weights

    size = LlamaSize(hidden_size=32, intermediate_size=64, layers=2, heads=2, kv_heads=2)
    model = new_llama(size, 64, VocabularyConfig(), seed=0).model
    names = set(model.state_dict())
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    adapted = get_peft_model(model, dataclasses.replace(settings, init_lora_weights=False))
    sent = {name: weight.clone() for name, weight in named_weights(model, None)}
    merged = adapted.merge_and_unload().state_dict()
    assert set(sent) == names == set(merged)
    assert all(torch.allclose(sent[name], merged[name]) for name in names)


def test_a_stop_at_the_last_evaluation_repeats_only_that(
    program: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = program("run", steps=2, heldout=HELD_OUT, save_every=99)
    original = HeldOutEvaluation.measure

    def engine_away(self: HeldOutEvaluation, step: int) -> None:
        if step == 2 and not (made.run_dir / "seen").exists():
            (made.run_dir / "seen").touch()
            raise RolloutsStopped("the run was asked to stop while the engine was not available")
        original(self, step)

    monkeypatch.setattr(HeldOutEvaluation, "measure", engine_away)
    with pytest.raises(SystemExit) as stopped:
        run(made)
    assert stopped.value.code == STOPPED
    logged = metrics(made)
    run(made)
    assert metrics(made) == logged
    facts = CheckpointFacts.from_json(made.run_dir / "result.json")
    assert facts.tokens == logged[-1]["num_tokens"] > 0
    records = read_metrics(made.run_dir / "metrics.jsonl")
    assert [one["step"] for one in records if "reward_heldout" in one] == [0, 2]


def stop_after_first_step(program: ProgramConfig) -> None:
    """Sends SIGTERM to this process as soon as the run has logged a step."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not (program.run_dir / "metrics.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def test_incomplete_checkpoints_are_ignored(tmp_path: Path) -> None:
    from tts_assets.rlhf.trainer import COMPLETE, newest_checkpoint

    for number in (2, 10, 30):
        (tmp_path / f"checkpoint-{number}").mkdir()
    assert newest_checkpoint(tmp_path) is None
    for number in (2, 10):
        (tmp_path / f"checkpoint-{number}" / COMPLETE).touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_each_epoch_has_all_prompts_in_another_order() -> None:
    from tts_assets.rlhf.trainer import prompt_order

    order = prompt_order(prompts=7, count=20, seed=1)
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert list(order[:7]) != list(order[7:14])
    assert list(prompt_order(7, 9, seed=1)) == list(order[:9])


def test_seeds_differ_by_index_and_step() -> None:
    seeds = {completion_seed(s, t, p) for s in range(3) for t in range(10) for p in range(10)}
    assert len(seeds) == 300
    assert max(seeds) < 2**63


def test_completions_must_divide_into_the_processes(
    program: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_assets.rlhf import train

    recipe = program("run", prompts_per_step=3, generations=3).recipe
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="9 completions do not divide into 2 processes"):
        train.grpo_config(recipe, Run(tmp_path))


@pytest.mark.parametrize(
    ("devices", "remedy"),
    [("0", "gpus = 0, .* the policy itself, engine = { kind"), ("0,1", "at most 1 processes")],
)
def test_too_few_gpus_for_the_engine_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str, remedy: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(len(devices.split(","))))
    with pytest.raises(ConfigError, match=f"of this machine: .*{remedy}"):
        spare_devices(Run(tmp_path), VllmRollouts())
    shared = VllmRollouts(gpus=0, gpu_memory=0.3)
    assert spare_devices(Run(tmp_path), shared) == ["0"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "gpu_memory = 0.9 of it leaves too little: at most 0.6"),
    ],
)
def test_settings_that_cannot_share_a_gpu_are_rejected(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        VllmRollouts(gpus=0, **values)


def test_the_engine_may_share_the_trainers_gpu(program: Make) -> None:
    engine = {"kind": "vllm", "gpus": 0, "gpu_memory": 0.3}
    made = program("run", engine=engine)
    service = with_engine("tts_assets.rlhf.train", made, Shape(processes=1, gpus=1)).service
    assert service is not None and service.shares_gpu and service.shape.gpus == 0
    service = with_engine("tts_assets.rlhf.train", made, Shape(processes=1, gpus=0)).service
    assert service is not None and not service.shares_gpu


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, None),
        ({"clip_high": 0.28}, 0.28),
        ({"loss": "cispo"}, 5.0),
        ({"loss": "cispo", "clip_high": 3.0}, 3.0),
    ],
)
def test_trl_and_the_fingerprint_get_the_upper_clip(
    program: Make, tmp_path: Path, changes: dict[str, Any], bound: float | None
) -> None:
    """A recipe without the key has the fingerprint from before the key existed."""
    from tts_assets.rlhf import train

    recipe = program("run", **changes).recipe
    assert train.grpo_config(recipe, Run(tmp_path)).epsilon_high == bound
    assert recipe.identity().get("clip_high") == bound
    assert ("clip_high" in recipe.identity()) == (bound is not None)


def test_two_processes_have_the_rollouts_of_one(program: Make) -> None:
    one, two = program("one", steps=2), program("two", steps=2)
    run(one)
    assert run_by_two(two).returncode == 0
    assert metrics(two)[0]["reward"] == pytest.approx(metrics(one)[0]["reward"], abs=1e-6)
    assert CheckpointFacts.from_json(two.run_dir / "result.json").steps == 2


def test_two_processes_train_the_adapters_of_one(program: Make) -> None:
    one, two = (program(name, steps=2, **LORA) for name in ("one", "two"))
    run(one)
    made = run_by_two(two)
    assert made.returncode == 0, made.stderr
    values = [[record["reward"] for record in metrics(each)] for each in (one, two)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    ours, theirs = (load_file(each.run_dir / "result/model.safetensors") for each in (one, two))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_fsdp_trains_as_one_process(program: Make) -> None:
    """Two ranks with sharded weights and moments, restarted after the first of two steps."""
    one, two = (program(name, steps=2, beta=0.01, strategy="fsdp") for name in ("one", "two"))
    assert one.recipe.identity() == program("ddp", steps=2, beta=0.01).recipe.identity()
    run(one)  # a single rank trains the whole model
    for steps in (1, 2):
        recipe = two.recipe.model_copy(update={"steps": steps})
        (two.run_dir / "run.json").write_text(two.model_copy(update={"recipe": recipe}).to_json())
        made = run_by_two(two)
        assert made.returncode == 0, made.stderr
    rewards = [[row["reward"] for row in metrics(each)] for each in (one, two)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)
    ours, theirs = (load_file(each.run_dir / "result/model.safetensors") for each in (one, two))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


FAILS_ON_ONE_RANK = """
import os, pathlib
calls = 0
def steady(batch, flag):
    global calls
    calls += 1
    broken = calls == 3 and os.environ["RANK"] == "1" and pathlib.Path(flag).exists()
    return [float("nan") if broken else 1.0 for _ in batch]
"""


def test_a_reward_that_fails_on_one_rank_ends_all_ranks(
    program: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_on_one.py").write_text(FAILS_ON_ONE_RANK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    flag = tmp_path / "broken"
    flag.touch()
    reward = {"kind": "function", "call": "fails_on_one:steady", "options": {"flag": str(flag)}}
    heldout = {"fraction": 0}
    made = program("run", steps=4, rewards=[reward], save_every=1, heldout=heldout)
    failed = run_by_two(made)
    assert failed.returncode != 0 and "steady returned nan" in failed.stderr
    assert len(metrics(made)) == 2
    flag.unlink()
    again = run_by_two(made)
    assert again.returncode == 0 and "resuming after update 2 of 4" in again.stdout + again.stderr
    assert [record["step"] for record in metrics(made)] == [1, 2, 3, 4]


def run_by_two(program: RlhfProgram) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, "-m", "tts_assets.rlhf.train", str(program.run_dir / "run.json")],
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
