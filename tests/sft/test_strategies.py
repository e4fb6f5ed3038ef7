"""Two processes on real clips, under each strategy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sft.conftest import CODEBOOK, program_values, speaking_folder
from tests.sft.test_train import REPOSITORY, losses, train, weights
from tts_assets.core.program import read_metrics
from tts_assets.core.training import saved
from tts_assets.serving.verify import compare_transformers
from tts_assets.sft.config import SftProgram
from tts_assets.speechlm.model import SpeechLM

STRATEGIES = ("ddp", "fsdp", "zero2", "zero3")
RECIPE = {
    "optimizer": {"lr": 3e-3, "clip": 0.3},  # gradients have norms of 1.7 to 2.5: each is clipped
    "code_dropout": 0.2,
    "dropout": 0.1,
    "export": "best",
    "eval_every": 2,
    "save_every": 3,
    # Rows of one to three samples: gradients are accumulated, and ranks have unequal shares.
    "batch_tokens": 2600,
    "micro_tokens": 800,
}
LORA = {"rank": 4, "alpha": 16}
GOLDEN = [5.940141, 5.888753, 5.648675, 5.497806, 5.341721, 5.292839]
GOLDEN_VALIDATION = 5.305808

pytestmark = pytest.mark.slow


def launch(path: Path) -> subprocess.CompletedProcess[str]:
    """``tests.support.two_ranks`` on two ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.support.two_ranks", str(path)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(arrays: Path, codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder a run, of six steps or of the last three of them."""
    root = tmp_path_factory.mktemp("strategies")
    entries: list[dict[str, Any]] = []

    def values(name: str, **changes: Any) -> dict[str, Any]:
        return program_values(root / name, arrays, **RECIPE | changes)

    def add(name: str, before: str | None = None, **changes: Any) -> None:
        start = str(root / before) if before else None
        entries.append({"program": values(name, **changes), "from": start})

    train(SftProgram.model_validate(values("one", dropout=0.0)))
    for name in STRATEGIES:
        add(name, strategy=name)
        add(f"{name}-resumed", before=name, strategy=name)
        add(f"{name}-from-one", before="one", strategy=name, dropout=0.0)
    for name in ("fsdp", "zero3"):
        add(f"{name}-recomputed", strategy=name, gradient_checkpointing=True)
    for name in ("ddp", "fsdp", "zero3"):
        add(f"{name}-bf16", strategy=name, precision="bf16")
    train(SftProgram.model_validate(values("one-text", dropout=0.0, text_loss_weight=0.4)))
    for name in STRATEGIES:
        add(f"{name}-text", strategy=name, dropout=0.0, text_loss_weight=0.4)
    base = {"hub": str(speaking_folder(root / "base"))}
    train(SftProgram.model_validate(values("one-lora", dropout=0.0, base=base, lora=LORA)))
    for name in STRATEGIES:
        adapted = {"strategy": name, "base": base, "lora": LORA}
        add(f"{name}-lora", **adapted, dropout=0.0)
        add(f"{name}-lora-from-one", before="one-lora", **adapted, dropout=0.0)
    for name in ("ddp", "fsdp", "zero3"):
        add(f"{name}-sampled", strategy=name, sample_texts=1, sample_every=4)
        entries[-1]["program"]["codec_folder"] = str(codec)
    add("unclipped", optimizer={"lr": 3e-3, "clip": 1e9})
    path = root / "runs.json"
    path.write_text(json.dumps(entries))
    done = launch(path)
    assert done.returncode == 0, done.stderr[-6000:]
    return root


def curve(runs: Path, name: str) -> list[float]:
    return losses(runs / name)


@pytest.mark.parametrize("name", STRATEGIES)
def test_golden_losses(runs: Path, name: str) -> None:
    assert curve(runs, name) == pytest.approx(GOLDEN, abs=1e-3)
    assert curve(runs, name) == pytest.approx(curve(runs, "ddp"), abs=1e-4)
    last = [r for r in read_metrics(runs / name / "metrics.jsonl") if "val_loss" in r][-1]
    assert last["val_loss"] == pytest.approx(GOLDEN_VALIDATION, abs=1e-3)


@pytest.mark.parametrize("name", STRATEGIES)
def test_signs_of_health_are_those_of_one_rank(runs: Path, name: str) -> None:
    """One rank without dropout, to compare with two ranks from its checkpoint on."""
    told, one = (read_metrics(runs / n / "metrics.jsonl") for n in (f"{name}-from-one", "one"))
    names = ("val_accuracy", "val_end_found", "val_end_false", "val_entropy", "weight_norm")
    found, expected = told[-1], one[-1]
    assert {n: found[n] for n in names} == pytest.approx({n: expected[n] for n in names}, abs=2e-3)
    assert found["update_ratio"] == pytest.approx(expected["update_ratio"], rel=1e-2)


