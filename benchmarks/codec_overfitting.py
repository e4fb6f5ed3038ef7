"""How much better a codec of the demo's is on clips of its training than on held-out ones.

    python benchmarks/codec_overfitting.py examples/codecs/announcer-16khz

For both: log-mel L1, and how surprised Whisper tiny.en is by the true text, in nats a token above
the recordings. Told the text before, it does not jump from word to word as hearing does; but 200
tokens are few as well: codecs of one quality lie 0.01 apart.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from codec_training import SPLIT, demo_samples
from faster_whisper import WhisperModel
from faster_whisper.audio import pad_or_trim

from tts_assets.audio_models.whisper import packaged_model
from tts_assets.codec.losses import SpectralLoss
from tts_assets.codec.model import Codec
from tts_assets.codec.xcodec2 import HOP, SAMPLE_RATE
from tts_assets.core.audio import Wave, read_wave
from tts_assets.core.split import is_validation
from tts_assets.corpora.samples import Sample

LONGEST = 12.0  # seconds
TRAINED = 100  # clips of the training, one in five
HEARINGS = {"held out": 4, "trained": 1}  # a third as many clips are held out
UNLIKELY = 1e-5  # probability: one token that Whisper never expects is not all that counts

Through = Callable[[Sequence[Wave]], Sequence[Wave]]


class Surprise:
    """Of Whisper tiny.en by a text that is said in a waveform: nats, and tokens of the text."""

    def __init__(self) -> None:
        self.whisper = WhisperModel(str(packaged_model()), compute_type="int8")
        self.start = [self.whisper.hf_tokenizer.token_to_id("<|startoftranscript|>")]

    def __call__(self, wave: Wave, text: str) -> tuple[float, int]:
        features = self.whisper.feature_extractor(wave)
        heard = self.whisper.encode(pad_or_trim(features))
        tokens = self.whisper.hf_tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids
        [aligned] = self.whisper.model.align(heard, self.start, [tokens], [features.shape[-1]])
        nats = -sum(math.log(max(p, UNLIKELY)) for p in aligned.text_token_probs)
        return nats, len(tokens)


def clips() -> dict[str, list[Sample]]:
    short = [sample for sample in demo_samples() if sample.duration <= LONGEST]
    held_out = [sample for sample in short if is_validation(sample.id, SPLIT)]
    trained = [sample for sample in short if not is_validation(sample.id, SPLIT)]
    return {"held out": held_out, "trained": trained[:: len(trained) // TRAINED][:TRAINED]}


def hearings(samples: Sequence[Sample], times: int) -> Iterator[list[Wave]]:
    """The waveforms, begun a part of a code later each time."""
    waves = [read_wave(Path(sample.wav_path), SAMPLE_RATE) for sample in samples]
    for start in range(0, HOP, HOP // times):
        yield [wave[start:] for wave in waves]


def figures(
    surprise: Surprise, samples: Sequence[Sample], times: int, through: Through
) -> tuple[float, float]:
    """Log-mel L1, and nats a token."""
    spectral = SpectralLoss()
    nats = tokens = distance = length = 0.0
    for waves in hearings(samples, times):
        for wave, made, sample in zip(waves, through(waves), samples, strict=True):
            found, count = surprise(made, sample.transcript)
            nats, tokens = nats + found, tokens + count
            shared = min(len(wave), len(made))
            pair = (torch.from_numpy(clip[:shared]).unsqueeze(0) for clip in (made, wave))
            distance, length = distance + float(spectral(*pair)[1]) * shared, length + shared
    return distance / length, nats / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("codecs", type=Path, nargs="+")
    arguments = parser.parse_args()
    surprise, groups = Surprise(), clips()

    def measured(name: str, through: Through) -> tuple[float, float]:
        return figures(surprise, groups[name], HEARINGS[name], through)

    recordings = {name: measured(name, lambda waves: waves)[1] for name in groups}
    print("| codec | clips | log-mel L1 | nats a token above the recordings |")
    print("|---|---|---|---|")
    for folder in arguments.codecs:
        codec = Codec.load(folder)
        for name, group in groups.items():
            mel, nats = measured(name, lambda waves, c=codec: c.decode(c.encode(waves)))
            above = nats - recordings[name]
            print(f"| {folder} | {len(group)} {name} | {mel:.3f} | {above:.3f} |", flush=True)


if __name__ == "__main__":
    main()
