"""WER of a codec's resynthesis over its training time, on the demo corpus.

    python benchmarks/codec_training.py

trains the recorded recipe (profile ``codec_demo``) from random weights. With ``--minutes 30`` the
number of steps is chosen to fit into the time, from the speed of a few steps with and without
discriminators; the learning rate schedule has the same length. At several points the averaged
weights resynthesize held-out clips, and the WER of Whisper tiny.en is reported; this evaluation
does not count as training time. Every clip is transcribed several times, each time starting a
fraction of a code later: single transcriptions of these 135 words by the same codec have a standard
deviation of 2.4 points. The curve is written to ``benchmarks/codec_training-DATE.md``. After an
interruption the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tts_assets.audio_models.transcription import Transcriber
from tts_assets.audio_models.wer import corpus_wer, match
from tts_assets.codec.backends import CompactBackend
from tts_assets.codec.config import CodecProgram, CodecRecipe
from tts_assets.codec.model import Codec
from tts_assets.codec.train import CodecTrainer, initial_codec, training_audio
from tts_assets.codec.xcodec2 import HOP, SAMPLE_RATE
from tts_assets.core.accounting import ValidationSplit, is_validation
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.audio import Wave, measure, read_wave
from tts_assets.core.program import Run
from tts_assets.corpora.samples import Sample, write_samples
from tts_assets.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples/corpora/asterisk_en"
SPLIT = ValidationSplit(fraction=0.06, salt="1")
TIMED_STEPS = 6  # of each stage, after as many warm-up steps
POINTS = 10  # of the curve
TRANSCRIPTIONS = 4  # of a clip, during the training
LAST_TRANSCRIPTIONS = 16  # of a clip, at the end


@cache
def demo_samples() -> list[Sample]:
    """The demo's ``filtered_samples``: clips that are not too long and have a transcript."""
    longest = load_settings(profile="codec_demo").filters.max_duration
    rows = [json.loads(line) for line in (CORPUS / "samples.jsonl").read_text().splitlines()]
    found = [
        Sample(
            id=sha256_file(CORPUS / row["wav_path"])[:16],
            wav_path=str(CORPUS / row["wav_path"]),
            transcript=row["transcript"],
            duration=measure(CORPUS / row["wav_path"]).frames / SAMPLE_RATE,
        )
        for row in rows
        if row["transcript"] and not set(row["transcript"]) & set("()[]")
    ]
    return sorted((s for s in found if s.duration <= longest), key=lambda sample: sample.id)


def recorded_recipe() -> CodecRecipe:
    """The recipe of the vendored codec."""
    recipe = load_settings(profile="codec_demo").codec.train
    assert recipe is not None
    return recipe


