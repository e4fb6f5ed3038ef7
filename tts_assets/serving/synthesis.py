"""Text in, waveform out: prompt, speech tokens, codec.

A voice prompt's codes are decoded together with the completion's and cut off after, as they were
heard together in training: the completion's first sample has the context it was made in. One hop
a code, so the cut is exact.

The same serving model, text, voice, seed and backend give the same samples, whatever else is
asked for in the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tts_assets.artifacts import CodecCheckpoint
from tts_assets.codec.model import Codec
from tts_assets.corpora.normalizer import Normalizer, user_cache
from tts_assets.serving.config import SERVING_FILE, ServingCard, Voice
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request, generate
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.tokenizer import load_tokenizer
from tts_assets.speechlm.vocabulary import SpeechVocabulary, read_vocabulary

Backend = Literal["transformers", "vllm"]
Progress = Callable[[int], None]


class SynthesisError(ValueError):
    """A serving model or a request that cannot be spoken: the message says what to change."""


@dataclass(frozen=True)
class Line:
    """One thing to say. ``seed`` alone decides its random numbers; None: the sampling's.

    ``description`` of the voice is that of training (``speechlm.prompts.describe``).
    """

    text: str
    voice: Voice | None = None
    seed: int | None = None
    description: str = ""


@dataclass(frozen=True)
class Speech:
    """``wave`` is mono float32, shape (hop x codes,). ``ended``: the model said it was done."""

    text: str
    wave: NDArray[np.float32]
    codes: NDArray[np.int64]
    ended: bool


class Engine(Protocol):
    """Token ids in, token ids out."""

    def complete(
        self, requests: Sequence[Request], sampling: SamplingConfig, progress: Progress | None
    ) -> list[Completion]: ...


class TransformersEngine:
    """Batched sampling in this process (``speechlm/generate.py``)."""

    def __init__(self, lm: SpeechLM, batch_size: int = 64) -> None:
        self.lm = lm
        self.batch_size = batch_size

    def complete(
        self, requests: Sequence[Request], sampling: SamplingConfig, progress: Progress | None
    ) -> list[Completion]:
        return generate(self.lm, requests, sampling, batch_size=self.batch_size, progress=progress)


class Synthesizer:
    """A serving model that speaks."""

    def __init__(
        self, card: ServingCard, engine: Engine, prompts: PromptFormat, codec: Codec
    ) -> None:
        self.card = card
        self.engine = engine
        self.prompts = prompts
        self.codec = codec
        self.normalize = Normalizer(card.text, user_cache())

    @classmethod
    def open(
        cls, folder: Path, backend: Backend = "transformers", device: str | None = None
    ) -> Synthesizer:
        """Open a serving model; its tokenizer, its codec and its card must belong together."""
        card = read_card(folder)
        codec = open_codec(folder, card, device or default_device())
        if backend == "vllm":
            from tts_assets.serving.vllm_engine import VllmEngine

            tokenizer = load_tokenizer(str(folder))
            vocabulary = read_vocabulary(tokenizer, card.codebook_size)
            check_vocabulary(folder, card, vocabulary)
            prompts = PromptFormat(tokenizer, vocabulary)
            return cls(card, VllmEngine(folder, vocabulary), prompts, codec)
        lm = open_lm(folder, card, device)
        return cls(card, TransformersEngine(lm), PromptFormat(lm.tokenizer, lm.vocabulary), codec)

    @property
    def sample_rate(self) -> int:
        return self.card.sample_rate

    def voice(self, name: str) -> Voice:
        """A registered voice by name."""
        if name not in self.card.voices:
            known = ", ".join(sorted(self.card.voices)) or "none are registered"
            raise SynthesisError(f"no voice {name!r}; known voices: {known}")
        return self.card.voices[name]

    def new_voice(self, wave: NDArray[np.float32], text: str, language: str = "en") -> Voice:
        """A voice prompt from a clip (mono float32 at ``codec.input_rate``) and what it says."""
        codes = self.codec.encode([wave])[0]
        return Voice(text=self.normalize(text, language), codes=tuple(int(code) for code in codes))

    def request(self, line: Line, seed: int, language: str = "en") -> Request:
        """The prompt of one line as token ids, its text normalized as in training."""
        text = self.normalize(line.text, language)
        if not text:
            raise SynthesisError(f"nothing to say in {line.text!r}: no letters or digits are left")
        voice = line.voice
        prompt = self.prompts.inference(
            text,
            prompt_text=voice.text if voice else "",
            prompt_codes=voice.codes if voice else (),
            voice_description=line.description,
        )
        return Request(prompt, seed if line.seed is None else line.seed)

    def say(
        self,
        lines: Sequence[Line],
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[Speech]:
        """Speak every line; ``progress`` is called with how many more are done."""
        sampling = sampling or self.card.sampling
        requests = [self.request(line, sampling.seed) for line in lines]
        completions = self.engine.complete(requests, sampling, progress)
        codes = [completion.codes for completion in completions]
        waves = decode(self.codec, codes, [line.voice for line in lines])
        return [
            Speech(line.text, wave, completion.codes, completion.ended)
            for line, wave, completion in zip(lines, waves, completions, strict=True)
        ]


def decode(
    codec: Codec, codes: Sequence[NDArray[np.int64]], voices: Sequence[Voice | None]
) -> list[NDArray[np.float32]]:
    """Waveforms of the completions, each decoded after its voice prompt, which is cut off.

    No codes give no samples.
    """
    prompts = [np.asarray(v.codes if v else (), dtype=np.int64) for v in voices]
    rows = [i for i, own in enumerate(codes) if len(own)]
    waves = [np.zeros(0, dtype=np.float32) for _ in codes]
    decoded = codec.decode([np.concatenate([prompts[i], codes[i]]) for i in rows]) if rows else []
    for i, wave in zip(rows, decoded, strict=True):
        waves[i] = wave[len(prompts[i]) * codec.hop_length :]
    return waves


def read_card(folder: Path) -> ServingCard:
    """``serving.json`` of a serving model."""
    if not (folder / SERVING_FILE).is_file():
        raise SynthesisError(
            f"{folder} is no serving model: it has no {SERVING_FILE}; materialize serving/<recipe> "
            "and give its folder"
        )
    return ServingCard.from_json(folder / SERVING_FILE)


def open_codec(folder: Path, card: ServingCard, device: str) -> Codec:
    """The codec that a serving model refers to; raises if it is not the one it was made with."""
    handle = CodecCheckpoint.open((folder / card.codec_path).resolve())
    if handle.content != card.codec:
        raise SynthesisError(
            f"{folder} speaks the codes of codec {card.codec[:12]}, but {handle.path} is codec "
            f"{handle.content[:12]}: codes of one codec are noise in another; convert again"
        )
    return Codec.load(handle.path, device)


def open_lm(folder: Path, card: ServingCard, device: str | None = None) -> SpeechLM:
    """Model, tokenizer and vocabulary of a serving model, in evaluation mode."""
    lm = SpeechLM.load(folder, card.codebook_size)
    check_vocabulary(folder, card, lm.vocabulary)
    lm.model.to(torch.device(device or default_device()))  # type: ignore[arg-type]
    lm.model.eval()
    return lm


def check_vocabulary(folder: Path, card: ServingCard, vocabulary: SpeechVocabulary) -> None:
    if vocabulary.digest != card.vocabulary:
        raise SynthesisError(
            f"{folder}: its tokenizer gives vocabulary {vocabulary.digest[:12]}, but "
            f"{SERVING_FILE} names {card.vocabulary[:12]}; the files do not belong together: "
            "convert again"
        )


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
