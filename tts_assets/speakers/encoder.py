"""The speaker encoder for whoever needs a voice as numbers.

    encoder = VoiceEncoder.load(Path("storage/speaker_encoder/all/current"))
    encoder.wav_to_embedding(Path("clip.wav"))    # float32 [256], of length 1

:func:`open_voices` opens whatever a configuration names.

``python -m tts_assets.speakers.encoder ENCODER CLIP…`` prints the cosine of every pair.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tts_assets.audio_models.speaker_similarity import SpeakerEncoder, Voices
from tts_assets.core.audio import Wave, blocks
from tts_assets.speakers.audio import Mels, preprocess, preprocess_wav, windows
from tts_assets.speakers.config import RESEMBLYZER, resolve
from tts_assets.speakers.model import EncoderCard, open_encoder

Embedding = NDArray[np.float32]

SHORTEST_SECONDS = 0.3  # of speech: less holds no voice
BATCH = 64  # windows that go through the model together
LONG_SECONDS = 60.0  # of a long recording that are in memory


class NoSpeech(ValueError):
    """A recording with too little speech for an embedding."""


class VoiceEncoder:
    """Recordings to unit vectors; a mean over windows, so of recordings of any length."""

    def __init__(self, model: nn.Module, card: EncoderCard, device: str = "cpu") -> None:
        self.model = model.to(device).eval()
        self.card = card
        self.device = device
        self.mels = Mels(card.audio)

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Self:
        """A folder that this project published, or a public ``.pt`` (``resolve`` finds the one
        that "resemblyzer" names)."""
        return cls(*open_encoder(path), device)

    def preprocess_wav(self, path: Path) -> Wave:
        """The speech of a recording as the encoder hears it, float32 [samples] at 16 kHz."""
        return preprocess_wav(path, self.card.audio)

    def wav_to_embedding(self, path: Path) -> Embedding:
        """The voice of a recording, float32 [256]. Raises NoSpeech, and BrokenAudio."""
        return self._named(path, self.embed_speech(self.preprocess_wav(path)))

    def wavs_to_embeddings(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        """The voices of many recordings, float32 [n, 256], in the order of the paths."""
        voices = self.embed_many(self.preprocess_wav(path) for path in paths)
        named = [self._named(path, voice) for path, voice in zip(paths, voices, strict=True)]
        return np.stack(named)

    def long_wav_to_embedding(self, path: Path) -> Embedding:
        """The voice of a recording of any length, a minute of it in memory at a time.

        Loudness is evened a minute at a time, too.
        """
        total = np.zeros(self.card.architecture.embedding, dtype=np.float64)
        for wave, rate in minutes(path):
            speech = preprocess(wave, rate, self.card.audio)
            if len(speech) >= SHORTEST_SECONDS * self.card.audio.sample_rate:
                total += self._windows([speech])[0].sum(axis=0)
        return self._named(path, unit(total) if np.any(total) else None)

    def embed(self, wave: Wave, rate: int) -> Embedding | None:
        """The voice of a mono wave; None if it holds less than 0.3 s of speech."""
        return self.embed_speech(preprocess(wave, rate, self.card.audio))

    def embed_all(self, clips: Sequence[tuple[Wave, int]]) -> list[Embedding | None]:
        """The voices of mono waves with their rates in Hz, as :meth:`embed` gives each."""
        return [*self.embed_many(preprocess(wave, rate, self.card.audio) for wave, rate in clips)]

    def embed_speech(self, speech: Wave) -> Embedding | None:
        """The voice of what :meth:`preprocess_wav` gave."""
        return next(self.embed_many([speech]))

    def embed_many(self, speech: Iterable[Wave]) -> Iterator[Embedding | None]:
        """The voices of many preprocessed waves; the model sees windows of several together."""
        shortest = SHORTEST_SECONDS * self.card.audio.sample_rate
        batch: list[Wave | None] = []
        for wave in speech:
            batch.append(wave if len(wave) >= shortest else None)
            if len(batch) == BATCH:
                yield from self._voices(batch)
                batch = []
        yield from self._voices(batch)

    def _voices(self, batch: Sequence[Wave | None]) -> Iterator[Embedding | None]:
        found = iter(self._windows([wave for wave in batch if wave is not None]))
        for wave in batch:
            yield None if wave is None else unit(next(found).mean(axis=0))

    def _windows(self, waves: Sequence[Wave]) -> list[NDArray[np.float32]]:
        """For each wave the embeddings of its windows, [n, 256]."""
        if not waves:
            return []
        cut = [windows(wave, self.mels) for wave in waves]
        with torch.no_grad():
            parts = torch.cat(cut).split(BATCH)
            made = torch.cat([self.model(part.to(self.device)).cpu() for part in parts])
        return [part.numpy() for part in made.split([len(some) for some in cut])]

    def _named(self, path: Path, voice: Embedding | None) -> Embedding:
        if voice is None:
            raise NoSpeech(f"{path} holds less than {SHORTEST_SECONDS} s of speech")
        return voice


def open_voices(name: str, device: str = "cpu") -> Voices:
    """The encoder that ``name`` means: "resemblyzer", or the path of a folder or a ``.pt``."""
    if name == RESEMBLYZER:
        return SpeakerEncoder(device)
    return VoiceEncoder.load(Path(name), device)


def unit(vector: NDArray[np.floating]) -> Embedding:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def minutes(path: Path) -> Iterator[tuple[Wave, int]]:
    """A file as mono waves of about a minute, with their rate."""
    parts: list[Wave] = []
    rate = 0
    for block in blocks(path):
        parts.append(block.frames.mean(axis=1, dtype=np.float32))
        rate = block.rate
        if sum(map(len, parts)) >= LONG_SECONDS * rate:
            yield np.concatenate(parts), rate
            parts = []
    if parts:
        yield np.concatenate(parts), rate


def main() -> None:
    parser = argparse.ArgumentParser(description="Whose voices are alike: the cosine of each pair.")
    parser.add_argument("encoder", help="a folder, a .pt, or resemblyzer")
    parser.add_argument("clips", type=Path, nargs="+")
    arguments = parser.parse_args()
    encoder = VoiceEncoder.load(resolve(arguments.encoder, Path()))
    voices = encoder.wavs_to_embeddings(arguments.clips)
    for path, row in zip(arguments.clips, voices @ voices.T, strict=True):
        print(path, *(f"{cosine:.3f}" for cosine in row))


if __name__ == "__main__":
    main()