def write_program(folder: Path, recipe: CodecRecipe) -> CodecProgram:
    """Write the ``run.json`` of a training on the demo corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / "kept.jsonl"
    write_samples(samples, demo_samples())
    program = CodecProgram(
        run_dir=folder, recipe=recipe, samples={"asterisk_en": samples}, validation=SPLIT
    )
    (folder / "run.json").write_text(program.to_json())
    return program


class AsrEvaluator:
    """Computes the WER of Whisper on held-out clips, as recorded and through a codec."""

    def __init__(self, clips: int) -> None:
        held_out = [s for s in demo_samples() if is_validation(s.id, SPLIT) and s.duration <= 12]
        self.samples = held_out[:clips]
        self.waves = [read_wave(Path(s.wav_path), SAMPLE_RATE) for s in self.samples]
        self.transcriber = Transcriber(beam_size=1)

    def wer(
        self, made: Callable[[Sequence[Wave]], Sequence[Wave]], repeats: int = TRANSCRIPTIONS
    ) -> float:
        """The WER of ``made(waves)``, over ``repeats`` transcriptions of each clip."""
        found = []
        for start in range(0, HOP, HOP // repeats):
            waves = made([wave[start:] for wave in self.waves])
            transcripts = self.transcriber([(wave, SAMPLE_RATE) for wave in waves])
            pairs = zip(self.samples, transcripts, strict=True)
            found += [match(sample.transcript, text) for sample, text in pairs]
        return corpus_wer(found)

    def original(self, repeats: int = TRANSCRIPTIONS) -> float:
        return self.wer(lambda waves: waves, repeats)

    def through(self, codec: Codec, repeats: int = TRANSCRIPTIONS) -> float:
        return self.wer(lambda waves: codec.decode(codec.encode(waves)), repeats)


class EvaluatedTrainer(CodecTrainer):
    """Adds the WER to each validation, and the training time to each step."""

    evaluator: AsrEvaluator | None  # of rank 0
    seconds = 0.0

    def train_step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        report = super().train_step(step)
        self.seconds += time.perf_counter() - started
        return report | {"seconds": round(self.seconds, 3)}

    def validate(self) -> dict[str, float]:
        report = super().validate()
        if self.evaluator is None:
            return report
        codec = Codec(CompactBackend(self.average), str(self.run.device))
        wer = round(self.evaluator.through(codec), 4)
        self.run.note(f"step {self.step}: {self.seconds / 60:.1f} min, WER {wer:.1%}")
        return report | {"wer": wer}


def seconds_a_step(folder: Path, recipe: CodecRecipe, processes: int) -> float:
    """The mean over the schedule, from a few steps of each stage."""
    adversarial = recipe.adversarial and recipe.adversarial.model_copy(
        update={"start": 0.5 / TIMED_STEPS, "warmup": 1}  # from the second step on
    )
    found = []
    for name, stage in {"spectral": None, "adversarial": adversarial}.items():
        timing = folder / f"timing-{name}"
        short = {"steps": 2 * TIMED_STEPS, "adversarial": stage}
        write_program(timing, recipe.model_copy(update=short))
        launch(timing, processes, clips=1)
        seconds = [row["seconds"] for row in read_rows(timing)]
        found.append((seconds[-1] - seconds[TIMED_STEPS - 1]) / TIMED_STEPS)
    fraction = recipe.adversarial.start if recipe.adversarial else 1.0
    return fraction * found[0] + (1 - fraction) * found[-1]


def plan(folder: Path, minutes: float | None, processes: int) -> None:
    """Write ``run.json`` with the recipe's steps, or those that fit into the time.

    An existing one is kept, so that the run resumes.
    """
    if (folder / "run.json").is_file():
        return
    recipe = recorded_recipe()
    if minutes is None:
        write_program(folder, recipe)
        return
    steps = round(60 * minutes / seconds_a_step(folder, recipe, processes))
    steps = POINTS * max(1, steps // POINTS)  # the points have equal numbers of steps
    warmup = {"warmup": min(recipe.warmup, max(1, steps // 20))}
    adversarial = recipe.adversarial and recipe.adversarial.model_copy(
        update={"warmup": min(recipe.adversarial.warmup, max(1, steps // 20))}
    )
    changes = {"steps": steps, "eval_every": steps // POINTS, "adversarial": adversarial}
    write_program(folder, recipe.model_copy(update=changes | warmup))


def launch(folder: Path, processes: int, clips: int) -> None:
    """Run this file on ``processes`` ranks with one thread each."""
    ranks = ["--standalone", f"--nproc-per-node={processes}"]
    mine = [__file__, "--folder", str(folder), "--clips", str(clips)]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *ranks, *mine],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )


def train(folder: Path, clips: int) -> None:
    """One rank of the run of a folder."""
    program = CodecProgram.from_json(folder / "run.json")
    with Run(program.run_dir) as run:
        run.init_distributed()
        audio = training_audio(program)
        codec = initial_codec(program.recipe, audio)
        trainer = EvaluatedTrainer(run, program.recipe, audio, codec)
        trainer.evaluator = AsrEvaluator(clips) if run.is_main else None
        trainer.seconds = last_seconds(folder, trainer.step)
        trainer.train()
        trainer.export()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def last_seconds(folder: Path, step: int) -> float:
    """The training time of an interrupted run at its last checkpoint."""
    known = {row["step"]: row["seconds"] for row in read_rows(folder)}
    return float(known.get(step, 0.0))


def curve(folder: Path, evaluator: AsrEvaluator, processes: int) -> str:
    """The result in Markdown."""
    rows = read_rows(folder)
    points = [row for row in rows if "wer" in row]
    recipe = CodecProgram.from_json(folder / "run.json").recipe
    original, clips = evaluator.original(), len(evaluator.samples)
    stage = "no discriminators"
    if recipe.adversarial:
        stage = f"discriminators from step {recipe.first_adversarial_step} on"
    lines = [
        f"# Codec training, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"Recipe `codec_demo`, {recipe.steps} steps ({rows[-1]['seconds'] / 60:.1f} minutes of "
        f"training), {processes} ranks, torch {torch.__version__}; {stage}. Whisper tiny.en on "
        f"{clips} held-out clips, each transcribed {TRANSCRIPTIONS} times: WER {original:.1%} "
        "on the recordings.",
        "",
        "| minutes | step | log-mel L1 | perplexity | dead codes | WER | above the recordings |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['seconds'] / 60:.1f} | {row['step']} | {row['val_mel']:.3f} "
        f"| {row['perplexity']:.0f} | {row['dead_codes']} | {row['wer']:.1%} "
        f"| {100 * (row['wer'] - original):+.1f} points |"
        for row in points
    ]
    end = evaluator.through(Codec.load(folder / "result"), LAST_TRANSCRIPTIONS)
    recordings = evaluator.original(LAST_TRANSCRIPTIONS)
    lines += [
        "",
        f"The published codec, each clip transcribed {LAST_TRANSCRIPTIONS} times: {end:.1%}, "
        f"{100 * (end - recordings):+.1f} points above the recordings ({recordings:.1%}).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="instead of the recipe's steps")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=ROOT / "storage/benchmarks/codec_training")
    today = f"codec_training-{datetime.now(UTC):%Y-%m-%d}.md"
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(today))
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        train(arguments.folder, arguments.clips)
        return
    plan(arguments.folder, arguments.minutes, arguments.processes)
    launch(arguments.folder, arguments.processes, arguments.clips)
    text = curve(arguments.folder, AsrEvaluator(arguments.clips), arguments.processes)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
