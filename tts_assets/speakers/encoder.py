"""Speaker embeddings of recordings.

    encoder = VoiceEncoder.load(Path("storage/speaker_encoder/all/current"))
    encoder.wav_to_embedding("clip.wav")    # float32 (256,), norm 1

:func:`preprocess_wav` and :func:`wav_to_embedding` do the same with Resemblyzer's public weights.
:func:`open_voices` opens the encoder that a configuration names.

``python -m tts_assets.speakers.encoder ENCODER CLIP…`` prints the cosine similarity of every pair.
With ``--trials veri_test.txt --root FOLDER`` it prints the error rates of a trial list of VoxCeleb.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from tts_assets.audio_models.speaker_similarity import (
    OnnxEncoder,
    SpeakerEmbedder,
    SpeakerEncoder,
    XVectorEncoder,
)
from tts_assets.core.audio import Wave, blocks
from tts_assets.core.config import ConfigError
from tts_assets.speakers.audio import Mels, Recording, preprocess, preprocess_wav, windows
from tts_assets.speakers.config import RESEMBLYZER, resolve
from tts_assets.speakers.dataset import P_TARGET, Errors, errors, read_trials, score_trials
from tts_assets.speakers.model import EncoderCard, open_encoder

Embedding = NDArray[np.float32]

SHORTEST_SECONDS = 0.3  # of speech; less is not enough for an embedding
BATCH = 64  # windows in one forward pass
LONG_SECONDS = 60.0  # of a long recording in memory at a time


class NoSpeech(ValueError):
    """A recording has too little speech for an embedding."""


class VoiceEncoder:
    """Embeds recordings of any length: the normalized mean over the embeddings of windows."""

    def __init__(self, model: nn.Module, card: EncoderCard, device: str = "cpu") -> None:
        self.model = model.to(device).eval()
        self.card = card
        self.device = device
        self.mels = Mels(card.audio)

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Self:
        """Open a folder of this project, or a public ``.pt``.

        :func:`~tts_assets.speakers.config.resolve` returns the path of "resemblyzer". Raises
        ConfigError if ``path`` is no encoder.
        """
        return cls(*open_encoder(path), device)

    def preprocess_wav(self, path: Recording) -> Wave:
        """The speech of a recording after preprocessing, float32 (samples,) at 16 kHz."""
        return preprocess_wav(path, self.card.audio)

    def wav_to_embedding(self, path: Recording) -> Embedding:
        """The embedding of a recording, float32 (256,). Raises NoSpeech or BrokenAudio."""
        return self._require(path, self.embed_speech(self.preprocess_wav(path)))

    def wavs_to_embeddings(self, paths: Sequence[Recording]) -> NDArray[np.float32]:
        """The embeddings of many recordings, float32 (n, 256). Raises NoSpeech or BrokenAudio."""
        found = self.embed_many(self.preprocess_wav(path) for path in paths)
        return np.stack([self._require(path, one) for path, one in zip(paths, found, strict=True)])

    def long_wav_to_embedding(self, path: str | Path) -> Embedding:
        """The embedding of a long recording, with one minute of it in memory at a time.

        The loudness is normalized per minute, too. Raises NoSpeech or BrokenAudio.
        """
        total = np.zeros(self.card.architecture.embedding, dtype=np.float64)
        for wave, rate in minutes(Path(path)):
            speech = preprocess(wave, rate, self.card.audio)
            if len(speech) >= SHORTEST_SECONDS * self.card.audio.sample_rate:
                total += self._windows([speech])[0].sum(axis=0)
        return self._require(path, unit(total) if np.any(total) else None)

    def embed(self, wave: Wave, rate: int) -> Embedding | None:
        """The embedding of a mono wave at ``rate`` Hz; None with less than 0.3 s of speech."""
        return self.embed_speech(preprocess(wave, rate, self.card.audio))

    def embed_all(self, clips: Sequence[tuple[Wave, int]]) -> list[Embedding | None]:
        """The embeddings of mono waves with their rates in Hz; see :meth:`embed`."""
        return [*self.embed_many(preprocess(wave, rate, self.card.audio) for wave, rate in clips)]

    def embed_speech(self, speech: Wave) -> Embedding | None:
        """The embedding of a wave that :meth:`preprocess_wav` returned."""
        return next(self.embed_many([speech]))

    def embed_many(self, speech: Iterable[Wave]) -> Iterator[Embedding | None]:
        """Yield the embeddings of preprocessed waves; windows of several waves share a batch."""
        shortest = SHORTEST_SECONDS * self.card.audio.sample_rate
        batch: list[Wave | None] = []
        for wave in speech:
            batch.append(wave if len(wave) >= shortest else None)
            if len(batch) == BATCH:
                yield from self._embeddings(batch)
                batch = []
        yield from self._embeddings(batch)

    def _embeddings(self, batch: Sequence[Wave | None]) -> Iterator[Embedding | None]:
        found = iter(self._windows([wave for wave in batch if wave is not None]))
        for wave in batch:
            yield None if wave is None else unit(next(found).mean(axis=0))

    def _windows(self, waves: Sequence[Wave]) -> list[NDArray[np.float32]]:
        """The embeddings of the windows of each wave, (n, 256)."""
        if not waves:
            return []
        cut = [windows(wave, self.mels) for wave in waves]
        with torch.no_grad():
            parts = torch.cat(cut).split(BATCH)
            made = torch.cat([self.model(part.to(self.device)).cpu() for part in parts])
        return [part.numpy() for part in made.split([len(some) for some in cut])]

    def _require(self, path: Recording, embedding: Embedding | None) -> Embedding:
        if embedding is None:
            what = "the wave" if isinstance(path, np.ndarray) else path
            raise NoSpeech(f"{what} holds less than {SHORTEST_SECONDS} s of speech")
        return embedding


@cache
def public_encoder() -> VoiceEncoder:
    """Resemblyzer's public weights on the CPU, loaded once."""
    return VoiceEncoder.load(resolve(RESEMBLYZER, Path()))


