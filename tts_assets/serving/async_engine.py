"""Concurrent synthesis: the asynchronous vLLM engine, and the codec in a thread.

vLLM batches continuously: a request joins the running batch at its first token and leaves it after
its last. The codec decodes one clip at a time, in order of arrival, so the samples of a clip never
depend on other clips. Neither blocks the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tts_assets.serving.config import ServerConfig
from tts_assets.serving.pieces import Fault, PieceConcatenator, Wave
from tts_assets.serving.served_model import (
    PieceRequest,
    ServedModel,
    Speech,
    SynthesisError,
    SynthesisLine,
    default_device,
    open_codec,
    open_prompts,
    read_card,
)
from tts_assets.serving.synthesis import decode, limit_to_context
from tts_assets.serving.vllm_engine import (
    capacity_arguments,
    engine_arguments,
    prepare_environment,
    sampling_parameters,
)
from tts_assets.serving.voices import Adapter, open_adapters
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request, allowed_ids
from tts_assets.speechlm.vocabulary import SpeechVocabulary

T = TypeVar("T")
RETRIES = 1
WATCH_SECONDS = 0.5
RESTARTS = 3  # of the engine in a row, before the server ends
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM allocates for adapters
MOST_ADAPTERS = 8  # in one batch of vLLM, which allocates memory for as many
SETTLED_SECONDS = 60.0  # after which a running engine counts its restarts from 0

log = logging.getLogger("tts_assets.server")


class EngineUnavailable(RuntimeError):
    """The engine failed during the request, or it is being restarted."""


@dataclass
class Usage:
    """Tokens of a request: of its prompts, and generated ones."""

    input_tokens: int = 0
    output_tokens: int = 0


class TokenEngine(Protocol):
    """Completes prompts concurrently. Prompt and completion have at most ``positions`` tokens."""

    positions: int

    @property
    def dead(self) -> bool:
        """True after the engine failed; it cannot recover."""
        ...

    def generate(self, request: Request, sampling: SamplingConfig) -> AsyncGenerator[list[int]]:
        """Yield the token ids of a completion as they are sampled.

        Closing the generator ends the request. Raises :class:`SynthesisError` if the engine rejects
        the request, and :class:`EngineUnavailable` if it fails.
        """
        ...

    def close(self) -> None:
        """End the processes of the engine."""
        ...


class AsyncVllm:
    """The asynchronous vLLM engine of the serving model in ``folder``, with adapters."""

    def __init__(
        self,
        folder: Path,
        vocabulary: SpeechVocabulary,
        config: ServerConfig,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        prepare_environment()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.allowed = allowed_ids(vocabulary).tolist()
        capacity = capacity_arguments(folder, config.gpu_memory, config.max_model_len)
        arguments = engine_arguments(folder, vocabulary, None, config.concurrency) | capacity
        arguments |= adapter_arguments(adapters)
        self.adapters = adapter_requests(adapters)
        self.positions = capacity["max_model_len"] - 1  # one for the end token
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self.names = count()

    @property
    def dead(self) -> bool:
        """True after the process of the engine ended."""
        return bool(self.engine.errored)

    async def generate(
        self, request: Request, sampling: SamplingConfig
    ) -> AsyncGenerator[list[int]]:
        """Yield the token ids of a completion; see :class:`TokenEngine`."""
        from vllm import TokensPrompt
        from vllm.exceptions import VLLMClientError, VLLMServerError
        from vllm.sampling_params import RequestOutputKind

        parameters = sampling_parameters(
            self.allowed,
            sampling,
            request.seed,
            logprobs=None,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = TokensPrompt(prompt_token_ids=request.prompt.tolist())
        outputs = self.engine.generate(
            prompt,
            parameters,
            f"speech-{next(self.names)}",
            lora_request=self.adapters.get(request.adapter),
        )
        sampled = 0
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    ids = [int(token) for token in output.outputs[0].token_ids]
                    sampled += len(ids)
                    if sampled > sampling.max_tokens and ids[-1] != self.allowed[-1]:
                        ids.pop()  # this position was reserved for the end token
                    yield ids
        except (VLLMClientError, ValueError) as error:
            raise SynthesisError(f"the engine rejects the request: {error}") from error
        except VLLMServerError as error:
            raise EngineUnavailable("the engine failed during the request") from error

    def close(self) -> None:
        """End the processes of the engine."""
        self.engine.shutdown()


def adapter_arguments(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Arguments of a vLLM engine with these adapters; none without adapters."""
    if not adapters:
        return {}
    rank = next(size for size in RANKS if size >= max(one.rank for one in adapters))
    # On CPUs vLLM 0.32 has index -1 for requests without an adapter, which selects the last slot:
    # one more slot stays empty, or these requests would get the adapter in it.
    slots = min(len(adapters), MOST_ADAPTERS) if torch.cuda.is_available() else len(adapters) + 1
    return {
        "enable_lora": True,
        "max_lora_rank": rank,
        "max_loras": slots,
        "max_cpu_loras": max(slots, len(adapters)),
    }


