"""A notebook in which one hears what a corpus is: some clips that were kept, some that were not."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import soundfile

from tts_assets.audio import BrokenAudio, read_wave
from tts_assets.notebook import NOTEBOOK_FILE, Clip, Section, write_notebook

KEPT_SHOWN, REJECTED_SHOWN = 8, 4
SECONDS_SHOWN = 12  # of a clip
HIGHEST_RATE = 24_000  # Hz; twelve clips stay below 2 MB


def write_listening(folder: Path, corpus: str, kept: Path, rejected: Path) -> None:
    """Write ``listening.ipynb`` into ``folder``. It plays the first clips of each file: they are
    in the order of their ids, which are digests, so the first are any."""
    sections = []
    for title, path, shown in (("Kept", kept, KEPT_SHOWN), ("Rejected", rejected, REJECTED_SHOWN)):
        with path.open(encoding="utf-8") as lines:
            samples = [json.loads(line) for line in islice(lines, shown)]
        clips = [played for sample in samples if (played := clip(sample, folder))]
        sections.append(Section(title, clips))
    write_notebook(folder / NOTEBOOK_FILE, corpus, sections)
    for section in sections:
        for played in section.clips:
            played.path.unlink()


def clip(sample: dict[str, Any], folder: Path) -> Clip | None:
    """The start of a sample as a FLAC file, which browsers play whatever the source was; None if
    it can no longer be read."""
    rate = min(sample["sample_rate"], HIGHEST_RATE)
    try:
        wave = read_wave(Path(sample["wav_path"]), rate)[: SECONDS_SHOWN * rate]
    except BrokenAudio:
        return None
    path = folder / f"{sample['id']}.flac"
    soundfile.write(path, wave, rate)
    facts = [
        sample.get("reason", ""),
        sample["speaker_id"],
        f"{sample['duration']:.1f} s",
        f"{sample['sample_rate']} Hz",
        sample["id"],
    ]
    caption = " \u00b7 ".join(fact for fact in facts if fact)
    return Clip(sample["transcript"] or "(no words)", caption, path)
