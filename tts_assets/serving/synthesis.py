"""Synthesizes speech with a serving model: text, prompt, speech tokens, codec, waveform.

The codes of a voice prompt are decoded together with those of the completion, and their samples are
dropped. The first sample of the completion thus has the same context as in training. A frame is one
hop of samples, so the cut is exact.

A long text is synthesized in pieces (``pieces.py``), each with its own seed. A faulty completion
(``pieces.py``) is generated again with another seed, as often as the caller allows.

The same serving model, text, voice, seed and backend give the same samples, independent of other
lines in the same call. All audio carries the watermark (``audio_models/watermark.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tts_assets.codec.model import Codec
from tts_assets.serving.config import GPU_MEMORY, Quantization, ServingCard, Voice
from tts_assets.serving.pieces import Fault, PieceConcatenator
from tts_assets.serving.served_model import (
    PieceRequest,
    ServedModel,
    Speech,
    SynthesisError,
    SynthesisLine,
    default_device,
    open_codec,
    open_lm,
    open_prompts,
    read_card,
)
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request, generate, stream
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat

Backend = Literal["transformers", "vllm", "llama.cpp"]
Progress = Callable[[int], None]
LIMIT_STEP = 64  # tokens: pieces with the same limit share a batch


class Engine(Protocol):
    """Completes prompts of token ids. Prompt and completion have at most ``positions`` tokens."""

    positions: int

    def complete(
        self, requests: Sequence[Request], sampling: SamplingConfig, progress: Progress | None
    ) -> list[Completion]:
        """Complete all requests. ``progress`` is called with the number of newly completed ones."""
        ...

    def stream(self, request: Request, sampling: SamplingConfig) -> Generator[int]:
        """Yield the token ids of one completion as they are sampled."""
        ...


class TransformersEngine:
    """Batched sampling in this process (``speechlm/generate.py``)."""

    def __init__(self, lm: SpeechLM, batch_size: int = 64) -> None:
        self.lm = lm
        self.batch_size = batch_size
        self.positions = int(lm.model.config.max_position_embeddings)

    def complete(
        self, requests: Sequence[Request], sampling: SamplingConfig, progress: Progress | None
    ) -> list[Completion]:
        """Complete all requests in batches; see :class:`Engine`."""
        return generate(self.lm, requests, sampling, batch_size=self.batch_size, progress=progress)

    def stream(self, request: Request, sampling: SamplingConfig) -> Generator[int]:
        """Yield the token ids of one completion; see :class:`Engine`."""
        return stream(self.lm, request, sampling)


class Synthesizer(ServedModel):
    """A serving model with an engine in this process."""

    def __init__(
        self, card: ServingCard, engine: Engine, prompts: PromptFormat, codec: Codec
    ) -> None:
        super().__init__(card, prompts, codec, engine.positions)
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
        weights: Quantization = "q8_0",
    ) -> Synthesizer:
        """Open the serving model in ``folder``.

        ``device`` None: a GPU if there is one. ``gpu_memory`` and ``max_model_len`` are settings of
        vLLM (``ServerConfig``); llama.cpp has ``max_model_len`` as well, and ``weights``. Raises
        :class:`SynthesisError` if tokenizer, codec and card do not belong together.
        """
        card = read_card(folder)
        codec = open_codec(folder, card, device or default_device())
        if backend == "llama.cpp":
            from tts_assets.serving.llama_cpp import LlamaCppEngine

            prompts = open_prompts(folder, card)
            llama = LlamaCppEngine(folder, card, prompts.vocabulary, weights, max_model_len)
            return cls(card, llama, prompts, codec)
        if backend == "vllm":
            from tts_assets.serving.vllm_engine import VllmEngine, capacity_arguments

            prompts = open_prompts(folder, card)
            capacity = capacity_arguments(folder, gpu_memory, max_model_len)
            return cls(card, VllmEngine(folder, prompts.vocabulary, **capacity), prompts, codec)
        lm = open_lm(folder, card, device)
        return cls(card, TransformersEngine(lm), PromptFormat(lm.tokenizer, lm.vocabulary), codec)

    def synthesize(
        self,
        lines: Sequence[SynthesisLine],
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
        retries: int = 0,
    ) -> list[Speech]:
        """Synthesize all lines; the results are in the order of ``lines``.

        ``sampling`` None: the settings of the card. ``progress`` is called with the number of newly
        completed pieces. A faulty piece is generated again up to ``retries`` times. If all attempts
        are faulty, the first one is returned. Raises :class:`SynthesisError` for invalid lines.
        """
        sampling = sampling or self.card.sampling
        pieces = [self.piece_requests(line, sampling) for line in lines]
        flat = [piece for own in pieces for piece in own]
        speeches = self._synthesize_pieces(flat, sampling, progress)
        for attempt in range(1, retries + 1):
            faulty = [i for i, speech in enumerate(speeches) if speech.fault]
            retried = [flat[i].retry(attempt) for i in faulty]
            again = self._synthesize_pieces(retried, sampling, None)
            for i, speech in zip(faulty, again, strict=True):
                speeches[i] = speeches[i] if speech.fault else speech
        remaining = iter(speeches)
        return [
            self.join(line.text, own, [next(remaining) for _ in own])
            for line, own in zip(lines, pieces, strict=True)
        ]

    def stream(
        self,
        line: SynthesisLine,
        sampling: SamplingConfig | None = None,
        retries: int = 0,
        on_fault: Callable[[Fault], None] | None = None,
    ) -> Generator[NDArray[np.float32]]:
        """Yield the waveform of a line in chunks (samples,), starting with the first audible one.

        A faulty piece is generated again up to ``retries`` times if none of its samples were
        yielded. A piece that loops ends there. ``on_fault`` is called with every fault. Raises
        :class:`SynthesisError` for an invalid line before the first chunk.
        """
        sampling = sampling or self.card.sampling
        concatenator, watermark = PieceConcatenator(self.sample_rate), self.watermark()
        pieces = self.piece_requests(line, sampling)
        limits = [limit_to_context(piece, sampling, self.engine.positions) for piece in pieces]
        for piece, limited in zip(pieces, limits, strict=True):
            for wave in self._stream_piece(piece, limited, retries, on_fault):
                yield watermark(concatenator.push(wave))
            concatenator.end_piece(piece.pause)
        yield watermark(concatenator.finish())

    def _stream_piece(
        self,
        piece: PieceRequest,
        sampling: SamplingConfig,
        retries: int,
        on_fault: Callable[[Fault], None] | None,
    ) -> Generator[NDArray[np.float32]]:
        audio, ended = self.piece_stream(piece), False
        vocabulary = self.prompts.vocabulary
        with closing(self.engine.stream(piece.request, sampling)) as ids:
            for token in ids:
                ended = token == vocabulary.speech_end
                audio.add(vocabulary.codes([token]))
                if audio.ready() and len(wave := audio.decode()):
                    yield wave
                if audio.looping:
                    break
        rest, fault = audio.finish(ended)
        if fault and on_fault is not None:
            on_fault(fault)
        if fault and retries and not audio.returned:
            yield from self._stream_piece(piece.retry(1), sampling, retries - 1, on_fault)
            return
        yield rest

    def _synthesize_pieces(
        self, pieces: Sequence[PieceRequest], sampling: SamplingConfig, progress: Progress | None
    ) -> list[Speech]:
        limits = [limit_to_context(piece, sampling, self.engine.positions) for piece in pieces]
        by_index: dict[int, Completion] = {}
        for limited in {own.max_tokens: own for own in limits}.values():
            rows = [i for i, own in enumerate(limits) if own == limited]
            requests = [pieces[i].request for i in rows]
            by_index |= zip(rows, self.engine.complete(requests, limited, progress), strict=True)
        completions = [by_index[i] for i in range(len(pieces))]
        codes = [completion.codes for completion in completions]
        waves = decode(self.codec, codes, [piece.voice for piece in pieces])
        return [
            self.piece_speech(wave, completion.codes, completion.ended)
            for wave, completion in zip(waves, completions, strict=True)
        ]


def limit_to_context(
    piece: PieceRequest, sampling: SamplingConfig, positions: int
) -> SamplingConfig:
    """``sampling`` with ``max_tokens`` lowered to what the context leaves after the prompt.

    ``positions`` is the length of the context in tokens. The limit is a multiple of ``LIMIT_STEP``
    where possible. Raises :class:`SynthesisError` if fewer than ``min_tokens`` are left.
    """
    tokens = len(piece.request.prompt)
    room = positions - tokens
    least = max(sampling.min_tokens, 1)
    if room < least:
        raise SynthesisError(
            f"voice prompt, description and text have {tokens} tokens, the model has {positions} "
            "positions: use a shorter voice prompt or description"
        )
    if room >= sampling.max_tokens:
        return sampling
    room = max(room - room % LIMIT_STEP, least) if room >= LIMIT_STEP else room
    return sampling.model_copy(update={"max_tokens": room})


def decode(
    codec: Codec, codes: Sequence[NDArray[np.int64]], voices: Sequence[Voice | None]
) -> list[NDArray[np.float32]]:
    """Waveforms of completions, each decoded after its voice prompt, whose samples are dropped.

    ``codes`` are arrays of shape (codes,), in whole frames. Returns float32 of shape (samples,),
    ``Codec.samples(codes)`` each.
    """
    prompts = [np.asarray(v.codes if v else (), dtype=np.int64) for v in voices]
    rows = [i for i, own in enumerate(codes) if len(own)]
    waves = [np.zeros(0, dtype=np.float32) for _ in codes]
    decoded = codec.decode([np.concatenate([prompts[i], codes[i]]) for i in rows]) if rows else []
    for i, wave in zip(rows, decoded, strict=True):
        waves[i] = wave[codec.samples(len(prompts[i])) :]
    return waves