@pytest.mark.parametrize("name", STRATEGIES)
def test_gradients_are_clipped(runs: Path, name: str) -> None:
    def norms(run: str) -> list[float]:
        records = read_metrics(runs / run / "metrics.jsonl")
        return [r["gradient_norm"] for r in records if "gradient_norm" in r]

    assert norms(name) == pytest.approx(norms("ddp"), rel=1e-3)
    assert min(norms(name)) > 0.3
    # Adam hides a constant factor, and differs by 0.004 where each step has its own.
    assert abs(curve(runs, name)[-1] - curve(runs, "unclipped")[-1]) > 0.002


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_is_bit_equal(runs: Path, name: str) -> None:
    assert curve(runs, f"{name}-resumed") == curve(runs, name)[3:]
    expected = weights(runs / name)
    for key, value in weights(runs / f"{name}-resumed").items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_rank_continues_as_two(runs: Path, name: str) -> None:
    """Under another strategy, too; a global batch is the same on any number of ranks."""
    resumed, one = (read_metrics(runs / n / "metrics.jsonl") for n in (f"{name}-from-one", "one"))
    tokens = [r["tokens"] for r in one if "tokens" in r]
    assert [r["tokens"] for r in resumed if "tokens" in r] == tokens[3:]
    assert curve(runs, f"{name}-from-one") == pytest.approx(curve(runs, "one")[3:], abs=1e-4)


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_ranks_continue_as_one(runs: Path, name: str, tmp_path: Path) -> None:
    """The newest checkpoint of the two is damaged: one rank goes on from the one before."""
    folder = runs / f"{name}-from-one"
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(folder / "metrics.jsonl", tmp_path)
    next(saved(tmp_path / "checkpoints")[-1].glob("*.safetensors")).unlink()
    entries = json.loads((runs / "runs.json").read_text())
    values = next(e["program"] for e in entries if e["program"]["run_dir"] == str(folder))
    train(SftProgram.model_validate(values | {"run_dir": str(tmp_path)}))
    assert losses(tmp_path) == pytest.approx(losses(folder), abs=1e-4)
    expected = weights(folder)
    for key, value in weights(tmp_path).items():
        assert torch.allclose(value, expected[key], atol=1e-4), key


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero3"])
def test_samples_during_training_change_no_weights(runs: Path, name: str) -> None:
    assert curve(runs, f"{name}-sampled") == curve(runs, name)
    expected = weights(runs / name)
    for key, value in weights(runs / f"{name}-sampled").items():
        assert torch.equal(value, expected[key]), key
    folder = runs / f"{name}-sampled" / "result"
    clips = {path.name for path in (folder / "listening").glob("*.flac")}
    assert clips == {"recording-0.flac", "step-0000004-0.flac", "step-0000006-0.flac"}
    assert (folder / "listening.ipynb").is_file()


@pytest.mark.parametrize("name", ["fsdp-recomputed", "zero3-recomputed"])
def test_recomputed_activations_change_nothing(runs: Path, name: str) -> None:
    assert curve(runs, name) == pytest.approx(curve(runs, "ddp"), abs=1e-4)


@pytest.mark.parametrize("name", ["fsdp", "zero3"])
def test_bfloat16_is_that_of_ddp(runs: Path, name: str) -> None:
    assert curve(runs, f"{name}-bf16") == pytest.approx(curve(runs, "ddp-bf16"), abs=1e-3)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_text_loss_is_that_of_one_rank(runs: Path, name: str) -> None:
    for metric in ("loss", "text_loss", "val_text_loss"):
        both = (read_metrics(runs / run / "metrics.jsonl") for run in (f"{name}-text", "one-text"))
        ours, theirs = ([r[metric] for r in records if metric in r] for records in both)
        assert len(ours) in (3, 6) and ours == pytest.approx(theirs, abs=1e-4), metric


@pytest.mark.parametrize("name", STRATEGIES)
def test_adapters_are_those_of_one_rank(runs: Path, name: str) -> None:
    one = curve(runs, "one-lora")
    assert curve(runs, f"{name}-lora") == pytest.approx(one, abs=1e-4)
    assert curve(runs, f"{name}-lora-from-one") == pytest.approx(one[3:], abs=1e-4)
    expected = weights(runs / "one-lora")
    for run in (f"{name}-lora", f"{name}-lora-from-one"):
        published = weights(runs / run)
        assert published.keys() == expected.keys()
        for key, value in published.items():
            assert torch.allclose(value, expected[key], atol=1e-4), key


@pytest.mark.parametrize("adapted", ["", "-lora"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_published_becomes_a_serving_model(
    runs: Path, name: str, adapted: str, tmp_path: Path
) -> None:
    """The blocking check of ``serving/<recipe>`` holds: shards gathered, adapters merged."""
    published = runs / f"{name}{adapted}" / "result"
    SpeechLM.load(published, CODEBOOK).save(tmp_path / "serving")
    agreement = compare_transformers(
        published, tmp_path / "serving", CODEBOOK, ["one two", "three"], tokens=16
    )
    assert agreement.holds and agreement.tokens == 32, agreement
    known = {key.split(".")[0] for key in weights(runs / f"{name}{adapted}")}
    assert known <= {"model", "lm_head"}


def test_a_failing_rank_ends_the_others(arrays: Path, tmp_path: Path) -> None:
    """Rank 0 waits for weights that never come; the traceback of rank 1 is the first."""
    program = program_values(tmp_path / "run", arrays, **RECIPE, strategy="fsdp")
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([{"program": program, "fails": 1}]))
    assert launch(path).returncode != 0
    ended = time.time()
    first = sorted((tmp_path / "run").glob("failure-*.txt"))[0]
    assert "ArithmeticError: rank 1 was told to fail" in first.read_text()
    assert ended - first.stat().st_mtime < 30
