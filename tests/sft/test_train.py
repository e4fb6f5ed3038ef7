from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.sft.conftest import CODEBOOK, program, program_values
from tts_assets.core.artifacts import ArtifactStore, Build, Checkpoint, CheckpointFacts, sha256_file
from tts_assets.core.program import STOPPED, Run, read_metrics, truncate_metrics
from tts_assets.core.training import saved, step_of
from tts_assets.sft.checkpoint import CheckpointError, SftProgress
from tts_assets.sft.config import SftProgram
from tts_assets.sft.describe import describe_recipe, describe_training
from tts_assets.sft.epochs import SampleStream, TrainingSample
from tts_assets.sft.packing import Packed, pack
from tts_assets.sft.train import build_trainer, main
from tts_assets.speechlm.model import SpeechLM

REPOSITORY = Path(__file__).resolve().parents[2]


def train(config: SftProgram) -> None:
    """Run the program in this process, from the file it would be launched with."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    path = config.run_dir / "run.json"
    path.write_text(config.to_json())
    main([str(path)])


def losses(run_dir: Path) -> list[float]:
    return [r["loss"] for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "result" / "model.safetensors")


def stop_after(steps: int, config: SftProgram) -> None:
    """Train ``steps`` steps and request a stop, as SIGTERM does, in the next one."""
    with Run(config.run_dir) as run:
        trainer = build_trainer(run, config)
        for step in range(steps):
            validates = (step + 1) % config.recipe.eval_every == 0
            if validates:
                trainer.diagnostics.remember()
            trainer.train_step(step)
            if validates:
                trainer.validate()
        run.stop_requested = True
        with pytest.raises(SystemExit) as left:
            trainer.train()
    assert left.value.code == STOPPED


def assert_bit_equal(run_dir: Path, whole: SftProgram) -> None:
    """The losses of every step, and the published weights."""
    assert losses(run_dir) == losses(whole.run_dir)
    expected = weights(whole.run_dir)
    for name, value in weights(run_dir).items():
        assert torch.equal(value, expected[name]), name


def published(run_dir: Path) -> dict[str, str]:
    """The digest of each file of the result."""
    files = [path for path in (run_dir / "result").rglob("*") if path.is_file()]
    return {str(path.relative_to(run_dir / "result")): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def whole_run(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> SftProgram:
    """Six steps without interruption on one rank."""
    config = program(
        tmp_path_factory.mktemp("whole"), arrays, code_dropout=0.2, dropout=0.1, save_every=3
    )
    train(config)
    return config


def test_the_result_is_a_checkpoint(whole_run: SftProgram) -> None:
    facts = json.loads((whole_run.run_dir / "result.json").read_text())
    typed = CheckpointFacts.parse(facts, "result.json")
    assert typed.steps == 6 and typed.train_loss < losses(whole_run.run_dir)[0]
    folder = whole_run.run_dir / "result"
    lm = SpeechLM.load(folder, CODEBOOK)
    assert lm.parameters == typed.parameters and lm.vocabulary.digest == typed.vocabulary
    assert {"config.json", "tokenizer.json", "generation_config.json", "vocabulary.json"} <= {
        file.name for file in folder.iterdir()
    }
    records = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in records if "val_loss" in r] == [3, 6]
    assert typed.tokens == sum(r["tokens"] for r in records if "tokens" in r)
    line = json.loads((whole_run.run_dir / "progress.jsonl").read_text().splitlines()[-1])
    assert line["done"] == 6 and {*line["metrics"]} == {"loss", "val_loss", "tokens_per_second"}
    assert line["metrics"]["val_loss"] == records[-1]["val_loss"]


@pytest.mark.parametrize("texts", [0, 2])
def test_without_steps_the_base_is_published(
    whole_run: SftProgram, arrays: Path, codec: Path, tmp_path: Path, texts: int
) -> None:
    base = whole_run.run_dir / "result"
    changes = {"base": {"hub": str(base)}, "export": "best", "guards": {"forgetting": 0.1}}
    values = program_values(tmp_path, arrays, steps=0, sample_texts=texts, **changes)
    train(SftProgram.model_validate(values | {"codec_folder": str(codec)}))
    for name, value in weights(whole_run.run_dir).items():
        assert torch.equal(weights(tmp_path)[name], value), name
    typed = CheckpointFacts.from_json(tmp_path / "result.json")
    assert (typed.steps, typed.tokens, typed.train_loss) == (0, 0, None)
    last = read_metrics(base / "metrics.jsonl")[-1]
    assert typed.val_loss == pytest.approx(last["val_loss"], abs=1e-4)
    assert [r["step"] for r in read_metrics(tmp_path / "result" / "metrics.jsonl")] == [0]
    store, build = ArtifactStore(tmp_path / "storage"), Build("sft/base", {}, {}, "1")
    folder = store.work_folder(build) / "result"
    shutil.copytree(tmp_path / "result", folder)
    checkpoint = store.publish(Checkpoint, build, folder, typed)
    assert isinstance(checkpoint, Checkpoint)
    recipe = SftProgram.from_json(tmp_path / "run.json").recipe
    assert describe_training(checkpoint, recipe)["fit"].startswith("not trained")
    assert "not trained" in describe_recipe(recipe)


def test_a_resumed_run_has_bit_equal_weights(whole_run: SftProgram, tmp_path: Path) -> None:
    config = whole_run.model_copy(update={"run_dir": tmp_path})
    stop_after(4, config)
    assert [folder.name for folder in saved(tmp_path / "checkpoints")] == ["step-0000005"]
    assert not (tmp_path / "result.json").exists()
    train(config)
    assert_bit_equal(tmp_path, whole_run)
    assert published(tmp_path) == published(whole_run.run_dir), "the clock is in it"
    assert CheckpointFacts.from_json(tmp_path / "result.json").tokens_per_second > 0


def test_the_throughput_counts_the_wait_for_batches(
    whole_run: SftProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow stream of samples lengthens the steps, except by the time that a step computes."""
    batch, seconds = SampleStream.batch, 0.5

    def slow(self: SampleStream) -> Any:
        time.sleep(seconds)
        return batch(self)

    monkeypatch.setattr(SampleStream, "batch", slow)
    train(whole_run.model_copy(update={"run_dir": tmp_path}))
    assert_bit_equal(tmp_path, whole_run)
    steps = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "step_seconds" in r]
    assert len(steps) == 6 and steps[0]["data_seconds"] >= seconds
    for step in steps:
        assert 0 <= step["data_seconds"] < step["step_seconds"]
        assert step["tokens_per_second"] == pytest.approx(
            step["tokens"] / step["step_seconds"], 0.01
        )
    last = [steps[i] for i in (1, 4)]  # no validation comes before them, in which a batch is made
    for step in last:
        computing = step["step_seconds"] - step["data_seconds"]
        assert step["data_seconds"] == pytest.approx(seconds - computing, abs=0.2)


