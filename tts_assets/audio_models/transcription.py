"""What Whisper hears: clips in, texts out, the same texts every time.

Greedy or beam search at temperature 0, without the fallback to sampling, without timestamps, and
without the previous window's text as context: one clip's transcript depends on nothing else.
Runs through CTranslate2 (``faster-whisper``).

What a Whisper of ``transformers`` hears: the same rules as ``transcription.py``.

For models that nobody has converted for CTranslate2: a Whisper that was fine-tuned on one's own
language or domain. It always reads 30 s; a longer clip is read in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import ctranslate2
import numpy as np
import soxr
import torch
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from numpy.typing import NDArray
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from tts_assets.audio_models.whisper import PACKAGED, packaged_model

Clip: TypeAlias = tuple[NDArray[np.float32], int]
"""A mono waveform, shape (samples,), and its sample rate in Hz."""

WHISPER_RATE = 16_000
FRAMES_PER_SECOND = 100
TOKENS_PER_SECOND = 12  # fast speech has 6: only babble and repetition loops reach this


class Transcriber:
    """Whisper as a deterministic function of a clip.

    ``model``: empty for the packaged tiny.en; else the path of a CTranslate2 model, or a name on
    the Hugging Face hub ("large-v3"). ``window_seconds`` below Whisper's 30 s are faster in
    proportion where clips are that short; a clip longer than the window is read in as many
    windows as it needs, cut at the quietest place. ``threads`` 0: CTranslate2's own choice;
    ``parallel`` calls from as many threads run at once. ``device``: "cpu", "cuda" or "cuda:<n>".
    """

    def __init__(
        self,
        model: str = PACKAGED,
        *,
        language: str = "en",
        beam_size: int = 5,
        window_seconds: float = 30.0,
        batch_size: int = 8,
        threads: int = 0,
        parallel: int = 1,
        device: str = "cpu",
    ) -> None:
        name = model or str(packaged_model())
        kind, _, index = device.partition(":")
        self.whisper = WhisperModel(
            name,
            device=kind,
            device_index=int(index or 0),
            compute_type="int8" if kind == "cpu" else "float16",
            cpu_threads=threads,
            num_workers=parallel,
            local_files_only=Path(name).is_dir(),
        )
        self.name = model or "tiny.en"
        self.language = language
        self.tokenizer = self._tokenizer(language)
        self.beam_size = beam_size
        self.batch_size = batch_size
        self.frames = round(window_seconds * FRAMES_PER_SECOND)
        self.max_tokens = min(448, round(window_seconds * TOKENS_PER_SECOND))

    def __call__(self, clips: Sequence[Clip], languages: Sequence[str] = ()) -> list[str]:
        """Transcribe each clip; a clip in which nothing is heard gives ``""``.

        ``languages``: one a clip, where they are not all :attr:`language`.
        """
        spoken = languages or [self.language] * len(clips)
        prompts = {language: self._prompt(language) for language in sorted(set(spoken))}
        longest = self.frames * WHISPER_RATE // FRAMES_PER_SECOND
        pieces: list[NDArray[np.float32]] = []
        owners: list[int] = []
        for number, (wave, rate) in enumerate(clips):
            for piece in pieces_of(at_whisper_rate(wave, rate), longest):
                pieces.append(piece)
                owners.append(number)
        heard: list[list[str]] = [[] for _ in clips]
        for start in range(0, len(pieces), self.batch_size):
            stop = start + self.batch_size
            own = [prompts[spoken[owner]] for owner in owners[start:stop]]
            texts = self._transcribe(pieces[start:stop], own)
            for owner, text in zip(owners[start:stop], texts, strict=True):
                heard[owner].append(text)
        return [" ".join(text for text in texts if text) for texts in heard]

    def _tokenizer(self, language: str) -> Tokenizer:
        """Raises ValueError for a language that the model does not know."""
        multilingual = self.whisper.model.is_multilingual
        if not multilingual and language != "en":
            raise ValueError(
                f"Whisper model {self.name!r} knows English only, but the language is "
                f"{language!r}: name a multilingual model, for example 'large-v3'"
            )
        return Tokenizer(
            self.whisper.hf_tokenizer, multilingual, task="transcribe", language=language
        )

    def _prompt(self, language: str) -> list[int]:
        """What comes before the text: of one length in all languages."""
        prompt = self.whisper.get_prompt(self._tokenizer(language), [], without_timestamps=True)
        return list(prompt)

    def _transcribe(
        self, pieces: Sequence[NDArray[np.float32]], prompts: Sequence[list[int]]
    ) -> list[str]:
        features = np.stack([self._features(piece) for piece in pieces])
        results = self.whisper.model.generate(
            ctranslate2.StorageView.from_array(features),
            list(prompts),
            beam_size=self.beam_size,
            max_length=self.max_tokens,
        )
        return [self.tokenizer.decode(result.sequences_ids[0]).strip() for result in results]

    def _features(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-mel of the wave, followed by silence up to the window: (mels, frames)."""
        silence = self.frames * WHISPER_RATE // FRAMES_PER_SECOND - len(wave)
        mel = self.whisper.feature_extractor(np.pad(wave, (0, silence)))
        return np.ascontiguousarray(mel[:, : self.frames], dtype=np.float32)


