r"""How good a codec is on held-out speech: intelligibility, naturalness, spectra, codes, speed.

    python benchmarks/codec_quality.py --samples \
        storage/filtered_samples/asterisk_en/current/kept.jsonl

resynthesizes the validation utterances (see ``tts_assets/split.py``), which no codec of this
project has seen in training, and prints a Markdown table: the clips as they are, and through the
codec. Notes in brackets and unfinished texts ("…") are left out: nobody says those words.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tts_assets.audio import Wave, read_wave
from tts_assets.codec.losses import SpectralLoss
from tts_assets.codec.model import Codec
from tts_assets.corpora.samples import Sample, read_samples
from tts_assets.hearing.naturalness import NaturalnessScorer
from tts_assets.hearing.text_match import corpus_cer, corpus_wer, match
from tts_assets.hearing.transcription import Transcriber
from tts_assets.split import ValidationSplit, is_validation

UNSPOKEN = re.compile(r"[()\[\]]|\.\.\.")
LONGEST = 12.0  # seconds; the few longer clips would take most of the time


@dataclass(frozen=True)
class Quality:
    """Figures of one set of clips."""

    wer: float
    cer: float
    p808: float


def held_out(path: Path, limit: int) -> list[Sample]:
    """Validation utterances whose text is what is said, by id."""
    split = ValidationSplit()
    chosen = [
        sample
        for sample in read_samples(path)
        if is_validation(sample.id, split)
        and not UNSPOKEN.search(sample.original_data.get("text", sample.transcript))
        and sample.duration <= LONGEST
    ]
    return sorted(chosen, key=lambda sample: sample.id)[:limit]


def quality(
    samples: Sequence[Sample], waves: Sequence[Wave], rate: int, transcriber: Transcriber
) -> Quality:
    """What Whisper understands, and how natural DNSMOS P.808 finds it."""
    heard = transcriber([(wave, rate) for wave in waves])
    matches = [match(s.transcript, text) for s, text in zip(samples, heard, strict=True)]
    score = NaturalnessScorer()
    scores = [mos.p808 for wave in waves if (mos := score(wave, rate)) is not None]
    return Quality(corpus_wer(matches), corpus_cer(matches), float(np.mean(scores)))


def mel_distance(waves: Sequence[Wave], made: Sequence[Wave]) -> float:
    """Mean multi-resolution log-mel L1 (natural logarithm)."""
    loss = SpectralLoss()
    distances = []
    for wave, other in zip(waves, made, strict=True):
        length = min(len(wave), len(other))
        pair = [torch.from_numpy(w[:length]).unsqueeze(0) for w in (other, wave)]
        distances.append(float(loss(*pair)[1]))
    return float(np.mean(distances))


def code_usage(codes: Sequence[NDArray[np.int64]], size: int) -> tuple[float, float]:
    """Entropy in bits a code, and the share of the codebook that occurs."""
    counts = np.bincount(np.concatenate(codes), minlength=size)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()), float((counts > 0).mean())


def report(codec: Codec, samples: Sequence[Sample]) -> str:
    """All figures as Markdown."""
    waves = [read_wave(Path(sample.wav_path), codec.input_rate) for sample in samples]
    seconds = sum(len(wave) for wave in waves) / codec.input_rate
    started = time.perf_counter()
    codes = codec.encode(waves)
    encoded = time.perf_counter()
    made = codec.decode(codes)
    decoded = time.perf_counter()
    transcriber = Transcriber(beam_size=1)
    original = quality(samples, waves, codec.input_rate, transcriber)
    through = quality(samples, made, codec.sample_rate, transcriber)
    entropy, used = code_usage(codes, codec.codebook_size)
    rate = codec.token_rate * np.log2(codec.codebook_size)
    lines = [
        f"{len(samples)} held-out clips, {seconds:.1f} s.",
        "",
        "| | original | resynthesized |",
        "|---|---|---|",
        f"| WER, Whisper tiny.en | {original.wer:.1%} | {through.wer:.1%} |",
        f"| CER | {original.cer:.1%} | {through.cer:.1%} |",
        f"| DNSMOS P.808 | {original.p808:.2f} | {through.p808:.2f} |",
        "",
        f"Log-mel L1 {mel_distance(waves, made):.3f}; {rate:.0f} bit/s; entropy {entropy:.2f} bits "
        f"a code; {used:.0%} of {codec.codebook_size} codes occur in these clips; real-time "
        f"factor {(encoded - started) / seconds:.3f} encoding, "
        f"{(decoded - encoded) / seconds:.3f} decoding ({torch.get_num_threads()} threads).",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", type=Path, default=Path("examples/codecs/announcer-16khz"))
    parser.add_argument("--samples", type=Path, required=True, help="a kept.jsonl")
    parser.add_argument("--limit", type=int, default=40, help="clips at most")
    arguments = parser.parse_args()
    samples = held_out(arguments.samples, arguments.limit)
    print(report(Codec.load(arguments.codec), samples))


if __name__ == "__main__":
    main()