def test_best_weights_by_another_metric_are_another_run(
    whole_run: SftProgram, arrays: Path, tmp_path: Path
) -> None:
    """The best loss so far is that of another metric, which the new one may never reach."""
    stop_after(4, whole_run.model_copy(update={"run_dir": tmp_path}))
    changes = {"code_dropout": 0.2, "dropout": 0.1, "save_every": 3}
    other = program(tmp_path, arrays, **changes, checkpoints={"best": "val_loss/asterisk"})
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        train(other)
    train(program(tmp_path, arrays, **changes, checkpoints={"keep_last": 9}))
    assert_bit_equal(tmp_path, whole_run)


def test_a_killed_run_resumes_from_its_last_checkpoint(
    whole_run: SftProgram, arrays: Path, tmp_path: Path
) -> None:
    """Steps after the checkpoint are repeated. Their metrics are not written twice."""
    config = whole_run.model_copy(update={"run_dir": tmp_path})
    with Run(tmp_path) as run:
        trainer = build_trainer(run, config)
        for step in range(5):
            trainer.train_step(step)
            if step == 2:
                trainer.validate()
                trainer.checkpoints.save(trainer.strategy, trainer.progress)
    (tmp_path / "checkpoints" / ".step-0000005.tmp").mkdir()  # a save that was cut short
    train(config)
    assert_bit_equal(tmp_path, whole_run)


