"""Text in, waveform out: prompt, speech tokens, codec.

A voice prompt's codes are decoded together with the completion's and cut off after, as they were
heard together in training: the completion's first sample has the context it was made in. One hop
a code, so the cut is exact.

A long text is spoken in pieces (``pieces.py``), each with a seed of its own; a completion that
nobody should hear (``guards.py``) is drawn again with another, as often as the caller allows.

The same serving model, text, voice, seed and backend give the same samples, whatever else is
asked for in the same call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tts_assets.codec.model import Codec
from tts_assets.core.artifacts import CodecCheckpoint, CodecDecoder
from tts_assets.corpora.normalizer import Normalizer, user_cache
from tts_assets.serving.config import GPU_MEMORY, SERVING_FILE, ServingCard, Voice
from tts_assets.serving.pieces import Fault, PieceConcatenator, fault, longest_piece, split
from tts_assets.serving.streaming import PieceStream, provenance
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request, generate, stream
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.tokenizer import load_tokenizer
from tts_assets.speechlm.vocabulary import NONVERBALS, SpeechVocabulary, read_vocabulary

Backend = Literal["transformers", "vllm"]
Progress = Callable[[int], None]
ROOM_STEP = 64  # tokens: parts with as much room share a batch


class SynthesisError(ValueError):
    """A serving model or a request that cannot be spoken: the message says what to change."""


@dataclass(frozen=True)
class SynthesisLine:
    """One thing to say. ``seed`` alone decides its random numbers; None: the sampling's.

    ``description`` of the voice is that of training (``speechlm.prompts.describe``).
    """

    text: str
    voice: Voice | None = None
    seed: int | None = None
    description: str = ""
    language: str = "en"


@dataclass(frozen=True)
class PartialSpeech:
    """A piece of a line, ready to be completed; ``pause`` seconds of silence follow it."""

    request: Request
    voice: Voice | None
    pause: float

    def again(self, attempt: int) -> PartialSpeech:
        """The same with another seed, which follows from its own."""
        seed = derived_seed(self.request.seed, f"attempt {attempt}")
        return replace(self, request=replace(self.request, seed=seed))


@dataclass(frozen=True)
class Speech:
    """``wave`` is mono float32, shape (hop x codes,) and the pauses of a long text. ``ended``: the
    model said it was done. ``fault``: why it should not be heard."""

    text: str
    wave: NDArray[np.float32]
    codes: NDArray[np.int64]
    ended: bool
    fault: Fault | None = None


class Engine(Protocol):
    """Token ids in, token ids out; prompt and speech have at most ``positions``."""

    positions: int

    def complete(
        self, requests: Sequence[Request], sampling: SamplingConfig, progress: Progress | None
    ) -> list[Completion]: ...

    def stream(self, request: Request, sampling: SamplingConfig) -> Generator[int]: ...


class TransformersEngine:
    """Batched sampling in this process (``speechlm/generate.py``)."""

    def __init__(self, lm: SpeechLM, batch_size: int = 64) -> None:
        self.lm = lm
        self.batch_size = batch_size
        self.positions = int(lm.model.config.max_position_embeddings)

    def complete(
        self, requests: Sequence[Request], sampling: SamplingConfig, progress: Progress | None
    ) -> list[Completion]:
        return generate(self.lm, requests, sampling, batch_size=self.batch_size, progress=progress)

    def stream(self, request: Request, sampling: SamplingConfig) -> Generator[int]:
        return stream(self.lm, request, sampling)


class ServedModel:
    """All of a serving model but what completes its prompts: card, prompt format, codec."""

    def __init__(self, card: ServingCard, prompts: PromptFormat, codec: Codec) -> None:
        self.card = card
        self.prompts = prompts
        self.codec = codec
        self.normalize = Normalizer(card.text, user_cache())

    @property
    def sample_rate(self) -> int:
        return self.card.sample_rate

    @property
    def provenance(self) -> str:
        """What every file of its speech says of itself."""
        return provenance(self.card)

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

    def request(self, line: SynthesisLine, seed: int, language: str | None = None) -> Request:
        """The prompt of one line as token ids, its text normalized as in training."""
        self._check_tags(line.text)
        text = self.normalize(line.text, language or line.language)
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

    def parts(self, line: SynthesisLine, sampling: SamplingConfig) -> list[PartialSpeech]:
        """The pieces of a line. The first has the line's seed, each other one of its own."""
        seed = sampling.seed if line.seed is None else line.seed
        pieces = split(line.text, longest_piece(sampling, self.card.token_rate))
        if len(pieces) > 1:  # dashes between sentences are no piece
            pieces = [piece for piece in pieces if self.normalize(piece.text, line.language)]
        if not pieces:
            raise SynthesisError(f"nothing to say in {line.text!r}: no letters or digits are left")
        seeds = [seed, *(derived_seed(seed, f"piece {i}") for i in range(1, len(pieces)))]
        return [
            PartialSpeech(
                self.request(replace(line, text=piece.text, seed=own), own), line.voice, piece.pause
            )
            for piece, own in zip(pieces, seeds, strict=True)
        ]

    def piece_stream(self, part: PartialSpeech) -> PieceStream:
        """For one completion of a part, whose codes are to be heard as they come."""
        prompt = part.voice.codes if part.voice else ()
        return PieceStream(self.codec, prompt, self.sample_rate, self.card.token_rate)

    def judged(self, wave: NDArray[np.float32], codes: NDArray[np.int64], ended: bool) -> Speech:
        """The speech of one part, with its fault if it has one."""
        found = fault(codes, wave, ended, self.sample_rate, self.card.token_rate)
        return Speech("", wave, codes, ended, found)

    def joined(self, text: str, parts: Sequence[PartialSpeech], spoken: Sequence[Speech]) -> Speech:
        """The speech of a line from that of its parts."""
        joiner = PieceConcatenator(self.sample_rate)
        waves = []
        for part, speech in zip(parts, spoken, strict=True):
            waves.append(joiner.push(speech.wave))
            joiner.end_piece(part.pause)
        return Speech(
            text,
            np.concatenate([*waves, joiner.finish()]),
            np.concatenate([speech.codes for speech in spoken]),
            all(speech.ended for speech in spoken),
            next((speech.fault for speech in spoken if speech.fault), None),
        )

    def _check_tags(self, text: str) -> None:
        """A tag that is no token would be read aloud, letter by letter."""
        known = self.prompts.tokenizer.get_added_vocab()
        unknown = [tag for tag in NONVERBALS if tag in text and tag not in known]
        if unknown:
            raise SynthesisError(
                f"{self.card.recipe} does not know {', '.join(unknown)}: take it out of the text, "
                "or train with vocabulary.nonverbals = true"
            )


