"""A notebook in which one hears what a corpus is: some clips that were kept, some that were not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import soundfile

from tts_assets.config import digest_of
from tts_assets.corpora.audio import read_wave
from tts_assets.corpora.samples import Sample
from tts_assets.notebook import Clip, Section, write_notebook

NOTEBOOK_FILE = "listening.ipynb"
KEPT_SHOWN, REJECTED_SHOWN = 8, 4
SECONDS_SHOWN = 12  # of a clip
HIGHEST_RATE = 24_000  # Hz; twelve clips stay below 2 MB


def write_listening(
    folder: Path, corpus: str, kept: Sequence[Sample], rejected: Sequence[tuple[Sample, str]]
) -> None:
    """Write ``listening.ipynb`` into ``folder``; which clips it plays is a hash of their ids."""
    reasons = {sample.id: reason for sample, reason in rejected}
    sections = []
    for title, samples, shown in (
        ("Kept", kept, KEPT_SHOWN),
        ("Rejected", [sample for sample, _ in rejected], REJECTED_SHOWN),
    ):
        chosen = sorted(samples, key=lambda sample: digest_of(sample.id))[:shown]
        clips = [clip(sample, reasons.get(sample.id, ""), folder) for sample in chosen]
        sections.append(Section(f"{title}: {len(clips)} of {len(samples)}", clips))
    write_notebook(folder / NOTEBOOK_FILE, corpus, sections)
    for section in sections:
        for played in section.clips:
            played.path.unlink()


def clip(sample: Sample, reason: str, folder: Path) -> Clip:
    """The start of a sample as a FLAC file, which browsers play whatever the source was."""
    rate = min(sample.sample_rate, HIGHEST_RATE)
    wave = read_wave(Path(sample.wav_path), rate)[: SECONDS_SHOWN * rate]
    path = folder / f"{sample.id}.flac"
    soundfile.write(path, wave, rate)
    facts = [reason, sample.speaker_id, f"{sample.duration:.1f} s", f"{sample.sample_rate} Hz"]
    caption = " \u00b7 ".join(fact for fact in [*facts, sample.id] if fact)
    return Clip(sample.transcript or "(no words)", caption, path)
