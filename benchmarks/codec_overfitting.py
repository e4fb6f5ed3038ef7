"""The over-fitting of a demo codec: quality on training clips and on held-out clips.

    python benchmarks/codec_overfitting.py examples/codecs/announcer-16khz

It reports log-mel L1, and the cross-entropy of Whisper tiny.en for the true text, in nats per token
above the recordings. The cross-entropy varies less than the WER, because the text is given. 200
tokens are few all the same: codecs of equal quality differ by 0.01.
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
from tts_assets.core.accounting import is_validation
from tts_assets.core.audio import Wave, read_wave
from tts_assets.corpora.samples import Sample

LONGEST = 12.0  # seconds
TRAINED = 100  # clips of the training, one in five
REPEATS = {"held out": 4, "trained": 1}  # a third as many clips are held out
UNLIKELY = 1e-5  # least probability of a token, so that a single one does not dominate

Through = Callable[[Sequence[Wave]], Sequence[Wave]]


class CrossEntropy:
    """The cross-entropy of Whisper tiny.en for a text and a waveform: nats, and tokens."""

    def __init__(self) -> None:
        self.whisper = WhisperModel(str(packaged_model()), compute_type="int8")
        self.start = [self.whisper.hf_tokenizer.token_to_id("<|startoftranscript|>")]

    def __call__(self, wave: Wave, text: str) -> tuple[float, int]:
        features = self.whisper.feature_extractor(wave)
        encoded = self.whisper.encode(pad_or_trim(features))
        tokens = self.whisper.hf_tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids
        [aligned] = self.whisper.model.align(encoded, self.start, [tokens], [features.shape[-1]])
        nats = -sum(math.log(max(p, UNLIKELY)) for p in aligned.text_token_probs)
        return nats, len(tokens)


def clips() -> dict[str, list[Sample]]:
    short = [sample for sample in demo_samples() if sample.duration <= LONGEST]
    held_out = [sample for sample in short if is_validation(sample.id, SPLIT)]
    trained = [sample for sample in short if not is_validation(sample.id, SPLIT)]
    return {"held out": held_out, "trained": trained[:: len(trained) // TRAINED][:TRAINED]}


def shifted_waves(samples: Sequence[Sample], times: int) -> Iterator[list[Wave]]:
    """Yield the waveforms, each time starting a fraction of a code later."""
    waves = [read_wave(Path(sample.wav_path), SAMPLE_RATE) for sample in samples]
    for start in range(0, HOP, HOP // times):
        yield [wave[start:] for wave in waves]


def metrics(
    cross_entropy: CrossEntropy, samples: Sequence[Sample], times: int, through: Through
) -> tuple[float, float]:
    """Log-mel L1, and nats per token."""
    spectral = SpectralLoss()
    nats = tokens = distance = length = 0.0
    for waves in shifted_waves(samples, times):
        for wave, made, sample in zip(waves, through(waves), samples, strict=True):
            found, count = cross_entropy(made, sample.transcript)
            nats, tokens = nats + found, tokens + count
            shared = min(len(wave), len(made))
            pair = (torch.from_numpy(clip[:shared]).unsqueeze(0) for clip in (made, wave))
            distance, length = distance + float(spectral(*pair)[1]) * shared, length + shared
    return distance / length, nats / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("codecs", type=Path, nargs="+")
    arguments = parser.parse_args()
    cross_entropy, groups = CrossEntropy(), clips()

    def measured(name: str, through: Through) -> tuple[float, float]:
        return metrics(cross_entropy, groups[name], REPEATS[name], through)

    recordings = {name: measured(name, lambda waves: waves)[1] for name in groups}
    print("| codec | clips | log-mel L1 | nats per token above the recordings |")
    print("|---|---|---|---|")
    for folder in arguments.codecs:
        codec = Codec.load(folder)
        for name, group in groups.items():
            mel, nats = measured(name, lambda waves, c=codec: c.decode(c.encode(waves)))
            above = nats - recordings[name]
            print(f"| {folder} | {len(group)} {name} | {mel:.3f} | {above:.3f} |", flush=True)


if __name__ == "__main__":
    main()
