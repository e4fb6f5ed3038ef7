"""The evaluation program: same bytes on any number of ranks, and after an interruption."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.speaking import Speaking
from tts_assets.evaluation.config import EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.evaluate import Record, latency, main
from tts_assets.evaluation.metric_runner import Batch, ModelSource
from tts_assets.evaluation.recipes import reference_clips
from tts_assets.evaluation.results import read_samples
from tts_assets.evaluation.suite import SuiteText, write_suite
from tts_assets.serving.synthesis import Synthesizer

TEXTS = ("one two", "thank you", "nobody is here")


def program(run_dir: Path, speaking: Speaking) -> EvaluationProgram:
    run_dir.mkdir(parents=True)
    suite = run_dir.parent / "suite.jsonl"
    texts = [SuiteText(id=f"t{n}", category="short", text=text) for n, text in enumerate(TEXTS)]
    write_suite(suite, texts)
    config = EvaluationProgram(
        run_dir=run_dir,
        name="tiny",
        evaluation=EvaluationConfig(suite=suite, seeds=(1, 2), batch_size=1, window_seconds=5),
        serving_model=speaking.serving.path,
        suite=suite,
        references=reference_clips({"clips": speaking.arrays}, 2),
    )
    (run_dir / "run.json").write_text(config.to_json())
    return config


def launch(config: EvaluationProgram, ranks: int) -> None:
    module = "tts_assets.evaluation.evaluate"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={ranks}", "-m", module]
    subprocess.run([*command, str(config.run_dir / "run.json")], check=True, timeout=600)


def result_bytes(config: EvaluationProgram) -> dict[str, bytes]:
    folder = config.run_dir / "result"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_the_latency_is_the_time_until_the_first_audio_of_a_streamed_text(
    speaking: Speaking,
) -> None:
    source = ModelSource(Synthesizer.open(speaking.serving.path, device="cpu"))
    text = SuiteText(id="t", category="short", text=TEXTS[1], language="en")
    seconds = source.first_audio(Batch([text], seeds=(1,)))
    assert seconds is not None and seconds > 0
    records: list[Record] = [{"first_audio": 1.0}, {"first_audio": 3.0}, {"first_audio": None}, {}]
    found = latency(records)
    assert found["first_audio_seconds"] == 2.0
    assert (
        1.0 <= found["first_audio_seconds_low"] <= 2.0 <= found["first_audio_seconds_high"] <= 3.0
    )
    assert latency(records[2:]) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_ranks_threads_and_interruptions_change_no_bytes(
    speaking: Speaking, tmp_path: Path
) -> None:
    """Each of the two ranks of the second run has one thread."""
    alone = program(tmp_path / "alone", speaking)
    main([str(alone.run_dir / "run.json")])
    expected = result_bytes(alone)
    assert {"report.html", "report.json", "samples.jsonl", "listening.ipynb"} <= set(expected)
    samples = read_samples(alone.run_dir / "result")
    asked = [(f"t{n}", seed) for n in range(len(TEXTS)) for seed in (1, 2)]
    assert [(sample.id, sample.seed) for sample in samples] == asked
    facts = json.loads((alone.run_dir / "result.json").read_text())
    assert facts["texts"] == len(TEXTS)
    assert set(facts["wer_by_category"]) == {"short"}

    pair = program(tmp_path / "pair", speaking)
    shutil.copytree(alone.run_dir / "checkpoints", pair.run_dir / "checkpoints")
    shutil.copytree(alone.run_dir / "result" / "audio", pair.run_dir / "result" / "audio")
    for index in (1, 2):  # as if stopped after the first batch
        (pair.run_dir / "checkpoints" / f"batch-{index:04d}.json").unlink()
    launch(pair, ranks=2)
    for one, other in zip(read_samples(pair.run_dir / "result"), samples, strict=True):
        assert one == other
    assert result_bytes(pair) == expected
