"""The watermark: detection after attacks, false positives, quality and time.

    python benchmarks/watermark.py [FOLDER …]

Detection and its attacks are measured on 30 clips of the demo corpus of at least 2 s, with and
without the mark; false positives on 120 of its clips and of those of each further FOLDER, by their
length. *Stream*: the clip is marked in chunks as they are streamed (0.3 s, 0.32 s, 0.64 s, …).
Quality: DNSMOS, WER of Whisper tiny.en and speaker similarity to the clip itself, with and without
the mark, with 95 % intervals of the paired difference. Time: of one core.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.speaker_similarity import SpeakerEncoder
from tts_assets.audio_models.transcription import Transcriber
from tts_assets.audio_models.watermark import Watermarker, detect, mark
from tts_assets.audio_models.wer import corpus_wer, match
from tts_assets.core.audio import BrokenAudio, Clip, Wave, read_clip, resample
from tts_assets.serving.audio_formats import Tempo

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "corpora" / "asterisk_en"
T = TypeVar("T")
THRESHOLDS = (0.5, 0.7, 0.9)
CHUNKS = (0.3, 0.32, 0.64, 1.28, 2.56, *[5.12] * 20)  # seconds
ATTACKED, RECORDED, QUALITY_CLIPS = 30, 120, 40


def mp3(wave: Wave, rate: int) -> Wave:
    """Encoded at 64 kbit/s and decoded."""
    # libsndfile's level 0 is the highest bit rate of the version of MPEG audio, 1 the lowest
    lowest, highest = (8, 160) if rate <= 24_000 else (32, 320)
    level = (highest - 64) / (highest - lowest)
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", rate, 1, format="MP3", bitrate_mode="CONSTANT", compression_level=level
    ) as sound:
        sound.write(wave)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def noise(wave: Wave, decibel: float) -> Wave:
    """With white noise that is ``decibel`` below the power of the speech."""
    power = float((wave**2).mean()) * 10 ** (-decibel / 10)
    drawn = np.random.default_rng(len(wave)).normal(0, power**0.5, len(wave))
    return (wave + drawn).astype(np.float32)


ATTACKS: dict[str, Callable[[Wave, int], Wave]] = {
    "none": lambda wave, rate: wave,
    "mp3, 64 kbit/s": mp3,
    "8 kHz and back": lambda wave, rate: resample(resample(wave, rate, 8_000), 8_000, rate),
    "cut to 2 s": lambda wave, rate: wave[len(wave) // 2 - rate :][: 2 * rate],
    "white noise, 20 dB": lambda wave, rate: noise(wave, 20),
    "white noise, 30 dB": lambda wave, rate: noise(wave, 30),
    "12 dB quieter": lambda wave, rate: 0.25 * wave,
    "1.25 times as fast": lambda wave, rate: Tempo(rate, 1.25).apply(wave),
    "twice as fast": lambda wave, rate: Tempo(rate, 2.0).apply(wave),
}


def streamed(wave: Wave, rate: int) -> Wave:
    """Marked chunk by chunk."""
    cuts = (np.cumsum(CHUNKS) * rate).astype(int)
    watermarker = Watermarker(rate)
    return np.concatenate([watermarker.push(part) for part in np.split(wave, cuts)])


def scores(waves: Sequence[Wave], rate: int, attack: Callable[[Wave, int], Wave]) -> np.ndarray:
    """The detector's scores after an attack, without clips that it cannot judge."""
    found = [detect(attack(wave, rate), rate) for wave in waves]
    return np.array([score for score in found if score is not None])


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def shares(found: np.ndarray) -> list[str]:
    """The shares above the thresholds."""
    return [f"{(found > limit).mean():.1%}" for limit in THRESHOLDS]


