"""Long recordings of which everything is known: real clips, one after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import soundfile
from whisper_normalizer.english import EnglishTextNormalizer

from tts_assets.core.audio import Wave, read_clip

CORPUS = Path(__file__).resolve().parents[3] / "examples" / "corpora" / "asterisk_en"
RATE = 16_000
AUDIBLE = 0.01  # of full scale; the clips begin and end below it
EDGE = 0.03  # s that are left around what is audible


@dataclass(frozen=True)
class Said:
    """What is said in a recording from ``start`` to ``end`` seconds, with silence around it."""

    start: float
    end: float
    text: str
    key: str


def corpus_clips() -> dict[str, tuple[Path, str]]:
    """Audio and text of the demo corpus by key."""
    lines = (CORPUS / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        row["original_data"]["key"]: (CORPUS / row["wav_path"], row["transcript"]) for row in rows
    }


def speech_of(key: str) -> Wave:
    """A clip of the demo corpus without the silence at its ends, 16 kHz."""
    wave = read_clip(corpus_clips()[key][0]).wave
    audible = np.flatnonzero(np.abs(wave) > AUDIBLE)
    edge = int(EDGE * RATE)
    return wave[max(0, audible[0] - edge) : audible[-1] + edge]


def record(
    path: Path,
    keys: Sequence[str],
    pauses: Sequence[float],
    *,
    lead: float = 1.0,
    noise_db: float = -65.0,
    seed: int = 1,
) -> list[Said]:
    """Write a 16-bit wav: ``lead`` s without speech, then each clip with its pause after it, in
    white noise of ``noise_db`` dB of full scale; what is said in it, and when."""
    texts = corpus_clips()
    parts, said = [np.zeros(int(lead * RATE), np.float32)], []
    done = len(parts[0])
    for key, pause in zip(keys, pauses, strict=True):
        wave = speech_of(key)
        said.append(Said(done / RATE, (done + len(wave)) / RATE, texts[key][1], key))
        parts += [wave, np.zeros(int(pause * RATE), np.float32)]
        done += len(wave) + len(parts[-1])
    wave = np.concatenate(parts)
    noise = np.random.default_rng(seed).normal(0, 10 ** (noise_db / 20), len(wave))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(wave + noise, -1, 1).astype(np.float32), RATE, "PCM_16")
    return said


def quiet(wave: Wave, time: float, *, seconds: float = 0.03, level: float = 0.005) -> bool:
    """Whether nothing but noise is around a moment of a 16 kHz wave."""
    around = wave[max(0, int((time - seconds) * RATE)) : int((time + seconds) * RATE)]
    return bool(np.max(np.abs(around), initial=0.0) < level)


def kept(said: Sequence[Said], clips: Sequence[tuple[float, float]]) -> list[str]:
    """The texts of which clips (start and end in seconds) hold nine tenths or more."""
    return [
        one.text
        for one in said
        if sum(max(0.0, min(end, one.end) - max(start, one.start)) for start, end in clips)
        > 0.9 * (one.end - one.start)
    ]


def word_error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """Word errors, all texts one after the other, in Whisper's spelling of numbers and such."""
    normalize = EnglishTextNormalizer()
    return jiwer.wer(normalize(" ".join(said)), normalize(" ".join(heard)))