def adapter_requests(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """vLLM's request of each adapter, by name."""
    if not adapters:
        return {}
    from vllm.lora.request import LoRARequest

    return {
        one.name: LoRARequest(one.name, number, str(one.folder))
        for number, one in enumerate(adapters, start=1)
    }


class StreamingSynthesizer:
    """A serving model that synthesizes many lines at once. Create it inside a running event loop.

    ``start_engine`` makes the engine. An engine that fails is replaced; meanwhile all requests
    raise :class:`EngineUnavailable`. ``on_engine_exit`` is called after ``RESTARTS`` failures in a
    row.
    """

    def __init__(
        self,
        model: ServedModel,
        start_engine: Callable[[], TokenEngine],
        on_engine_exit: Callable[[], None],
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.adapters = {one.name: one for one in adapters}
        self.scaled: tempfile.TemporaryDirectory[str] | None = None
        self.start_engine, self.on_engine_exit = start_engine, on_engine_exit
        self.engine = start_engine()
        self.model = model
        self.model.positions = self.engine.positions
        self.codec_thread = ThreadPoolExecutor(1, "codec")
        self.faults: dict[Fault, int] = {}  # faulty completions since the start
        self.restarts = 0
        self.watch = asyncio.create_task(self._watch())

    @classmethod
    def open(
        cls, folder: Path, config: ServerConfig, on_engine_exit: Callable[[], None]
    ) -> StreamingSynthesizer:
        """The serving model in ``folder`` with vLLM. The audio names the people of all adapters."""
        card = read_card(folder)
        prompts = open_prompts(folder, card)
        others = config.adapter_folders
        adapters = open_adapters(folder, others) if others else []
        scaled = tempfile.TemporaryDirectory(prefix="tts-adapters-")  # as long as the synthesizer
        if config.lora_scale != 1:
            root = Path(scaled.name)
            adapters = [one.scaled(config.lora_scale, root / one.name) for one in adapters]
        consents = {
            f"{one.name}/{corpus}": consent
            for one in adapters
            for corpus, consent in one.card.consents.items()
        }
        card = card.model_copy(update={"consents": card.consents | consents})
        model = ServedModel(card, prompts, open_codec(folder, card, default_device()))

        def start_engine() -> AsyncVllm:
            return AsyncVllm(folder, prompts.vocabulary, config, adapters)

        made = cls(model, start_engine, on_engine_exit, adapters)
        made.scaled = scaled
        return made

    async def _watch(self) -> None:
        """Replace the engine when it fails."""
        started, failures = time.monotonic(), 0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self.engine.dead:
                continue
            if time.monotonic() - started > SETTLED_SECONDS:
                failures = 0
            failures += 1
            if failures > RESTARTS:
                self.on_engine_exit()
                return
            log.error("the engine ended unexpectedly; starting it again (%d)", failures)
            try:
                await asyncio.to_thread(self.engine.close)
                self.engine = await asyncio.to_thread(self.start_engine)
                self.restarts += 1
            except Exception:  # the engine stays dead, so the next round tries again
                log.exception("the engine did not start")
            started = time.monotonic()

    def close(self) -> None:
        """End the processes of the engine and the codec's thread."""
        self.watch.cancel()
        self.engine.close()
        self.codec_thread.shutdown(cancel_futures=True)
        if self.scaled is not None:
            self.scaled.cleanup()

    @property
    def dead(self) -> bool:
        """True while the engine is being replaced."""
        return self.engine.dead

    async def piece_requests(
        self, line: SynthesisLine, sampling: SamplingConfig
    ) -> list[PieceRequest]:
        """The pieces of a line. Raises :class:`SynthesisError` if one does not fit the context."""
        pieces = await asyncio.to_thread(self.model.piece_requests, line, sampling)
        for piece in pieces:
            limit_to_context(piece, sampling, self.engine.positions)
        return pieces

    async def synthesize(
        self, line: SynthesisLine, sampling: SamplingConfig, usage: Usage | None = None
    ) -> Speech:
        """Synthesize a line, all its pieces at once; as ``Synthesizer.synthesize`` with a retry.

        Adds the tokens to ``usage``. Cancelling it ends the requests in the engine.
        """
        usage = usage or Usage()
        pieces = await self.piece_requests(line, sampling)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._piece(p, sampling, usage)) for p in pieces]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        speeches = [task.result() for task in tasks]
        return await self.in_codec_thread(self.model.join, line.text, pieces, speeches)

    async def stream(
        self, line: SynthesisLine, sampling: SamplingConfig, usage: Usage | None = None
    ) -> AsyncGenerator[Wave]:
        """Yield the waveform of a line in chunks, starting with the first audible one.

        Adds the tokens to ``usage``. Closing the generator ends the request in the engine.
        """
        usage = usage or Usage()
        concatenator = PieceConcatenator(self.model.sample_rate)
        watermark = self.model.watermark()
        for piece in await self.piece_requests(line, sampling):
            async with aclosing(self._stream_piece(piece, sampling, usage, RETRIES)) as waves:
                async for wave in waves:
                    if len(final := concatenator.push(wave)):
                        yield await self.in_codec_thread(watermark, final)
            concatenator.end_piece(piece.pause)
        yield await self.in_codec_thread(watermark, concatenator.finish())

    async def in_codec_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function(*arguments)`` in the codec's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.codec_thread, function, *arguments)

    async def _piece(self, piece: PieceRequest, sampling: SamplingConfig, usage: Usage) -> Speech:
        first = speech = await self._attempt(piece, sampling, usage)
        for attempt in range(1, RETRIES + 1):
            if speech.fault:
                self._count(speech.fault)
                speech = await self._attempt(piece.retry(attempt), sampling, usage)
        return first if speech.fault else speech

    async def _attempt(self, piece: PieceRequest, sampling: SamplingConfig, usage: Usage) -> Speech:
        ids: list[int] = []
        async with aclosing(self._ids(piece, sampling, usage)) as sampled:
            async for more in sampled:
                ids += more
        codes = self.model.prompts.vocabulary.whole_codes(ids)
        waves = await self.in_codec_thread(decode, self.model.codec, [codes], [piece.voice])
        return self.model.piece_speech(waves[0], codes, self._ended(ids))

    async def _stream_piece(
        self, piece: PieceRequest, sampling: SamplingConfig, usage: Usage, retries: int
    ) -> AsyncGenerator[Wave]:
        """As ``Synthesizer.stream`` of one piece."""
        audio = self.model.piece_stream(piece)
        ids: list[int] = []
        async with aclosing(self._ids(piece, sampling, usage)) as sampled:
            async for more in sampled:
                ids += more
                audio.add(self._codes(more))
                while audio.ready():
                    if len(wave := await self.in_codec_thread(audio.decode)):
                        yield wave
                if audio.looping:
                    break
        rest, fault = await self.in_codec_thread(audio.finish, self._ended(ids))
        if fault:
            self._count(fault)
        if fault and retries and not audio.returned:
            retry = self._stream_piece(piece.retry(1), sampling, usage, retries - 1)
            async with aclosing(retry) as again:
                async for wave in again:
                    yield wave
            return
        yield rest

    async def _ids(
        self, piece: PieceRequest, sampling: SamplingConfig, usage: Usage
    ) -> AsyncGenerator[list[int]]:
        engine = self.engine
        if engine.dead:
            raise EngineUnavailable("the engine is being restarted")
        sampling = limit_to_context(piece, sampling, engine.positions)
        usage.input_tokens += len(piece.request.prompt)
        async with aclosing(engine.generate(piece.request, sampling)) as sampled:
            async for ids in sampled:
                usage.output_tokens += len(ids)
                yield ids

    def _codes(self, ids: Sequence[int]) -> NDArray[np.int64]:
        return self.model.prompts.vocabulary.codes(np.asarray(ids, dtype=np.int64))

    def _ended(self, ids: Sequence[int]) -> bool:
        return bool(ids) and ids[-1] == self.model.prompts.vocabulary.speech_end

    def _count(self, fault: Fault) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1
