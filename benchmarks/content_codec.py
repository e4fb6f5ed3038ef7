r"""What a codec with one voice makes of other speakers: WER, DNSMOS and whose voice it is.

    python benchmarks/content_codec.py examples/codecs/announcer-16khz \
        --voice storage/filtered_samples/asterisk_en/current/kept.jsonl \
        --samples storage/filtered_samples/joe/current/kept.jsonl

Held-out clips of each list are encoded and decoded. The script prints a row of a Markdown table for
each list and transcriber: the WER of recordings and of decoded audio, DNSMOS P.808, and the mean
similarity (Resemblyzer) of the decoded audio to the voice and to the speaker of the recordings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.speaker_similarity import SpeakerEncoder
from tts_assets.audio_models.transcription import PACKAGED, Transcriber
from tts_assets.audio_models.wer import match
from tts_assets.codec.model import Codec
from tts_assets.codec.windows import utterances
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.audio import Wave, read_wave
from tts_assets.corpora.samples import scan_samples

SPLIT = ValidationSplit(fraction=0.06, salt="1")  # of the demo's project file
REFERENCES = 30  # training clips whose mean embedding is a speaker


def held_out(path: Path, count: int) -> tuple[list[Wave], list[str]]:
    """Held-out clips at 16 kHz, evenly over the list, and their transcripts."""
    found = utterances(path, 1.0, SPLIT).filter("held_out").sort("id")
    texts = scan_samples([path]).select("id", "transcript").collect()
    rows = found.join(texts, on="id").gather_every(max(1, found.height // count)).head(count)
    waves = [read_wave(Path(one), 16_000) for one in rows["wav_path"]]
    return waves, rows["transcript"].to_list()


def speaker_of(path: Path, encoder: SpeakerEncoder) -> NDArray[np.float32]:
    """The mean embedding (256,) of training clips of two seconds or more."""
    rows = utterances(path, 1.0, SPLIT).filter(~pl.col("held_out") & (pl.col("duration") > 2.0))
    waves = [read_wave(Path(one), 16_000) for one in rows["wav_path"].head(REFERENCES)]
    return mean_embedding(waves, encoder)


def embeddings(waves: list[Wave], encoder: SpeakerEncoder) -> NDArray[np.float32]:
    """The unit embeddings (clips, 256) of clips that are long enough."""
    found = (encoder.embed(wave, 16_000) for wave in waves)
    rows = np.stack([np.asarray(one) for one in found if one is not None])
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def mean_embedding(waves: list[Wave], encoder: SpeakerEncoder) -> NDArray[np.float32]:
    """The unit mean (256,) of :func:`embeddings`."""
    mean = embeddings(waves, encoder).mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


def wer(waves: list[Wave], texts: list[str], transcriber: Transcriber) -> float:
    """The WER of a corpus."""
    heard = transcriber([(wave, 16_000) for wave in waves])
    pairs = [match(text, one) for text, one in zip(texts, heard, strict=True)]
    return sum(pair.word_errors for pair in pairs) / sum(pair.words for pair in pairs)


def mean_p808(waves: list[Wave], scorer: DnsmosScorer) -> float:
    """The mean DNSMOS P.808 of clips that are long enough."""
    audio = (scorer.prepare(wave, 16_000) for wave in waves)
    return float(np.mean([scorer.p808(one) for one in audio if one is not None]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("codec", type=Path)
    parser.add_argument("--voice", type=Path, required=True, help="a kept.jsonl of the voice")
    parser.add_argument("--samples", type=Path, nargs="*", default=[], help="of other speakers")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--whisper", nargs="+", default=[PACKAGED])
    options = parser.parse_args()

    codec, encoder, dnsmos = Codec.load(options.codec), SpeakerEncoder(), DnsmosScorer()
    voice = speaker_of(options.voice, encoder)
    names = [f"WER by {name or 'tiny.en'}" for name in options.whisper]
    columns = ["corpus", "clips", *names, "P.808", "similarity to the voice", "to the speaker"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    transcribers = [Transcriber(name, batch_size=1, threads=1) for name in options.whisper]
    for path in (options.voice, *options.samples):
        waves, texts = held_out(path, options.clips)
        made = [codec.decode([codec.encode([wave])[0]])[0] for wave in waves]
        rates = [
            f"{wer(waves, texts, one):.1%} → {wer(made, texts, one):.1%}" for one in transcribers
        ]
        quality = [mean_p808(clips, dnsmos) for clips in (waves, made)]
        speakers = [voice, speaker_of(path, encoder)]
        alike = embeddings(made, encoder) @ np.stack(speakers).T
        cells = [path.parents[1].name, str(len(waves)), *rates]
        cells += [f"{quality[0]:.2f} → {quality[1]:.2f}"]
        cells += [f"{one:.2f}" for one in alike.mean(axis=0)]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