class Synthesizer(ServedModel):
    """A serving model that speaks."""

    def __init__(
        self, card: ServingCard, engine: Engine, prompts: PromptFormat, codec: Codec
    ) -> None:
        super().__init__(card, prompts, codec)
        self.engine = engine

    @classmethod
    def open(
        cls,
        folder: Path,
        backend: Backend = "transformers",
        device: str | None = None,
        *,
        gpu_memory: float = GPU_MEMORY,
        max_model_len: int | None = None,
    ) -> Synthesizer:
        """Open a serving model; its tokenizer, its codec and its card must belong together.

        ``gpu_memory`` and ``max_model_len`` are vLLM's (``ServerConfig``).
        """
        card = read_card(folder)
        codec = open_codec(folder, card, device or default_device())
        if backend == "vllm":
            from tts_assets.serving.vllm_engine import VllmEngine, room_arguments

            prompts = open_prompts(folder, card)
            room = room_arguments(folder, gpu_memory, max_model_len)
            return cls(card, VllmEngine(folder, prompts.vocabulary, **room), prompts, codec)
        lm = open_lm(folder, card, device)
        return cls(card, TransformersEngine(lm), PromptFormat(lm.tokenizer, lm.vocabulary), codec)

    def say(
        self,
        lines: Sequence[SynthesisLine],
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
        retries: int = 0,
    ) -> list[Speech]:
        """Speak every line; ``progress`` is called with how many more pieces are done.

        A faulty piece is drawn again up to ``retries`` times; one that stays so is the first.
        """
        sampling = sampling or self.card.sampling
        parts = [self.parts(line, sampling) for line in lines]
        flat = [part for own in parts for part in own]
        spoken = self._speak(flat, sampling, progress)
        for attempt in range(1, retries + 1):
            faulty = [i for i, speech in enumerate(spoken) if speech.fault]
            again = self._speak([flat[i].again(attempt) for i in faulty], sampling, None)
            for i, speech in zip(faulty, again, strict=True):
                spoken[i] = spoken[i] if speech.fault else speech
        rest = iter(spoken)
        return [
            self.joined(line.text, own, [next(rest) for _ in own])
            for line, own in zip(lines, parts, strict=True)
        ]

    def stream(
        self,
        line: SynthesisLine,
        sampling: SamplingConfig | None = None,
        retries: int = 0,
        on_fault: Callable[[Fault], None] | None = None,
    ) -> Generator[NDArray[np.float32]]:
        """The waveform of a line in chunks, from the first audible one on.

        A faulty piece is drawn again up to ``retries`` times while nothing of it was given; one
        that loops ends there. ``on_fault`` is called with each, drawn again or heard.
        """
        sampling = sampling or self.card.sampling
        joiner = PieceConcatenator(self.sample_rate)
        parts = self.parts(line, sampling)
        limits = [fitting(part, sampling, self.engine.positions) for part in parts]
        for part, limited in zip(parts, limits, strict=True):
            for wave in self._stream(part, limited, retries, on_fault):
                yield joiner.push(wave)
            joiner.end_piece(part.pause)
        yield joiner.finish()

    def _stream(
        self,
        part: PartialSpeech,
        sampling: SamplingConfig,
        retries: int,
        on_fault: Callable[[Fault], None] | None,
    ) -> Generator[NDArray[np.float32]]:
        piece, ended = self.piece_stream(part), False
        vocabulary = self.prompts.vocabulary
        with closing(self.engine.stream(part.request, sampling)) as ids:
            for token in ids:
                ended = token == vocabulary.speech_end
                piece.add(vocabulary.codes([token]))
                if piece.due() and len(wave := piece.decode()):
                    yield wave
                if piece.looping:
                    break
        rest, found = piece.finish(ended)
        if found and on_fault is not None:
            on_fault(found)
        if found and retries and not piece.given:
            yield from self._stream(part.again(1), sampling, retries - 1, on_fault)
            return
        yield rest

    def _speak(
        self, parts: Sequence[PartialSpeech], sampling: SamplingConfig, progress: Progress | None
    ) -> list[Speech]:
        limits = [fitting(part, sampling, self.engine.positions) for part in parts]
        found: dict[int, Completion] = {}
        for limited in {own.max_tokens: own for own in limits}.values():
            rows = [i for i, own in enumerate(limits) if own == limited]
            requests = [parts[i].request for i in rows]
            found |= zip(rows, self.engine.complete(requests, limited, progress), strict=True)
        completions = [found[i] for i in range(len(parts))]
        codes = [completion.codes for completion in completions]
        waves = decode(self.codec, codes, [part.voice for part in parts])
        return [
            self.judged(wave, completion.codes, completion.ended)
            for wave, completion in zip(waves, completions, strict=True)
        ]


