"""What a Whisper of ``transformers`` hears: the same rules as ``transcription.py``.

For models that nobody has converted for CTranslate2: a Whisper that was fine-tuned on one's own
language or domain. It always reads 30 s; a longer clip is read in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from tts_assets.hearing.transcription import (
    TOKENS_PER_SECOND,
    WHISPER_RATE,
    Clip,
    at_whisper_rate,
    pieces_of,
)

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