def at_whisper_rate(wave: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """``wave`` at the 16 kHz that all three evaluation models expect."""
    if wave.ndim != 1:
        raise ValueError(f"expected a mono waveform, got shape {wave.shape}")
    if rate == WHISPER_RATE or not len(wave):
        return wave.astype(np.float32)
    return soxr.resample(wave, rate, WHISPER_RATE).astype(np.float32)


def pieces_of(wave: NDArray[np.float32], longest: int) -> list[NDArray[np.float32]]:
    """A clip at 16 kHz in pieces of at most ``longest`` samples; an empty clip has none."""
    pieces = []
    while len(wave) > longest:
        cut = quietest_place(wave, longest // 2, longest)
        pieces.append(wave[:cut])
        wave = wave[cut:]
    return [*pieces, wave] if len(wave) else pieces


def quietest_place(wave: NDArray[np.float32], start: int, stop: int) -> int:
    """Index in the middle of the quietest 0.2 s of ``wave[start:stop]``."""
    width = WHISPER_RATE // 5
    energy = np.cumsum(np.square(wave[start:stop], dtype=np.float64))
    return start + int(np.argmin(energy[width:] - energy[:-width])) + width // 2


WINDOW_SECONDS = 30
MAX_TOKENS = WINDOW_SECONDS * TOKENS_PER_SECOND


class TransformersTranscriber:
    """Whisper, greedy, as a function of a clip and its language.

    ``model``: a folder, or a name on the Hugging Face hub ("openai/whisper-large-v3"). Half
    precision on a GPU.
    """

    def __init__(self, model: str, *, device: str = "cpu", batch_size: int = 8) -> None:
        self.name = model
        self.device = torch.device(device)
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        loaded = WhisperForConditionalGeneration.from_pretrained(model, dtype=dtype)
        self.whisper = loaded.to(self.device).eval()  # type: ignore[arg-type]
        self.processor = WhisperProcessor.from_pretrained(model)
        self.multilingual = bool(self.whisper.generation_config.is_multilingual)
        self.batch_size = batch_size

    def __call__(self, clips: Sequence[Clip], languages: Sequence[str] = ()) -> list[str]:
        """Transcribe each clip, one of ``languages`` each (English if there are none); a clip in
        which nothing is heard gives ``""``."""
        spoken = languages or ["en"] * len(clips)
        self._check(spoken)
        heard: list[list[str]] = [[] for _ in clips]
        longest = WINDOW_SECONDS * WHISPER_RATE
        pieces = [
            (number, piece)
            for number, (wave, rate) in enumerate(clips)
            for piece in pieces_of(at_whisper_rate(wave, rate), longest)
        ]
        for start in range(0, len(pieces), self.batch_size):
            batch = pieces[start : start + self.batch_size]
            texts = self._transcribe([p for _, p in batch], [spoken[n] for n, _ in batch])
            for (number, _), text in zip(batch, texts, strict=True):
                heard[number].append(text)
        return [" ".join(text for text in texts if text) for texts in heard]

    def _check(self, languages: Sequence[str]) -> None:
        others = sorted(set(languages) - {"en"})
        if others and not self.multilingual:
            raise ValueError(
                f"Whisper model {self.name!r} knows English only, but the language is "
                f"{others[0]!r}: name a multilingual model, for example 'openai/whisper-large-v3'"
            )

    @torch.inference_mode()
    def _transcribe(
        self, pieces: Sequence[NDArray[np.float32]], languages: Sequence[str]
    ) -> list[str]:
        features = self.processor(
            list(pieces), sampling_rate=WHISPER_RATE, return_tensors="pt"
        ).input_features.to(self.device, self.whisper.dtype)
        spoken = {"language": list(languages), "task": "transcribe"} if self.multilingual else {}
        ids = self.whisper.generate(
            features,
            do_sample=False,
            num_beams=1,
            return_timestamps=False,
            max_new_tokens=MAX_TOKENS,
            **spoken,
        )
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]
