"""Synthetic long recordings with known content: concatenated real clips."""

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

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpora" / "asterisk_en"
RATE = 16_000
AUDIBLE = 0.01  # of full scale; the clips begin and end below it
EDGE = 0.03  # s that are kept around audible samples


@dataclass(frozen=True)
class SpokenClip:
    """A clip in a recording, from ``start`` to ``end`` seconds, with silence around it."""

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
) -> list[SpokenClip]:
    """Write a 16-bit wav: ``lead`` s without speech, then each clip and its pause.

    White noise of ``noise_db`` dB of full scale is added. Returns the clips with their times.
    """
    texts = corpus_clips()
    parts, spoken = [np.zeros(int(lead * RATE), np.float32)], []
    done = len(parts[0])
    for key, pause in zip(keys, pauses, strict=True):
        wave = speech_of(key)
        spoken.append(SpokenClip(done / RATE, (done + len(wave)) / RATE, texts[key][1], key))
        parts += [wave, np.zeros(int(pause * RATE), np.float32)]
        done += len(wave) + len(parts[-1])
    wave = np.concatenate(parts)
    noise = np.random.default_rng(seed).normal(0, 10 ** (noise_db / 20), len(wave))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(wave + noise, -1, 1).astype(np.float32), RATE, "PCM_16")
    return spoken


def quiet(wave: Wave, time: float, *, seconds: float = 0.03, level: float = 0.005) -> bool:
    """Whether a 16 kHz wave (samples,) has only noise around ``time``."""
    around = wave[max(0, int((time - seconds) * RATE)) : int((time + seconds) * RATE)]
    return bool(np.max(np.abs(around), initial=0.0) < level)


def kept(spoken: Sequence[SpokenClip], clips: Sequence[tuple[float, float]]) -> list[str]:
    """The texts of which ``clips`` (start and end in seconds) hold nine tenths or more."""
    return [
        one.text
        for one in spoken
        if sum(max(0.0, min(end, one.end) - max(start, one.start)) for start, end in clips)
        > 0.9 * (one.end - one.start)
    ]


def word_error_rate(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """The WER of all texts concatenated, after Whisper's normalization."""
    normalize = EnglishTextNormalizer()
    return jiwer.wer(normalize(" ".join(reference)), normalize(" ".join(hypothesis)))
