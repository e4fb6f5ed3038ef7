"""Speaker similarity: the cosine of speaker embeddings, by default of GE2E (``resemblyzer``).

With GE2E two clips of one speaker have a cosine of about 0.8 to 0.95, clips of two speakers 0.5 to
0.7; other encoders have other scales. The recording channel has an influence as well. An embedding
of GE2E is a unit vector, float32 (256,), of a clip at 16 kHz whose silences are shortened. Source:
Wan et al., Generalized end-to-end loss (2018).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tts_assets.audio_models.pitch import load_librosa
from tts_assets.core.audio import resample
from tts_assets.core.config import ConfigError

RATE = 16_000
BANDS = 80  # of the filter banks of WeSpeaker's encoders
SHORTEST_SECONDS = 0.3  # of speech, after silences are shortened
SHORTEST_XVECTOR = 0.5  # of a clip: its convolutions span 15 frames of 20 ms
# The defaults of resemblyzer's embed_utterance.
WINDOWS_PER_SECOND = 1.3
WINDOW_FRAMES, WINDOW_STEP = 160, 40  # mel frames of 10 ms
TARGET_DB = -30.0  # full scale; quieter speech is amplified to it, as resemblyzer does
SHORTEST_COVERED = 0.75  # fraction of the last window that must be speech
Embedding = NDArray[np.float32]


class SpeakerEmbedder(Protocol):
    """A speaker encoder: :class:`SpeakerEncoder`, or one of ``tts_assets/speakers``."""

    def embed(self, wave: NDArray[np.float32], rate: int) -> Embedding | None:
        """The embedding of a mono clip (samples,) at ``rate`` Hz; None without enough speech."""
        ...

    def embed_all(self, clips: Sequence[tuple[NDArray[np.float32], int]]) -> list[Embedding | None]:
        """The embeddings of clips, each with its sample rate in Hz, in one batch."""
        ...


class SpeakerEncoder:
    """The pretrained GE2E encoder of ``resemblyzer``, whose package contains the weights."""

    def __init__(self, device: str = "cpu") -> None:
        load_librosa()  # which resemblyzer imports
        from resemblyzer import VoiceEncoder

        self.encoder = VoiceEncoder(device, verbose=False)

    def embed(self, wave: NDArray[np.float32], rate: int) -> Embedding | None:
        """The embedding (256,) of a mono clip (samples,) at ``rate`` Hz.

        None if it contains less than 0.3 s of speech.
        """
        return self.embed_all([(wave, rate)])[0]

    def embed_all(self, clips: Sequence[tuple[NDArray[np.float32], int]]) -> list[Embedding | None]:
        """The embeddings of clips with their rates in Hz, from one batch of all their windows."""
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

    def windows(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings of windows of 1.6 s, every 0.4 s: unit vectors (windows, 256).

        ``wave`` is speech at 16 kHz, (samples,), at least one; a shorter one is padded with zeros.
        """
        import torch
        from resemblyzer.audio import normalize_volume, wav_to_mel_spectrogram

        loud = normalize_volume(wave, TARGET_DB, increase_only=True) if np.any(wave) else wave
        mel = wav_to_mel_spectrogram(loud)
        mel = np.pad(mel, ((0, max(0, WINDOW_FRAMES - len(mel))), (0, 0)))
        last = len(mel) - WINDOW_FRAMES
        starts = sorted({*range(0, last + 1, WINDOW_STEP), last})
        batch = np.stack([mel[start : start + WINDOW_FRAMES] for start in starts])
        with torch.no_grad():
            embedded = self.encoder(torch.from_numpy(batch).to(self.encoder.device))
        return np.asarray(embedded.cpu().numpy(), dtype=np.float32)

    def _parts(self, wave: NDArray[np.float32], rate: int) -> NDArray[np.float32] | None:
        """Mel frames of the windows of a clip, float32 (windows, 160, 40)."""
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
    """The mean of the window embeddings (windows, 256) as a unit vector (256,)."""
    mean = windows.mean(axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


class XVectorEncoder:
    """WavLM with an x-vector head in transformers' format, such as microsoft/wavlm-base-plus-sv.

    The embedding is that of the whole clip, with its silences. The folder has the weights as
    safetensors and ``preprocessor_config.json``. Source: Chen et al., WavLM (2022).
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Raises :class:`ConfigError` for a folder that is incomplete or damaged."""
        import torch
        from safetensors import SafetensorError
        from transformers import Wav2Vec2FeatureExtractor, WavLMForXVector

        try:
            self.features = Wav2Vec2FeatureExtractor.from_pretrained(folder)
            model = WavLMForXVector.from_pretrained(folder, use_safetensors=True)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{folder} is incomplete or damaged: {error}") from None
        self.model = model.to(torch.device(device)).eval()  # type: ignore[arg-type]
        self.device = device

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether ``folder`` holds such a model."""
        path = folder / "config.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        return "WavLMForXVector" in (known.get("architectures") or ())

    def embed(self, wave: NDArray[np.float32], rate: int) -> Embedding | None:
        """The embedding of a mono clip (samples,) at ``rate`` Hz; None below 0.5 s.

        None for digital silence, too.
        """
        import torch

        audio = wave if rate == RATE or not len(wave) else resample(wave, rate, RATE)
        if len(audio) < SHORTEST_XVECTOR * RATE or not np.any(audio):
            return None
        inputs = self.features(audio, sampling_rate=RATE, return_tensors="pt").to(self.device)
        with torch.no_grad():
            embedded = self.model(**inputs).embeddings[0].cpu().numpy()
        return _direction(embedded[None])

    def embed_all(self, clips: Sequence[tuple[NDArray[np.float32], int]]) -> list[Embedding | None]:
        """The embeddings of clips, each with its sample rate in Hz, one by one."""
        return [self.embed(wave, rate) for wave, rate in clips]


class OnnxEncoder:
    """An encoder of WeSpeaker as an ONNX file: ResNet, ECAPA-TDNN, CAM++ and others.

    The input ``feats`` are log mel filter banks of Kaldi, (1, frames, 80), of the whole clip with
    its silences, less their mean over the frames; the output ``embs`` is (1, dimension). Source:
    Wang et al., WeSpeaker (2023), and its package ``wespeakerruntime``.
    """

    def __init__(self, file: Path) -> None:
        """Raises :class:`ConfigError` for a file that is damaged, or no such encoder."""
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import (
            Fail,
            InvalidArgument,
            InvalidGraph,
            InvalidProtobuf,
        )

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf) as error:
            raise ConfigError(f"{file} is damaged, or no ONNX file: {error}") from None
        inputs = {one.name: one.shape[-1:] for one in session.get_inputs()}
        outputs = [one.name for one in session.get_outputs()]
        if inputs != {"feats": [BANDS]} or outputs != ["embs"]:
            raise ConfigError(
                f"{file} maps {[*inputs]} to {outputs}, and WeSpeaker's encoders map feats, of "
                f"{BANDS} bands, to embs: download one of its ONNX files"
            )
        self.session = session

    def embed(self, wave: NDArray[np.float32], rate: int) -> Embedding | None:
        """The embedding of a mono clip (samples,) at ``rate`` Hz; None below 0.5 s.

        None for digital silence, too.
        """
        audio = wave if rate == RATE or not len(wave) else resample(wave, rate, RATE)
        if len(audio) < SHORTEST_XVECTOR * RATE or not np.any(audio):
            return None
        frames = filter_banks(audio)
        (embedded,) = self.session.run(None, {"feats": (frames - frames.mean(axis=0))[None]})
        return _direction(embedded)

    def embed_all(self, clips: Sequence[tuple[NDArray[np.float32], int]]) -> list[Embedding | None]:
        """The embeddings of clips, each with its sample rate in Hz, one by one."""
        return [self.embed(wave, rate) for wave, rate in clips]


def filter_banks(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Kaldi's log mel filter banks of audio (samples,) at 16 kHz, (frames, 80), without dither.

    Frames of 25 ms every 10 ms, with a Hamming window, of samples in the range of 16 bits.
    """
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    bank = mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=BANDS,
        min_frequency=20.0,
        max_frequency=RATE / 2,
        sampling_rate=RATE,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    levels = spectrogram(
        audio * 2**15,
        window_function(400, "hamming", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=bank,
        log_mel="log",
        mel_floor=float(np.finfo(np.float32).eps),
        remove_dc_offset=True,
    )
    return np.ascontiguousarray(levels.T, dtype=np.float32)


class SpeakerSimilarity:
    """The cosine of a clip's embedding to the mean embedding of reference clips."""

    def __init__(
        self, encoder: SpeakerEmbedder, references: Sequence[tuple[NDArray[np.float32], int]]
    ) -> None:
        """``references``: waves (samples,) of one speaker, each with its sample rate in Hz.

        Raises ValueError if none of them contains enough speech.
        """
        found = [encoder.embed(wave, rate) for wave, rate in references]
        embeddings = [embedding for embedding in found if embedding is not None]
        if not embeddings:
            raise ValueError(
                f"none of the {len(references)} reference clips contains {SHORTEST_SECONDS} "
                "s of speech: use longer clips of the speaker"
            )
        self.encoder = encoder
        mean = np.mean(embeddings, axis=0)
        self.reference = mean / np.linalg.norm(mean)

    def __call__(self, wave: NDArray[np.float32], rate: int) -> float | None:
        """Cosine to the reference, -1 to 1; None if the clip contains too little speech."""
        embedding = self.encoder.embed(wave, rate)
        return None if embedding is None else float(np.dot(embedding, self.reference))
