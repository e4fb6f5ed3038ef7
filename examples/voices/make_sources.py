#!/usr/bin/env python3
"""Two sources of one person, from the demo corpus: a quiz of 80 clips, and later an interview.

    python examples/voices/make_sources.py quiz work/quiz
    python examples/voices/make_sources.py interview work/interview

The quiz is a folder of ``x.wav`` beside ``x.txt``. The interview is one recording of other clips
with pauses between them, without text. Every run writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import soundfile

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.audio import read_wave

CORPUS = Path(__file__).resolve().parents[1] / "corpora" / "asterisk_en"
RATE = 16000
QUIZ_CLIPS, INTERVIEW_CLIPS = 80, 70
SECONDS = (1.6, 6.0)  # sentences, neither single words nor menus
PAUSES = (0.5, 1.3)  # seconds between two sentences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", choices=("quiz", "interview"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    write = write_quiz if given.source == "quiz" else write_interview
    minutes = write(given.folder) / 60
    print(f"{given.source}: {minutes:.1f} minutes in {given.folder}")


def sentences() -> list[dict[str, str]]:
    """The sentences of the corpus, shuffled: first those of the quiz, then the interview's."""
    rows = [json.loads(line) for line in (CORPUS / "samples.jsonl").read_text().splitlines()]
    fitting = [row for row in rows if SECONDS[0] <= row["duration"] <= SECONDS[1]]
    random.Random(1).shuffle(fitting)
    return fitting


def write_quiz(folder: Path) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    for number, row in enumerate(sentences()[:QUIZ_CLIPS]):
        wave = read_wave(CORPUS / row["wav_path"], RATE)
        soundfile.write(folder / f"{number:02d}.wav", wave, RATE, "PCM_16")
        (folder / f"{number:02d}.txt").write_text(row["transcript"] + "\n")
        seconds += len(wave) / RATE
    return seconds


def write_interview(folder: Path) -> float:
    pauses = random.Random(2)
    waves = []
    for row in sentences()[QUIZ_CLIPS : QUIZ_CLIPS + INTERVIEW_CLIPS]:
        silence = np.zeros(int(RATE * pauses.uniform(*PAUSES)), np.float32)
        waves += [read_wave(CORPUS / row["wav_path"], RATE), silence]
    recording = np.concatenate(waves)
    # The folder is renamed into place, so that a sensor sees the complete file or nothing.
    with atomic_write(folder) as aside:
        aside.mkdir()
        soundfile.write(aside / "interview.flac", recording, RATE, "PCM_16")
    return len(recording) / RATE


if __name__ == "__main__":
    main()