def wav_to_embedding(path: Recording) -> Embedding:
    """The embedding of a recording by Resemblyzer's public weights, float32 (256,), of norm 1.

    ``path`` may also be a mono wave at 16 kHz. Raises NoSpeech or BrokenAudio.
    """
    return public_encoder().wav_to_embedding(path)


def evaluate_trials(encoder: VoiceEncoder, trials: Path, root: Path) -> tuple[Errors, int, int]:
    """The error rates of a trial list, its trials, and how many were left out for lack of speech.

    The names of the list are relative to ``root``. Raises ConfigError for a line that is no trial
    and for files that do not exist.
    """
    listed = read_trials(trials)
    names = list(dict.fromkeys(name for trial in listed for name in (trial.a, trial.b)))
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise ConfigError(
            f"{trials} names {len(missing)} of {len(names)} files that do not exist below {root}, "
            f"for example {missing[0]}: --root is the folder with the folders of the speakers"
        )
    speech = (encoder.preprocess_wav(root / name) for name in tqdm(names, unit="clip"))
    found = dict(zip(names, encoder.embed_many(speech), strict=True))
    known = {name: one for name, one in found.items() if one is not None}
    used = [trial for trial in listed if trial.a in known and trial.b in known]
    rates = errors(score_trials(used, known), [trial.same for trial in used], P_TARGET)
    return rates, len(listed), len(listed) - len(used)


def open_voices(name: str, device: str = "cpu") -> SpeakerEmbedder:
    """The encoder ``name``: "resemblyzer", or the path of a folder, a ``.pt`` or an ``.onnx``.

    The folder may hold a WavLM with an x-vector head, the ONNX file an encoder of WeSpeaker.
    """
    if name == RESEMBLYZER:
        return SpeakerEncoder(device)
    if XVectorEncoder.is_in(Path(name)):
        return XVectorEncoder(Path(name), device)
    if Path(name).suffix == ".onnx":
        return OnnxEncoder(Path(name))
    return VoiceEncoder.load(Path(name), device)


def unit(vector: NDArray[np.floating]) -> Embedding:
    """The vector (n,) divided by its norm, float32."""
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def minutes(path: Path) -> Iterator[tuple[Wave, int]]:
    """Yield a file as mono waves of about a minute, with their rate in Hz."""
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


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Print the speaker similarity of every pair.")
    parser.add_argument("encoder", help="a folder, a .pt, or resemblyzer")
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--trials", type=Path, help="a list of VoxCeleb: 1 a.wav b.wav")
    parser.add_argument("--root", type=Path, default=Path(), help="where its paths start")
    arguments = parser.parse_args(argv)
    if bool(arguments.trials) == bool(arguments.clips):
        parser.error("give clips, or --trials")
    encoder = VoiceEncoder.load(resolve(arguments.encoder, Path()))
    if arguments.trials:
        rates, trials, left_out = evaluate_trials(encoder, arguments.trials, arguments.root)
        print(f"EER {rates.eer:.2%}, minDCF({P_TARGET}) {rates.min_dcf:.4f}, {trials} trials")
        if left_out:
            print(f"{left_out} trials left out: a recording has too little speech")
        return
    embeddings = encoder.wavs_to_embeddings(arguments.clips)
    for path, row in zip(arguments.clips, embeddings @ embeddings.T, strict=True):
        print(path, *(f"{cosine:.3f}" for cosine in row))


if __name__ == "__main__":
    main()
