"""Program: train an external model on filtered samples, in the environment of coqui-tts::

    python -m tts_assets.external_models.train run.json

It converts the samples to clips that coqui's trainer reads (16-bit mono WAV and lists of them),
starts ``coqui/training.py`` with the other interpreter, and forwards its metrics. The files in
``checkpoints/`` are those that the other trainer resumes from.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tts_assets.core.accounting import (
    SET_ASIDE_FILE,
    SetAside,
    ValidationSplit,
    nothing_usable,
    write_set_aside,
)
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.audio import BrokenAudio, Wave, read_wave
from tts_assets.core.config import ConfigError
from tts_assets.core.program import METRICS_FILE, Run, load_config, publish_metrics, read_metrics
from tts_assets.corpora.samples import Sample, located_samples
from tts_assets.corpora.validation import is_held_out, settled
from tts_assets.external_models.config import (
    CLONING,
    LEARNING_RATES,
    LOG_STEPS,
    SAVE_STEPS,
    VOICE_CLIPS,
    ExternalRecipe,
    ExternalTrainProgram,
)
from tts_assets.external_models.coqui import (
    VOICES_FOLDER,
    TrainJob,
)
from tts_assets.external_models.environment import run_job

SHORTEST = 0.5  # seconds: coqui's XTTS refuses shorter clips, and VITS trains on windows of 0.4 s
TOO_SHORT, TOO_LONG = "shorter than 0.5 s", "longer than the recipe's longest"
# Metrics of coqui's trainer about computing time, which are not published.
TIMES = frozenset({"step_time", "loader_time", "val_step_time", "val_loader_time"})
Event = dict[str, Any]


def main(argv: list[str] | None = None) -> None:
    """Write the dataset, train, and publish the model with its voice clips and facts."""
    config = load_config(ExternalTrainProgram, argv)
    with Run(config.run_dir) as run:
        folder = config.run_dir / "dataset"
        dataset = prepare(config, run, folder)
        check(config, dataset)
        write_lists(dataset, folder)
        train(config.recipe, config.python, run, folder, len(dataset.train))
        if config.recipe.family in CLONING:
            write_voices(dataset, run.result_dir / VOICES_FOLDER)
        write_set_aside(run.result_dir / SET_ASIDE_FILE, dataset.set_aside)
        if (config.run_dir / METRICS_FILE).is_file():
            publish_metrics(config.run_dir, run.result_dir, without=TIMES)
        run.finish(facts(config, dataset, run.result_dir))


def train(recipe: ExternalRecipe, python: Path, run: Run, folder: Path, clips: int) -> None:
    """Train on the dataset in ``folder``, which has ``clips`` training clips."""
    job = TrainJob(
        family=recipe.family,
        dataset=str(folder),
        work=str(run.checkpoint_dir),
        result=str(run.result_dir),
        events=str(run.run_dir / "events.jsonl"),
        start=str(recipe.model) if recipe.model else None,
        sample_rate=recipe.rate,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate or LEARNING_RATES[recipe.family],
        save_steps=SAVE_STEPS,
        log_steps=LOG_STEPS,
        seed=recipe.seed,
        config=recipe.config,
    )
    steps = recipe.epochs * -(-clips // recipe.batch_size)
    run_job(run, python, job, "training", 1 if recipe.family == "tortoise" else steps)


@dataclass
class Dataset:
    """The clips of each split as coqui's dictionaries, and the samples that are set aside."""

    train: list[dict[str, str]] = field(default_factory=list)
    val: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    set_aside: list[SetAside] = field(default_factory=list)

    @property
    def speakers(self) -> int:
        """The number of speakers of the training clips."""
        return len({clip["speaker_name"] for clip in self.train})