def detection(clips: Sequence[Clip]) -> None:
    """The table of attacks."""
    rate, plain = clips[0].rate, [clip.wave for clip in clips]
    started = time.process_time()
    marked = [mark(wave, rate) for wave in plain]
    seconds = (time.process_time() - started) / sum(clip.seconds for clip in clips)
    row("attack", *(f"marked > {t}" for t in THRESHOLDS), *(f"plain > {t}" for t in THRESHOLDS))
    row(*["---"] * 7)
    for name, attack in ATTACKS.items():
        row(name, *shares(scores(marked, rate, attack)), *shares(scores(plain, rate, attack)))
    chunked = [streamed(wave, rate) for wave in plain]
    row("stream", *shares(scores(chunked, rate, ATTACKS["none"])), "", "", "")
    row("stream, mp3", *shares(scores(chunked, rate, mp3)), "", "", "")
    first = [time_of(lambda wave=wave: Watermarker(rate).push(wave[:4_800])) for wave in plain]
    print(f"\n{len(clips)} clips; {seconds * 1000:.1f} ms per second of audio; ")
    print(f"first chunk of 0.3 s: {1000 * float(np.median(first)):.1f} ms\n")


def time_of(function: Callable[[], object]) -> float:
    """Seconds of CPU of one call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def false_positives(folders: Sequence[Path]) -> None:
    """The table of recordings by folder and length."""
    row("recordings", "s", "clips", *(f"> {t}" for t in THRESHOLDS), "highest")
    row(*["---"] * 7)
    for folder in folders:
        clips = readable(spread(sorted(folder.rglob("*.g722")), RECORDED))
        found = [(clip.seconds, detect(clip.wave, clip.rate)) for clip in clips]
        judged = np.array([(seconds, score) for seconds, score in found if score is not None])
        for low, high in ((0, 1), (1, 2), (2, 999)):
            own = judged[(judged[:, 0] >= low) & (judged[:, 0] < high), 1]
            counts = [int((own > limit).sum()) for limit in THRESHOLDS]
            row(folder.name, f"{low} to {high}", len(own), *counts, f"{own.max():.2f}")


def spread(items: Sequence[T], count: int) -> Sequence[T]:
    """``count`` of the items, evenly spaced."""
    return items[:: max(1, len(items) // count)][:count]


def readable(paths: Sequence[Path]) -> list[Clip]:
    """The clips that can be read."""
    clips = []
    for path in paths:
        try:
            clips.append(read_clip(path))
        except BrokenAudio:
            continue
    return clips


def quality(clips: Sequence[Clip], texts: Sequence[str]) -> None:
    """DNSMOS, WER and speaker similarity with and without the mark."""
    rate = clips[0].rate
    plain = [clip.wave for clip in clips]
    marked = [mark(wave, rate) for wave in plain]
    scorer, encoder, transcriber = DnsmosScorer(), SpeakerEncoder(), Transcriber(threads=1)
    rows = [[scorer(wave, rate) for wave in waves] for waves in (plain, marked)]
    for name in ("p808", "overall"):
        before, after = (np.array([getattr(mos, name) for mos in own]) for own in rows)
        change = after - before
        error = 1.96 * change.std(ddof=1) / len(change) ** 0.5
        print(f"DNSMOS {name}: {before.mean():.3f}, {change.mean():+.3f} (± {error:.3f})")
    embedded = [encoder.embed_all([(wave, rate) for wave in waves]) for waves in (plain, marked)]
    cosines = [
        float(a @ b) for a, b in zip(*embedded, strict=True) if a is not None and b is not None
    ]
    print(f"speaker similarity of a clip with and without the mark: {np.mean(cosines):.3f}")
    for name, waves in (("without", plain), ("with", marked)):
        heard = transcriber([(wave, rate) for wave in waves])
        matches = [match(text, own) for text, own in zip(texts, heard, strict=True)]
        print(f"WER {name} the mark: {corpus_wer(matches):.2%}")


def main() -> None:
    """Print all tables."""
    lines = [json.loads(line) for line in (CORPUS / "samples.jsonl").read_text().splitlines()]
    clips = [(read_clip(CORPUS / line["wav_path"]), line["transcript"]) for line in lines]
    long = [(clip, text) for clip, text in clips if clip.seconds >= 2]
    detection([clip for clip, _ in spread(long, ATTACKED)])
    false_positives([CORPUS, *map(Path, sys.argv[1:])])
    some = spread(long, QUALITY_CLIPS)
    quality([clip for clip, _ in some], [text for _, text in some])


if __name__ == "__main__":
    main()
