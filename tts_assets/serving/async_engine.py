"""Concurrent synthesis: the asynchronous vLLM engine, and the codec in a thread.

vLLM batches continuously: a request joins the running batch at its first token and leaves it after
its last. The codec decodes one clip at a time, in order of arrival, so the samples of a clip never
depend on other clips. Neither blocks the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tts_assets.serving.config import ServerConfig
from tts_assets.serving.pieces import PieceConcatenator, Wave
from tts_assets.serving.served_model import (
    PieceRequest,
    ServedModel,
    Speech,
    SynthesisLine,
    default_device,
    open_codec,
    open_prompts,
    read_card,
)
from tts_assets.serving.streaming import Fault
from tts_assets.serving.synthesis import decode, limit_to_context
from tts_assets.serving.vllm_engine import (
    capacity_arguments,
    engine_arguments,
    prepare_environment,
    sampling_parameters,
)
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import allowed_ids

T = TypeVar("T")
RETRIES = 1
WATCH_SECONDS = 0.5


class StreamingSynthesizer:
    """A serving model that synthesizes many lines at once. Create it inside a running event loop.

    ``on_engine_exit`` is called when the process of the engine ends without :meth:`close`.
    """

    def __init__(
        self, folder: Path, config: ServerConfig, on_engine_exit: Callable[[], None]
    ) -> None:
        prepare_environment()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        card = read_card(folder)
        codec = open_codec(folder, card, default_device())
        self.model = ServedModel(card, open_prompts(folder, card), codec)
        self.allowed = allowed_ids(self.model.prompts.vocabulary).tolist()
        capacity = capacity_arguments(folder, config.gpu_memory, config.max_model_len)
        arguments = engine_arguments(folder, None, config.concurrency) | capacity
        self.positions = capacity["max_model_len"] - 1  # one for the end token
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self.codec_thread = ThreadPoolExecutor(1, "codec")
        self.names = count()
        self.faults: dict[Fault, int] = {}  # faulty completions since the start

        self.watch = asyncio.create_task(self._watch(on_engine_exit))

    async def _watch(self, on_engine_exit: Callable[[], None]) -> None:
        while not self.dead:
            await asyncio.sleep(WATCH_SECONDS)
        on_engine_exit()

    def close(self) -> None:
        """End the processes of the engine and the codec's thread."""
        self.watch.cancel()
        self.engine.shutdown()
        self.codec_thread.shutdown(cancel_futures=True)

    @property
    def dead(self) -> bool:
        """True after the engine failed; it cannot recover."""
        return bool(self.engine.errored)

    async def piece_requests(
        self, line: SynthesisLine, sampling: SamplingConfig
    ) -> list[PieceRequest]:
        """The pieces of a line. Raises :class:`SynthesisError` if one does not fit the context."""
        pieces = await asyncio.to_thread(self.model.piece_requests, line, sampling)
        for piece in pieces:
            limit_to_context(piece, sampling, self.positions)
        return pieces

    async def synthesize(self, line: SynthesisLine, sampling: SamplingConfig) -> Speech:
        """Synthesize a line, all its pieces at once; as ``Synthesizer.synthesize`` with a retry."""
        pieces = await self.piece_requests(line, sampling)
        speeches = await asyncio.gather(*(self._piece(piece, sampling) for piece in pieces))
        return self.model.join(line.text, pieces, speeches)

    async def stream(self, line: SynthesisLine, sampling: SamplingConfig) -> AsyncGenerator[Wave]:
        """Yield the waveform of a line in chunks, starting with the first audible one."""
        concatenator = PieceConcatenator(self.model.sample_rate)
        for piece in await self.piece_requests(line, sampling):
            async with aclosing(self._stream_piece(piece, sampling, RETRIES)) as waves:
                async for wave in waves:
                    if len(final := concatenator.push(wave)):
                        yield final
            concatenator.end_piece(piece.pause)
        yield concatenator.finish()

    async def in_codec_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function(*arguments)`` in the codec's thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.codec_thread, function, *arguments)

    async def _piece(self, piece: PieceRequest, sampling: SamplingConfig) -> Speech:
        first = speech = await self._attempt(piece, sampling)
        for attempt in range(1, RETRIES + 1):
            if speech.fault:
                self._count(speech.fault)
                speech = await self._attempt(piece.retry(attempt), sampling)
        return first if speech.fault else speech

    async def _attempt(self, piece: PieceRequest, sampling: SamplingConfig) -> Speech:
        ids: list[int] = []
        async with aclosing(self._ids(piece, sampling)) as sampled:
            async for more in sampled:
                ids += more
        codes = self._codes(ids)
        waves = await self.in_codec_thread(decode, self.model.codec, [codes], [piece.voice])
        return self.model.piece_speech(waves[0], codes, self._ended(ids))

    async def _stream_piece(
        self, piece: PieceRequest, sampling: SamplingConfig, retries: int
    ) -> AsyncGenerator[Wave]:
        """As ``Synthesizer.stream`` of one piece."""
        audio = self.model.piece_stream(piece)
        ids: list[int] = []
        async with aclosing(self._ids(piece, sampling)) as sampled:
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
            async with aclosing(self._stream_piece(piece.retry(1), sampling, retries - 1)) as again:
                async for wave in again:
                    yield wave
            return
        yield rest

    async def _ids(
        self, piece: PieceRequest, sampling: SamplingConfig
    ) -> AsyncGenerator[list[int]]:
        from vllm import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        sampling = limit_to_context(piece, sampling, self.positions)
        parameters = sampling_parameters(
            self.allowed,
            sampling,
            piece.request.seed,
            logprobs=None,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = TokensPrompt(prompt_token_ids=piece.request.prompt.tolist())
        outputs = self.engine.generate(prompt, parameters, f"speech-{next(self.names)}")
        sampled = 0
        async with aclosing(outputs):
            async for output in outputs:
                ids = [int(token) for token in output.outputs[0].token_ids]
                sampled += len(ids)
                if sampled > sampling.max_tokens and not self._ended(ids):
                    ids.pop()  # its place was reserved for the end token
                yield ids

    def _codes(self, ids: Sequence[int]) -> NDArray[np.int64]:
        return self.model.prompts.vocabulary.codes(np.asarray(ids, dtype=np.int64))

    def _ended(self, ids: Sequence[int]) -> bool:
        return bool(ids) and ids[-1] == self.model.prompts.vocabulary.speech_end

    def _count(self, fault: Fault) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1
