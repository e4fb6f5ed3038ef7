"""Filtered samples as clips that coqui's trainer reads: 16-bit mono WAV, and lists of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from tts_assets.accounting import SetAside
from tts_assets.artifacts import written_aside
from tts_assets.audio import BrokenAudio, Wave, read_wave
from tts_assets.corpora.samples import Sample, read_samples
from tts_assets.families.config import FamilyRecipe
from tts_assets.split import ValidationSplit, is_validation

SHORTEST = 0.5  # seconds: coqui's XTTS refuses shorter clips, and VITS cuts windows of 0.4 s
TOO_SHORT, TOO_LONG = "shorter than 0.5 s", "longer than the recipe's longest"


@dataclass
class Dataset:
    """What was written: clips of each split as coqui's dictionaries, and who was set aside."""

    train: list[dict[str, str]] = field(default_factory=list)
    val: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    set_aside: list[SetAside] = field(default_factory=list)

    @property
    def speakers(self) -> int:
        return len({clip["speaker_name"] for clip in self.train})


def all_samples(files: Mapping[str, Path]) -> Iterator[tuple[str, Sample]]:
    """The samples of each corpus with its name, in the order of the files."""
    for corpus, path in files.items():
        for sample in read_samples(path):
            yield corpus, sample


def write_clip(sample: Sample, target: Path, recipe: FamilyRecipe) -> float:
    """One clip in the family's rate; its seconds. Raises BrokenAudio, or :class:`Unfit`."""
    if target.is_file():
        return float(soundfile.info(target).duration)
    wave = read_wave(Path(sample.wav_path), recipe.rate)
    seconds = len(wave) / recipe.rate
    if seconds < SHORTEST:
        raise Unfit(TOO_SHORT, f"{seconds:.2f} s")
    if seconds > recipe.longest:
        raise Unfit(TOO_LONG, f"{seconds:.2f} s")
    with written_aside(target) as aside:
        write_pcm(aside, wave, recipe.rate)
    return seconds


def write_pcm(path: Path, wave: Wave, rate: int) -> None:
    soundfile.write(path, np.clip(wave, -1.0, 1.0), rate, "PCM_16", format="WAV")


class Unfit(ValueError):
    """A clip that the family cannot learn from."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def add(
    dataset: Dataset,
    folder: Path,
    corpus: str,
    sample: Sample,
    recipe: FamilyRecipe,
    split: ValidationSplit,
) -> None:
    """Write a clip, and list it in its split or among those set aside."""
    name = f"{corpus}-{len(dataset.train) + len(dataset.val) + len(dataset.set_aside):07d}"
    target = folder / "wav" / f"{name}.wav"
    try:
        seconds = write_clip(sample, target, recipe)
    except (BrokenAudio, Unfit) as error:
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
    held_out = is_validation(sample.id, split)
    (dataset.val if held_out else dataset.train).append(clip)
    dataset.seconds += 0.0 if held_out else seconds


def write_lists(dataset: Dataset, folder: Path) -> None:
    for split, clips in (("train", dataset.train), ("val", dataset.val)):
        with written_aside(folder / f"{split}.jsonl") as aside:
            aside.write_text("".join(json.dumps(clip, ensure_ascii=False) + "\n" for clip in clips))
