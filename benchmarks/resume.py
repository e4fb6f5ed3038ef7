"""Time to resume a run after step 100,000 and after step 10.

    OMP_NUM_THREADS=1 python benchmarks/resume.py

Trains ten steps of ``[sft.announcer]`` on the code arrays of ``make demo``. It then makes a second
run folder that is at step 100,000: the sample stream is advanced to that step, ``progress.json``
has its state, and ``metrics.jsonl`` has as many lines. (The weights are those of step 10; the time
to read them does not depend on their values.) Then both runs are resumed in turn, and killed when
the metrics of their first step are written. Prints a Markdown table.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.program import Run
from tts_assets.core.training import damage, saved, write_manifest
from tts_assets.settings import load_settings
from tts_assets.sft.checkpoint import PROGRESS, SftProgress
from tts_assets.sft.config import SftProgram
from tts_assets.sft.epochs import SampleStream
from tts_assets.sft.train import build_trainer

EARLY, LATE, REPEATS = 10, 100_000, 5


def program_in(folder: Path) -> SftProgram:
    """The program of the recipe in a run folder."""
    settings = load_settings()
    changes = {"steps": 2 * LATE, "sample_texts": 0, "eval_every": 2 * LATE, "save_every": 2 * LATE}
    recipe = settings.sft["announcer"].model_copy(update=changes)
    store = ArtifactStore(settings.storage)
    arrays = {name: store.current("code_arrays", name) for name in recipe.corpora}
    facts = next(iter(arrays.values())).facts
    return SftProgram(
        run_dir=folder,
        name="resume",
        recipe=recipe,
        arrays={name: handle.path for name, handle in arrays.items()},
        codec=facts.codec,
        sample_rate=facts.sample_rate,
        token_rate=facts.token_rate,
        codebook_size=facts.codebook_size,
    )


def train_early(program: SftProgram) -> SftProgress:
    """A run folder with a checkpoint at step 10; the progress at step 100,000."""
    with Run(program.run_dir) as run:
        trainer = build_trainer(run, program)
        for step in range(EARLY):
            trainer.train_step(step)
        trainer.checkpoints.save(trainer.strategy, trainer.progress)
        trainer.wait_for_saves()
        tokens, speech = trainer.progress.tokens, trainer.progress.speech_tokens
        place = trainer.progress.epoch, trainer.progress.offset
        stream = SampleStream(trainer.train_data, trainer.recipe, program.token_rate, *place)
        for _ in range(LATE - EARLY):
            batch = stream.batch()
            tokens += sum(trainer.train_data.length(sample.items) for sample in batch)
            codes = (trainer.train_data.code_counts[list(s.items)].sum() for s in batch)
            speech += sum(int(count) + 2 for count in codes)  # with start and end
    done = {"step": LATE, "tokens": tokens, "speech_tokens": speech}
    reached = {"epoch": stream.epoch, "offset": stream.offset}
    return trainer.progress.model_copy(update=reached | done)


def make_late(early: Path, late: Path, progress: SftProgress) -> None:
    """Make the run folder ``late``: the state of ``early`` at that step."""
    checkpoint = late / "checkpoints" / f"step-{LATE:07d}"
    shutil.copytree(saved(early / "checkpoints")[0], checkpoint)
    (checkpoint / PROGRESS).write_text(progress.to_json())
    write_manifest(checkpoint)
    assert damage(checkpoint) is None
    lines = [json.loads(line) for line in (early / "metrics.jsonl").read_text().splitlines()]
    with (late / "metrics.jsonl").open("w") as stream:
        for step in range(1, LATE + 1):
            stream.write(json.dumps(lines[step % EARLY] | {"step": step}) + "\n")


def seconds_to_first_step(program: SftProgram, after: int) -> float:
    """From the start of the process until the metrics of the first step are written."""
    path, metrics = program.run_dir / "run.json", program.run_dir / "metrics.jsonl"
    path.write_text(program.to_json())
    size = metrics.stat().st_size
    started = time.perf_counter()
    command = [sys.executable, "-m", "tts_assets.sft.train", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and metrics.stat().st_size == size:
        time.sleep(0.002)
    seconds = time.perf_counter() - started
    process.kill()
    _, errors = process.communicate()
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert last["step"] == after + 1 and f"resuming after step {after} of" in errors, errors
    with metrics.open("r+") as stream:
        stream.truncate(size)  # for the next time: killed right after its checkpoint
    return seconds


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}, the shortest of {REPEATS}\n")
    with tempfile.TemporaryDirectory() as root:
        runs = {EARLY: program_in(Path(root) / "early"), LATE: program_in(Path(root) / "late")}
        late = train_early(runs[EARLY])
        make_late(runs[EARLY].run_dir, runs[LATE].run_dir, late)
        times: dict[int, list[float]] = {EARLY: [], LATE: []}
        for _ in range(REPEATS):
            for step, program in runs.items():
                times[step].append(seconds_to_first_step(program, step))
    print("| resumed after step | epoch | s to its first step | median, s |\n|---|---|---|---|")
    for step, found in times.items():
        epoch = late.epoch if step == LATE else 0
        print(f"| {step} | {epoch} | {min(found):.2f} | {sorted(found)[REPEATS // 2]:.2f} |")
    print(f"\nLate / early: {min(times[LATE]) / min(times[EARLY]):.2f}.")


if __name__ == "__main__":
    main()
