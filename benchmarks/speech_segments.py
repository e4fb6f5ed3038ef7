"""``speech_segments`` against Whisper's own segments, on recordings with known content.

    python -m benchmarks.speech_segments [FOLDER]

concatenates clips of the demo corpus with pauses and noise (six minutes, 100 clips), cuts the
result into utterances, and compares with the known content: how many ends of clips lie in speech,
how much of the speech is kept, and the WER of the texts. An end lies in speech if the recording
without its noise exceeds -46 dB of full scale (or the noise level) within 30 ms. "Whisper's
segments" are those of faster-whisper with its VAD filter and word timestamps. Prints a Markdown
table; the recordings and clips stay in FOLDER.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.recordings import (
    SpokenClip,
    corpus_clips,
    kept,
    quiet,
    record,
    word_error_rate,
)
from tts_assets.audio_models.whisper import packaged_model
from tts_assets.core.audio import AudioPool, Wave, read_clip
from tts_assets.corpora.segments import SegmentConfig
from tts_assets.corpora.segments.recording import Transcript, cut, transcribe
from tts_assets.corpora.segments.words import WordTranscriber

CLIPS = 100
PAUSES = (0.25, 0.4, 0.6, 0.9, 1.5, 3.0)  # seconds
NOISES = (-65.0, -45.0, -35.0)  # dB of full scale; the speech is at about -18 LUFS
WORDS = range(4, 25)
CONFIG = SegmentConfig()


@dataclass(frozen=True)
class Cut:
    """A clip as start and end in seconds, and its text."""

    start: float
    end: float
    text: str


def make(folder: Path, noise_db: float, seed: int = 3) -> tuple[Wave, Wave, list[SpokenClip]]:
    """The recording, the same without noise, and its clips: sentences and single numbers."""
    rng = np.random.default_rng(seed)
    clips = corpus_clips()
    usable = [k for k, (_, text) in clips.items() if len(text.split()) in WORDS or "digits/" in k]
    keys = [usable[i] for i in rng.permutation(len(usable))[:CLIPS]]
    pauses = rng.choice(PAUSES, len(keys)).tolist()
    spoken = record(folder / f"noise{noise_db:.0f}.wav", keys, pauses, noise_db=noise_db)
    record(folder / "clean.wav", keys, pauses, noise_db=-200)
    wave, clean = (read_clip(folder / f"{n}.wav").wave for n in (f"noise{noise_db:.0f}", "clean"))
    return wave, clean, spoken


def our_segments(path: Path, transcriber: WordTranscriber, pool: AudioPool) -> list[Cut]:
    """The clips of this project."""
    recording = read_clip(path)
    *_, transcript = transcribe(recording.wave, transcriber, "en", CONFIG)
    assert isinstance(transcript, Transcript)
    spans = cut(recording, transcript, CONFIG, None, pool)
    rate = recording.rate
    return [Cut(span.start / rate, span.end / rate, span.text) for span in spans if span.clip]


def whisper_segments(path: Path, transcriber: WordTranscriber) -> list[Cut]:
    """The segments of faster-whisper that have the length of a clip."""
    segments, _ = transcriber.whisper.transcribe(
        read_clip(path).wave,
        language="en",
        temperature=0.0,
        condition_on_previous_text=False,
        vad_filter=True,
        word_timestamps=True,
    )
    cuts = [Cut(segment.start, segment.end, segment.text) for segment in segments]
    return [c for c in cuts if CONFIG.min_seconds <= c.end - c.start <= CONFIG.max_seconds]


def row(cuts: Sequence[Cut], clean: Wave, spoken: Sequence[SpokenClip], noise_db: float) -> str:
    """The figures of one method as cells of a Markdown row."""
    ends = [time for c in cuts for time in (c.start, c.end)]
    level = max(0.005, 10 ** (noise_db / 20))
    in_sound = sum(not quiet(clean, time, level=level) for time in ends)
    pairs = [(c.start, c.end) for c in cuts]
    total = sum(one.end - one.start for one in spoken)
    held = sum(
        max(0.0, min(end, one.end) - max(start, one.start))
        for start, end in pairs
        for one in spoken
    )
    errors = word_error_rate(kept(spoken, pairs), [c.text for c in cuts])
    lengths = [end - start for start, end in pairs]
    return (
        f"{len(cuts)} | {min(lengths):.1f} to {max(lengths):.1f} s | {held / total:.1%} | "
        f"{in_sound} of {len(ends)} | {errors:.1%}"
    )


def main() -> None:
    """Run all noise levels and print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    transcriber = WordTranscriber(packaged_model())
    print("| noise | cut by | clips | length | speech in clips | ends in speech | WER |")
    print("|---|---|---:|---|---:|---:|---:|")
    seconds = recorded = 0.0
    for noise_db in NOISES:
        wave, clean, spoken = make(folder, noise_db)
        path = folder / f"noise{noise_db:.0f}.wav"
        started = time.monotonic()
        found = our_segments(path, transcriber, AudioPool(folder / "clips"))
        seconds += time.monotonic() - started
        recorded += len(wave) / 16_000
        for name, cuts in (
            ("speech_segments", found),
            ("Whisper's segments", whisper_segments(path, transcriber)),
        ):
            print(
                f"| {noise_db:.0f} dB | {name} | {row(cuts, clean, spoken, noise_db)} |", flush=True
            )
    print(f"\n{recorded / 60:.1f} min cut in {seconds:.0f} s on one thread")


if __name__ == "__main__":
    main()