def fitting(part: PartialSpeech, sampling: SamplingConfig, positions: int) -> SamplingConfig:
    """``sampling`` with as many tokens as ``positions`` leave to a part, in full ``ROOM_STEP``;
    raises :class:`SynthesisError` where nothing is left."""
    tokens = len(part.request.prompt)
    room = positions - tokens
    least = max(sampling.min_tokens, 1)
    if room < least:
        raise SynthesisError(
            f"voice prompt, description and text have {tokens} tokens, the model has {positions} "
            "positions: use a shorter voice prompt or description"
        )
    if room >= sampling.max_tokens:
        return sampling
    room = max(room - room % ROOM_STEP, least) if room >= ROOM_STEP else room
    return sampling.model_copy(update={"max_tokens": room})


def derived_seed(seed: int, purpose: str) -> int:
    """Another seed of 32 bits that depends on ``seed`` and ``purpose`` alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:4], "big")


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
    codec = Codec.load(handle.path, device)
    if card.decoder_path is None:
        return codec
    decoder = CodecDecoder.open((folder / card.decoder_path).resolve())
    return codec.use_decoder(decoder.path)


def open_prompts(folder: Path, card: ServingCard) -> PromptFormat:
    """The prompt format of a serving model, without its weights."""
    tokenizer = load_tokenizer(str(folder))
    vocabulary = read_vocabulary(tokenizer, card.codebook_size)
    check_vocabulary(folder, card, vocabulary)
    return PromptFormat(tokenizer, vocabulary)


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
