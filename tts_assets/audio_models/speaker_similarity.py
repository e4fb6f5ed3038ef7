"""Whose voice it is: cosine of GE2E speaker embeddings (the encoder of ``resemblyzer``).

Two clips of one speaker are at 0.8 to 0.95, of two speakers at 0.5 to 0.7; the channel counts
too. An embedding is the unit vector of shape (256,) that the encoder gives for a clip at 16 kHz,
silences shortened. Source: Wan et al., Generalized end-to-end loss (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tts_assets.core.audio import resample

RATE = 16_000
SHORTEST_SECONDS = 0.3  # of speech, after silences are cut
# resemblyzer's own, in embed_utterance
WINDOWS_PER_SECOND = 1.3
SHORTEST_COVERED = 0.75  # of the last window
Embedding = NDArray[np.float32]


class Voices(Protocol):
    """An encoder of voices: this one, or one of ``tts_assets/speakers``."""

    def embed(self, wave: NDArray[np.float32], rate: int) -> Embedding | None: ...

    def embed_all(
        self, clips: Sequence[tuple[NDArray[np.float32], int]]
    ) -> list[Embedding | None]: ...


class SpeakerEncoder:
    """resemblyzer's pretrained GE2E encoder; the weights lie in its package."""

    def __init__(self, device: str = "cpu") -> None:
        from resemblyzer import VoiceEncoder

        self.encoder = VoiceEncoder(device, verbose=False)

    def embed(self, wave: NDArray[np.float32], rate: int) -> Embedding | None:
        """The voice of a mono clip; None if it holds less than 0.3 s of speech."""
        return self.embed_all([(wave, rate)])[0]

    def embed_all(self, clips: Sequence[tuple[NDArray[np.float32], int]]) -> list[Embedding | None]:
        """The voices of clips with their rates in Hz, all windows of them in one batch."""
        import torch

        parts = [self._parts(wave, rate) for wave, rate in clips]
        frames = [part for part in parts if part is not None]
        if not frames:
            return [None] * len(clips)
        with torch.no_grad():
            batch = torch.from_numpy(np.concatenate(frames)).to(self.encoder.device)
            embedded = self.encoder(batch).cpu().numpy()
        ends = np.cumsum([len(part) for part in frames])
        of_clips = iter(np.split(embedded, ends[:-1]))
        return [None if part is None else _direction(next(of_clips)) for part in parts]

    def _parts(self, wave: NDArray[np.float32], rate: int) -> NDArray[np.float32] | None:
        """Mel frames of the windows of a clip, shape (windows, 160, 40)."""
        from resemblyzer.audio import preprocess_wav, wav_to_mel_spectrogram

        at_rate = wave if rate == RATE or not len(wave) else resample(wave, rate, RATE)
        audio = np.clip(at_rate, -1.0, 1.0)
        if len(audio) < SHORTEST_SECONDS * RATE or not np.any(audio):
            return None
        speech = preprocess_wav(audio)
        if len(speech) < SHORTEST_SECONDS * RATE:
            return None
        of_wave, of_mel = self.encoder.compute_partial_slices(
            len(speech), WINDOWS_PER_SECOND, SHORTEST_COVERED
        )
        missing = max(0, of_wave[-1].stop - len(speech))
        mel = wav_to_mel_spectrogram(np.pad(speech, (0, missing)))
        return np.stack([mel[part] for part in of_mel])


def _direction(windows: NDArray[np.float32]) -> Embedding:
    """The mean of a clip's windows, shape (windows, 256), as a unit vector."""
    mean = windows.mean(axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


class SpeakerSimilarity:
    """How near a clip's voice is to the mean voice of reference clips."""

    def __init__(
        self, encoder: Voices, references: Sequence[tuple[NDArray[np.float32], int]]
    ) -> None:
        """``references``: waves, shape (samples,), of one speaker with their rates in Hz; at least
        one of them must hold speech."""
        found = [encoder.embed(wave, rate) for wave, rate in references]
        voices = [embedding for embedding in found if embedding is not None]
        if not voices:
            raise ValueError(
                f"none of the {len(references)} reference clips holds {SHORTEST_SECONDS} s of "
                "speech: give longer clips of the speaker"
            )
        self.encoder = encoder
        mean = np.mean(voices, axis=0)
        self.voice = mean / np.linalg.norm(mean)

    def __call__(self, wave: NDArray[np.float32], rate: int) -> float | None:
        """Cosine to the reference voice, -1 to 1; None if the clip holds too little speech."""
        embedding = self.encoder.embed(wave, rate)
        return None if embedding is None else float(np.dot(embedding, self.voice))
