"""Preprocessing of a speaker encoder: 16 kHz, loudness normalization, VAD, mels every 10 ms.

With :data:`~tts_assets.speakers.config.PUBLIC_AUDIO` it equals Resemblyzer's up to rounding.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import webrtcvad
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from tts_assets.core.audio import Wave, read_clip, resample
from tts_assets.corpora.segments.speech import measure
from tts_assets.speakers.config import AudioSettings

INT16 = 2**15 - 1
VAD_MS = 30  # audio of one decision
VAD_MODE = 3  # the most aggressive of 0 to 3
VAD_AVERAGE = 8  # decisions in the moving average
VAD_SILENCE = 6  # decisions of silence that are kept
SILERO_THRESHOLD = 0.5  # probability of speech, silero's own default
SILERO_PAUSE = 0.2  # s; shorter pauses are kept
SILERO_MARGIN = 0.1  # s kept around speech
COVERED = 0.75  # fraction of the last window that audio must cover
LOG_FLOOR = 1e-6  # of the power; digital silence is -13.8


def preprocess_wav(path: Path, settings: AudioSettings) -> Wave:
    """The speech of a recording, float32 (samples,) at 16 kHz; empty if there is none.

    Raises :class:`~tts_assets.core.audio.BrokenAudio`.
    """
    clip = read_clip(path)
    return preprocess(clip.wave, clip.rate, settings)


def preprocess(wave: Wave, rate: int, settings: AudioSettings) -> Wave:
    """The speech of a mono wave at ``rate`` Hz, float32 (samples,) at 16 kHz; may be empty."""
    if rate != settings.sample_rate and len(wave):
        wave = resample(wave, rate, settings.sample_rate)
    if not np.any(wave):
        return np.zeros(0, dtype=np.float32)
    wave = normalize_loudness(wave, settings)
    if settings.vad == "none":
        return wave
    shorten = shorten_silences if settings.vad == "webrtc" else only_speech
    return shorten(wave, settings.sample_rate)


def normalize_loudness(wave: Wave, settings: AudioSettings) -> Wave:
    """The wave (not all zeros), amplified to ``settings.loudness``."""
    gain = 10 ** ((settings.loudness - loudness_of(wave, settings)) / 20)
    if settings.only_louder and gain < 1:
        return wave
    return (wave * gain).astype(np.float32)


def loudness_of(wave: Wave, settings: AudioSettings) -> float:
    """The loudness in the unit of the settings; RMS if EBU R128 has none (below 0.4 s)."""
    if settings.unit == "lufs":
        measured = measure(wave, settings.sample_rate)
        if measured is not None:
            return measured.integrated
    return 10 * math.log10(float(np.mean(np.square(wave, dtype=np.float64))))


def only_speech(wave: Wave, rate: int) -> Wave:
    """The parts of the wave that Silero VAD detects as speech, and 0.1 s around them."""
    from tts_assets.corpora.segments.speech import find_speech  # the import takes a second

    kept = np.zeros(len(wave), dtype=np.bool_)
    for part in find_speech(wave, SILERO_THRESHOLD, SILERO_PAUSE):
        first = max(0.0, part.start - SILERO_MARGIN)
        kept[round(first * rate) : round((part.end + SILERO_MARGIN) * rate)] = True
    return wave[kept]


def shorten_silences(wave: Wave, rate: int) -> Wave:
    """The wave without parts farther than about 0.1 s from speech, by WebRTC's VAD."""
    size = VAD_MS * rate // 1000
    wave = wave[: len(wave) // size * size]
    if not len(wave):
        return wave
    pcm = np.round(np.clip(wave, -1, 1) * INT16).astype(np.int16).reshape(-1, size)
    vad = webrtcvad.Vad(VAD_MODE)
    speech = np.array([vad.is_speech(part.tobytes(), rate) for part in pcm], dtype=np.float64)
    averaged = np.convolve(speech, np.full(VAD_AVERAGE, 1 / VAD_AVERAGE))
    start = VAD_AVERAGE // 2
    kept = np.round(averaged[start : start + len(pcm)])
    near = np.convolve(kept, np.ones(VAD_SILENCE + 1))[VAD_SILENCE // 2 :][: len(pcm)] > 0.5
    return wave[np.repeat(near, size)]


class Mels(nn.Module):
    """A mel spectrogram as librosa computes it, centred and zero-padded."""

    bank: Tensor
    taper: Tensor

    def __init__(self, settings: AudioSettings) -> None:
        super().__init__()
        self.settings = settings
        bank = mel_filter_bank(
            num_frequency_bins=settings.n_fft // 2 + 1,
            num_mel_filters=settings.mels,
            min_frequency=settings.low_hz,
            max_frequency=settings.high_hz,
            sampling_rate=settings.sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("bank", torch.tensor(bank, dtype=torch.float32), persistent=False)
        self.register_buffer("taper", torch.hann_window(settings.window), persistent=False)

    @torch.no_grad()
    def forward(self, waves: Tensor) -> Tensor:
        """Waves (batch, samples) to mels or log-mels (batch, frames, bands)."""
        settings = self.settings
        spectrum = torch.stft(
            waves,
            settings.n_fft,
            settings.hop,
            settings.window,
            self.taper,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.abs().square().transpose(1, 2)
        mels = power @ self.bank
        return mels.clamp_min(LOG_FLOOR).log() if settings.log else mels


def windows(wave: Wave, mels: Mels) -> Tensor:
    """The model's input for a preprocessed wave that is not empty: (n, window_frames, bands).

    Audio must cover three quarters of the last window, unless it is the only one.
    """
    settings = mels.settings
    size, step, hop = settings.window_frames, settings.step_frames, settings.hop
    frames = -(-(len(wave) + 1) // hop)
    starts = list(range(0, max(1, frames - size + step + 1), step))
    if len(starts) > 1 and len(wave) / hop - starts[-1] < COVERED * size:
        starts.pop()
    needed = starts[-1] + size
    if settings.short == "zeros":
        wave = np.pad(wave, (0, max(0, needed * hop - len(wave))))
    filled = fill(mels_of(wave, mels), needed, settings)
    return centred(torch.stack([filled[start : start + size] for start in starts]), settings)


def mels_of(wave: Wave, mels: Mels) -> Tensor:
    """Mels (frames, bands) of one preprocessed wave."""
    return mels(torch.from_numpy(wave)[None])[0]


def fill(mels: Tensor, frames: int, settings: AudioSettings) -> Tensor:
    """Mels (frames, bands), extended to ``frames`` with silence or with the recording again."""
    missing = frames - len(mels)
    if missing <= 0:
        return mels
    if settings.short == "repeat":
        return mels.repeat(-(-frames // len(mels)), 1)[:frames]
    silence = math.log(LOG_FLOOR) if settings.log else 0.0
    return nn.functional.pad(mels, (0, 0, 0, missing), value=silence)


def centred(crops: Tensor, settings: AudioSettings) -> Tensor:
    """Crops (batch, frames, bands), minus the mean of each band if the settings say so."""
    return crops - crops.mean(dim=1, keepdim=True) if settings.centre else crops