def test_weights_with_a_nan_validation_loss_are_never_best(arrays: Path, tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        trainer = build_trainer(run, program(tmp_path, arrays))
        trainer.train_step(0)
        with torch.no_grad():
            trainer.lm.model.get_output_embeddings().weight.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=r"val_loss is nan.* Lower the learning rate"):
            trainer.validate()
    assert trainer.progress.best_loss is None


@pytest.mark.slow
def test_two_ranks_give_the_curve_of_one(arrays: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        config = program(tmp_path / str(processes), arrays, code_dropout=0.2)
        config.run_dir.mkdir()
        path = config.run_dir / "run.json"
        path.write_text(config.to_json())
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        subprocess.run(
            [sys.executable, *launch, "-m", "tts_assets.sft.train", str(path)],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
        )
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == 6
    assert np.allclose(one, two, atol=1e-4), (one, two)
    validation = [read_metrics(tmp_path / n / "metrics.jsonl")[-1]["val_loss"] for n in "12"]
    assert validation[0] == pytest.approx(validation[1], abs=1e-4)


@pytest.mark.slow
def test_sigterm_saves_and_asks_to_be_run_again(arrays: Path, tmp_path: Path) -> None:
    config = program(tmp_path, arrays, steps=100_000)
    path = tmp_path / "run.json"
    path.write_text(config.to_json())
    process = subprocess.Popen(
        [sys.executable, "-m", "tts_assets.sft.train", str(path)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and len(losses(tmp_path)) >= 2):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == STOPPED, errors.decode()
    done = len(losses(tmp_path))
    assert [f.name for f in saved(tmp_path / "checkpoints")] == [f"step-{done:07d}"]


def test_packed_and_single_samples_have_equal_losses(arrays: Path, tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        trainer = build_trainer(run, program(tmp_path, arrays))
    samples = [TrainingSample(u, 0, 0) for u in [(0,), (1, 2), (3,), (4, 5, 6)]]
    encoded = [trainer.train_data.encode(sample) for sample in samples]
    packed, each = trainer.strategy.evaluate(pack(encoded))
    alone = [float(trainer.strategy.evaluate(pack([sample]))[0]) for sample in encoded]
    backwards, _ = trainer.strategy.evaluate(pack(encoded[::-1]))
    with torch.no_grad():
        plain = [plain_loss(trainer.lm, pack([sample])) for sample in encoded]
    assert float(each.sum()) == pytest.approx(float(packed), rel=1e-6)
    packed, backwards = float(packed), float(backwards)
    assert packed == pytest.approx(sum(alone), rel=1e-6)
    assert packed == pytest.approx(backwards, rel=1e-6)
    assert alone == pytest.approx(plain, rel=1e-5)


def plain_loss(lm: SpeechLM, row: Packed) -> float:
    """One sample through transformers' own attention and loss."""
    lm.model.set_attn_implementation("sdpa")
    logits = lm.model(row.input_ids).logits[0]
    lm.model.set_attn_implementation("segments")
    picked = logits[row.where].log_softmax(-1)
    return -float(picked.gather(1, row.targets[:, None]).sum())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_lowers_the_loss(arrays: Path, tmp_path: Path, name: str, precision: str) -> None:
    optimizer = {"name": name, "lr": 5e-3, "warmup_share": 0.0}
    config = program(
        tmp_path, arrays, optimizer=optimizer, precision=precision, steps=20, eval_every=20
    )
    train(config)
    curve = losses(tmp_path)
    assert np.mean(curve[-3:]) < curve[0] - 0.8, curve


def test_the_best_weights_are_published(arrays: Path, tmp_path: Path) -> None:
    """The weights become bad after a good start."""
    optimizer = {"lr": 0.003, "warmup_share": 0.0, "schedule": "constant"}
    config = program(tmp_path, arrays, optimizer=optimizer, export="best", steps=4, eval_every=2)
    with Run(tmp_path) as run:
        trainer = build_trainer(run, config)
        trainer.train_step(0)
        trainer.train_step(1)
        trainer.validate()
        good = {name: p.clone() for name, p in trainer.lm.model.state_dict().items()}
        with torch.no_grad():
            for parameter in trainer.lm.model.parameters():
                parameter += torch.randn_like(parameter)
        trainer.validate()
        trainer.checkpoints.save(trainer.strategy, trainer.progress)
        trainer.finish()
    assert trainer.progress.best_step == 2
    published = weights(tmp_path)
    assert all(torch.equal(value, good[name]) for name, value in published.items())


def test_the_error_of_a_nan_loss_names_the_utterances(arrays: Path, tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        trainer = build_trainer(run, program(tmp_path, arrays))
        with torch.no_grad():
            trainer.lm.model.get_input_embeddings().weight.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=r"step 1 is nan.*\.g722"):
            trainer.train_step(0)


def test_a_loss_that_explodes_stops_before_the_step(arrays: Path, tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        trainer = build_trainer(run, program(tmp_path, arrays))
        with torch.no_grad():
            trainer.lm.model.get_input_embeddings().weight.mul_(1000)
        before = {name: p.clone() for name, p in trainer.lm.model.state_dict().items()}
        with pytest.raises(FloatingPointError, match=r"the loss of step 1 is \d+.*\.g722"):
            trainer.train_step(0)
    after = trainer.lm.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("harm", ["truncated", "changed", "missing"])
def test_a_damaged_checkpoint_is_passed_over(
    whole_run: SftProgram, tmp_path: Path, capfd: pytest.CaptureFixture[str], harm: str
) -> None:
    config = whole_run.model_copy(update={"run_dir": tmp_path})
    shutil.copytree(whole_run.run_dir / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(whole_run.run_dir / "metrics.jsonl", tmp_path)
    older, newest = saved(tmp_path / "checkpoints")
    tensors = next(newest.glob("*.safetensors"))
    content = tensors.read_bytes()
    if harm == "missing":
        tensors.unlink()
    else:
        kept = content[:-1000] if harm == "truncated" else content[:-1] + bytes([content[-1] ^ 1])
        tensors.write_bytes(kept)
    with Run(tmp_path) as run:
        trainer = build_trainer(run, config)
        trainer.resume()
    assert trainer.progress.step == 3
    assert saved(tmp_path / "checkpoints") == [older]
    assert (
        f"step-0000006 is passed over and removed: {tensors.name} is {harm}"
        in capfd.readouterr().err
    )
    assert losses(tmp_path) == losses(whole_run.run_dir)[:3]


def test_a_checkpoint_that_cannot_be_written_stops_the_run(arrays: Path, tmp_path: Path) -> None:
    """It is written in the background. One of the next steps raises its error."""
    with Run(tmp_path) as run:
        trainer = build_trainer(run, program(tmp_path, arrays, save_every=1))
        run.checkpoint_dir.rmdir()
        run.checkpoint_dir.write_text("a file in the way")
        with pytest.raises(CheckpointError, match="step-0000001 could not be written"):
            trainer.train()
    assert trainer.progress.step < 6


def test_rotation_keeps_the_newest_and_every_kth(arrays: Path, tmp_path: Path) -> None:
    rotation = {"keep_last": 1, "keep_every": 4}
    config = program(
        tmp_path, arrays, checkpoints=rotation, save_every=2, eval_every=2, export="best"
    )
    train(config)
    folder = tmp_path / "checkpoints"
    assert [step_of(path) for path in saved(folder)] == [4, 6]
    best = {SftProgress.from_json(path / "progress.json").best_step for path in saved(folder)}
    assert {step_of(path) for path in folder.glob("best-*")} == best


def test_losses_are_logged_by_source(arrays: Path, tmp_path: Path) -> None:
    values = program_values(tmp_path, arrays, corpora={"asterisk": 1.0, "again": 0.5}, steps=1)
    values["arrays"]["again"] = str(arrays)
    train(SftProgram.model_validate(values))
    step, validation = read_metrics(tmp_path / "metrics.jsonl")
    assert min(step["loss/asterisk"], step["loss/again"]) <= step["loss"]
    assert step["loss"] <= max(step["loss/asterisk"], step["loss/again"])
    assert validation["val_loss/again"] == pytest.approx(validation["val_loss"], abs=1e-5)
    assert 0 <= step["padding_share"] < 0.2 and step["memory_gb"] > 0 and step["tflops"] > 0


def test_gradient_checkpointing_gives_the_same_weights(
    whole_run: SftProgram, arrays: Path, tmp_path: Path
) -> None:
    config = program(tmp_path, arrays, code_dropout=0.2, dropout=0.1, gradient_checkpointing=True)
    train(config)
    assert losses(tmp_path) == losses(whole_run.run_dir)


def test_a_dry_run_reports_and_changes_nothing(
    arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(program(tmp_path, arrays, max_seq_len=300).to_json())
    main(["--dry-run", str(path)])
    reported = json.loads(capsys.readouterr().out)
    assert reported == json.loads((tmp_path / "dry_run.json").read_text())
    assert reported["train_samples_dropped"] > 0 and reported["tokens_per_step"] <= 1500
    assert reported["parameters"] > 0 and reported["loss"] == pytest.approx(np.log(448), abs=1.5)
    assert not (tmp_path / "metrics.jsonl").exists() and not saved(tmp_path / "checkpoints")


def test_metrics_are_cut_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 3}) + "\n" for step in range(1, 5001)]
    path.write_text("".join(lines) + '{"step": 5001, "lo')  # killed while it wrote
    for last in (5000, 4999, 17, 0):
        truncate_metrics(path, last)
        assert path.read_text() == "".join(lines[:last])


def test_training_starts_from_another_recipe(
    whole_run: SftProgram, arrays: Path, tmp_path: Path
) -> None:
    base_folder = whole_run.run_dir / "result"
    values = program_values(tmp_path, arrays, base={"recipe": "first"}, steps=2, eval_every=2)
    config = SftProgram.model_validate(values | {"base_checkpoint": str(base_folder)})
    train(config)
    assert losses(tmp_path)[0] == pytest.approx(losses(whole_run.run_dir)[-1], abs=0.3)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 2


def test_a_fraction_of_the_earlier_data_prevents_forgetting(
    whole_run: SftProgram, arrays: Path, tmp_path: Path
) -> None:
    """The new corpus is the old one with inverted codes."""
    reversed_arrays = tmp_path / "new"
    shutil.copytree(arrays, reversed_arrays)
    for split in ("train", "val"):
        path = reversed_arrays / f"{split}_codes.npy"
        np.save(path, CODEBOOK - 1 - np.load(path))
    found = {}
    for kept in (0.001, 0.25):
        values = program_values(
            tmp_path / str(kept),
            arrays,
            base={"recipe": "first"},
            corpora={"new": 1.0, "old": kept},
            steps=25,
            eval_every=25,
        )
        values["arrays"] = {"new": str(reversed_arrays), "old": str(arrays)}
        values["base_checkpoint"] = str(whole_run.run_dir / "result")
        train(SftProgram.model_validate(values))
        found[kept] = read_metrics(tmp_path / str(kept) / "metrics.jsonl")[-1]
    assert found[0.25]["val_loss/old"] < found[0.001]["val_loss/old"] - 0.3
    assert found[0.25]["val_loss/new"] < found[0.001]["val_loss/new"] + 0.2