class UnsuitableClip(ValueError):
    """A clip that the model cannot be trained on."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def prepare(config: ExternalTrainProgram, run: Run, folder: Path) -> Dataset:
    """Write every sample as a clip; clips from an earlier attempt are kept."""
    dataset = Dataset()
    samples = list(all_samples(config.samples))
    splits = {name: settled(config.validation, [path]) for name, path in config.samples.items()}
    for corpus, sample in run.progress(samples, "clips"):
        add(dataset, folder, corpus, sample, config.recipe, splits[corpus])
        if run.stop_requested:
            run.stopped()
    return dataset


def all_samples(files: Mapping[str, Path]) -> Iterator[tuple[str, Sample]]:
    """The samples of each corpus with its name, in the order of the files."""
    for corpus, path in files.items():
        for sample in located_samples(path):
            yield corpus, sample


def add(
    dataset: Dataset,
    folder: Path,
    corpus: str,
    sample: Sample,
    recipe: ExternalRecipe,
    split: ValidationSplit,
) -> None:
    """Write a clip, and list it in its split or among those that are set aside."""
    name = f"{corpus}-{len(dataset.train) + len(dataset.val) + len(dataset.set_aside):07d}"
    target = folder / "wav" / f"{name}.wav"
    try:
        seconds = write_clip(sample, target, recipe)
    except (BrokenAudio, UnsuitableClip) as error:
        dataset.set_aside.append(SetAside(f"{corpus}: {sample.id}", error.reason, error.detail))
        return
    clip = {
        "audio_file": str(target),
        "text": sample.transcript,
        "language": sample.language,
        "speaker_name": sample.speaker_id or corpus,
        "root_path": str(folder),
        "audio_unique_name": name,
    }
    held_out = is_held_out(sample, split)
    (dataset.val if held_out else dataset.train).append(clip)
    dataset.seconds += 0.0 if held_out else seconds


def write_clip(sample: Sample, target: Path, recipe: ExternalRecipe) -> float:
    """Write one clip at the recipe's sample rate; returns its duration in seconds.

    Raises :class:`BrokenAudio` or :class:`UnsuitableClip`.
    """
    if target.is_file():
        return float(soundfile.info(target).duration)
    wave = read_wave(Path(sample.wav_path), recipe.rate)
    seconds = len(wave) / recipe.rate
    if seconds < SHORTEST:
        raise UnsuitableClip(TOO_SHORT, f"{seconds:.2f} s")
    if seconds > recipe.max_seconds:
        raise UnsuitableClip(TOO_LONG, f"{seconds:.2f} s")
    with atomic_write(target) as temporary:
        write_pcm(temporary, wave, recipe.rate)
    return seconds


def write_pcm(path: Path, wave: Wave, rate: int) -> None:
    """Write a wave (samples,) as 16-bit WAV."""
    soundfile.write(path, np.clip(wave, -1.0, 1.0), rate, "PCM_16", format="WAV")


def check(config: ExternalTrainProgram, dataset: Dataset) -> None:
    """Raise :class:`ConfigError` if the model cannot be trained on this dataset."""
    if not dataset.train:
        what = (
            f"{config.name}: {', '.join(config.samples)} have no clip to train on, and "
            f"{len(dataset.val)} for validation"
        )
        raise ConfigError(nothing_usable(what, dataset.set_aside))
    if config.recipe.family == "vits" and dataset.speakers > 1:
        raise ConfigError(
            f"{config.name}: vits learns one voice, and {list(config.samples)} have "
            f"{dataset.speakers} speakers; name corpora of one, or use xtts"
        )


def write_lists(dataset: Dataset, folder: Path) -> None:
    """Write ``train.jsonl`` and ``val.jsonl``."""
    for split, clips in (("train", dataset.train), ("val", dataset.val)):
        with atomic_write(folder / f"{split}.jsonl") as temporary:
            lines = [json.dumps(clip, ensure_ascii=False) + "\n" for clip in clips]
            temporary.write_text("".join(lines))


def write_voices(dataset: Dataset, folder: Path) -> None:
    """Copy the longest training clips, which a cloning model imitates."""
    folder.mkdir(exist_ok=True)
    clips = [Path(clip["audio_file"]) for clip in dataset.train]
    clips.sort(key=lambda path: (-soundfile.info(path).frames, path.name))
    for number, clip in enumerate(clips[:VOICE_CLIPS]):
        shutil.copyfile(clip, folder / f"{number}.wav")


def facts(config: ExternalTrainProgram, dataset: Dataset, result: Path) -> dict[str, Any]:
    """The facts of the artifact; ``losses`` are the last ones that the trainer logged."""
    path = result / METRICS_FILE
    records = read_metrics(path) if path.is_file() else []
    last: dict[str, float] = {}
    for record in records:
        last |= {name: value for name, value in record.items() if "loss" in name}
    return {
        "family": config.recipe.family,
        "recipe": config.name,
        "steps": max((int(record["step"]) for record in records), default=0),
        "train_samples": len(dataset.train),
        "val_samples": len(dataset.val),
        "set_aside": len(dataset.set_aside),
        "hours": dataset.seconds / 3600,
        "parameters": sum(parameters(path) for path in result.glob("*.safetensors")),
        "losses": last,
    }


def parameters(path: Path) -> int:
    """The number of parameters in a safetensors file, from its header."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    return sum(math.prod(shape) for shape in shapes)


if __name__ == "__main__":
    main()
