"""Voices that a server knows: those of its serving model, and those that were uploaded.

Many speak at once: vLLM's asynchronous engine, with the codec in a thread beside it.

The engine batches continuously: a request joins the running batch at the next token and leaves it
at its last. The codec takes what is to be decoded in the order in which it comes, clip by clip: a
clip's samples never depend on its mates. Neither blocks the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import re
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tts_assets.core.audio import BrokenAudio, read_upload
from tts_assets.core.config import ConfigError
from tts_assets.serving.config import KeptVoice, ServerConfig, Voice
from tts_assets.serving.pieces import AUDIBLE_SHARE, Fault, PieceConcatenator, audible_share
from tts_assets.serving.synthesis import (
    PartialSpeech,
    ServedModel,
    Speech,
    SynthesisError,
    SynthesisLine,
    decode,
    default_device,
    fitting,
    open_codec,
    open_prompts,
    read_card,
)
from tts_assets.serving.vllm_engine import (
    engine_arguments,
    prepare_environment,
    room_arguments,
    sampling_parameters,
)
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import allowed_ids

OWN = "default"  # without a voice prompt: the voice that the model was trained to
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SECONDS = (1.0, 30.0)  # of a prompt: it must show the voice, yet leave the context to the text

log = logging.getLogger("tts_assets.server")


class VoiceRegistry:
    """Voices by name. ``folder`` keeps the uploaded ones, a JSON file each.

    A file that this model cannot speak with stays where it is, and the log says why.
    """

    def __init__(self, model: ServedModel, folder: Path | None, limit: int) -> None:
        self.model, self.folder, self.limit = model, folder, limit
        self.voices: dict[str, Voice | None] = {OWN: None, **model.card.voices}
        self.uploaded = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.json")):
                self._restore(path)

    def __getitem__(self, name: str) -> Voice | None:
        if name not in self.voices:
            raise SynthesisError(f"no voice {name!r}; known voices: {', '.join(self.voices)}")
        return self.voices[name]

    def make(self, audio: bytes, text: str, language: str) -> Voice:
        """A voice from an uploaded file. Raises :class:`SynthesisError` for what is no prompt."""
        rate = self.model.codec.input_rate
        with tempfile.NamedTemporaryFile() as file:
            file.write(audio)
            file.flush()
            try:
                wave = read_upload(Path(file.name), rate, SECONDS[1])
            except BrokenAudio as error:
                raise SynthesisError(f"the clip: {error.reason} ({error.detail})") from None
        seconds = len(wave) / rate
        if not SECONDS[0] <= seconds <= SECONDS[1]:
            raise SynthesisError(
                f"the clip has {seconds:.1f} s; a voice prompt has {SECONDS[0]:g} to {SECONDS[1]:g}"
            )
        if audible_share(wave, rate) < AUDIBLE_SHARE:
            raise SynthesisError("the clip is mostly silence; send one of someone speaking")
        voice = self.model.new_voice(wave, text, language)
        if not voice.text:
            raise SynthesisError(f"text {text!r} has no words; send what the clip says")
        return voice.model_copy(update={"language": language})

    def check_name(self, name: str) -> None:
        """Raise :class:`SynthesisError` unless a voice can be added under this name."""
        if not NAME.fullmatch(name):
            raise SynthesisError(
                f"name {name!r}: give 1 to 64 letters, digits, '.', '-' or '_', the first a letter "
                "or a digit"
            )
        if name in self.voices:
            raise SynthesisError(f"there is a voice {name!r} already; choose another name")
        if self.uploaded >= self.limit:
            raise SynthesisError(f"there are {self.limit} uploaded voices, the most that are kept")

    def add(self, name: str, voice: Voice) -> None:
        """Register an uploaded voice under a new name."""
        self.check_name(name)
        if self.folder is not None:
            new = self.folder / f".{name}.new"
            kept = KeptVoice(**voice.model_dump(), codec=self.model.card.codec)
            new.write_text(kept.to_json())
            new.replace(self.folder / f"{name}.json")
        self._keep(name, voice)

    def _restore(self, path: Path) -> None:
        try:
            voice = KeptVoice.from_json(path)
        except (ConfigError, UnicodeDecodeError) as error:
            log.warning("%s is left out: %s; upload the voice again", path, error)
            return
        card = self.model.card
        if path.stem in self.voices:
            reason = "the model has a voice of this name; rename the file"
        elif voice.codec != card.codec:
            reason = (
                f"its codes are of codec {voice.codec[:12]}, the model speaks those of "
                f"{card.codec[:12]}; upload the voice again"
            )
        elif not all(0 <= code < card.codebook_size for code in voice.codes):
            reason = f"it has codes beyond the {card.codebook_size} of the codec; upload it again"
        else:
            self._keep(path.stem, voice)
            return
        log.warning("%s is left out: %s", path, reason)

    def _keep(self, name: str, voice: Voice) -> None:
        self.voices[name] = voice
        self.uploaded += 1


T = TypeVar("T")
Wave = NDArray[np.float32]
RETRIES = 1
WATCH_SECONDS = 0.5


class StreamingSynthesizer:
    """A serving model that speaks to many; made and used inside a running event loop.

    ``on_death`` is called when the engine's process has ended, other than by :meth:`close`.
    """

    def __init__(self, folder: Path, config: ServerConfig, on_death: Callable[[], None]) -> None:
        prepare_environment()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        card = read_card(folder)
        codec = open_codec(folder, card, default_device())
        self.model = ServedModel(card, open_prompts(folder, card), codec)
        self.allowed = allowed_ids(self.model.prompts.vocabulary).tolist()
        room = room_arguments(folder, config.gpu_memory, config.max_model_len)
        arguments = engine_arguments(folder, None, config.concurrency) | room
        self.positions = room["max_model_len"] - 1  # the last: the end token's
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self.codec_thread = ThreadPoolExecutor(1, "codec")
        self.names = count()
        self.faults: dict[Fault, int] = {}  # completions that were drawn again, or heard with it

        self.watch = asyncio.create_task(self._watch(on_death))

    async def _watch(self, on_death: Callable[[], None]) -> None:
        while not self.dead:
            await asyncio.sleep(WATCH_SECONDS)
        on_death()

    def close(self) -> None:
        """End the engine's processes and the codec's thread."""
        self.watch.cancel()
        self.engine.shutdown()
        self.codec_thread.shutdown(cancel_futures=True)

    @property
    def dead(self) -> bool:
        return bool(self.engine.errored)

    async def parts(self, line: SynthesisLine, sampling: SamplingConfig) -> list[PartialSpeech]:
        """The pieces of a line; raises ``SynthesisError`` if one does not fit the context."""
        parts = await asyncio.to_thread(self.model.parts, line, sampling)
        for part in parts:
            fitting(part, sampling, self.positions)
        return parts

    async def say(self, line: SynthesisLine, sampling: SamplingConfig) -> Speech:
        """Speak a line, all its pieces at once; as ``Synthesizer.say`` with one retry."""
        parts = await self.parts(line, sampling)
        spoken = await asyncio.gather(*(self._say(part, sampling) for part in parts))
        return self.model.joined(line.text, parts, spoken)

    async def stream(self, line: SynthesisLine, sampling: SamplingConfig) -> AsyncGenerator[Wave]:
        """The waveform of a line in chunks, from the first audible one on."""
        joiner = PieceConcatenator(self.model.sample_rate)
        for part in await self.parts(line, sampling):
            async with aclosing(self._stream(part, sampling, RETRIES)) as waves:
                async for wave in waves:
                    if len(due := joiner.push(wave)):
                        yield due
            joiner.end_piece(part.pause)
        yield joiner.finish()

    async def in_codec_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.codec_thread, function, *arguments)

    async def _say(self, part: PartialSpeech, sampling: SamplingConfig) -> Speech:
        first = speech = await self._once(part, sampling)
        for attempt in range(1, RETRIES + 1):
            if speech.fault:
                self._count(speech.fault)
                speech = await self._once(part.again(attempt), sampling)
        return first if speech.fault else speech

    async def _once(self, part: PartialSpeech, sampling: SamplingConfig) -> Speech:
        ids: list[int] = []
        async with aclosing(self._ids(part, sampling)) as drawn:
            async for more in drawn:
                ids += more
        codes = self._codes(ids)
        waves = await self.in_codec_thread(decode, self.model.codec, [codes], [part.voice])
        return self.model.judged(waves[0], codes, self._ended(ids))

    async def _stream(
        self, part: PartialSpeech, sampling: SamplingConfig, retries: int
    ) -> AsyncGenerator[Wave]:
        """As ``Synthesizer.stream`` of one piece."""
        piece = self.model.piece_stream(part)
        ids: list[int] = []
        async with aclosing(self._ids(part, sampling)) as drawn:
            async for more in drawn:
                ids += more
                piece.add(self._codes(more))
                while piece.due():
                    if len(wave := await self.in_codec_thread(piece.decode)):
                        yield wave
                if piece.looping:
                    break
        rest, found = await self.in_codec_thread(piece.finish, self._ended(ids))
        if found:
            self._count(found)
        if found and retries and not piece.given:
            async with aclosing(self._stream(part.again(1), sampling, retries - 1)) as again:
                async for wave in again:
                    yield wave
            return
        yield rest

    async def _ids(
        self, part: PartialSpeech, sampling: SamplingConfig
    ) -> AsyncGenerator[list[int]]:
        from vllm import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        sampling = fitting(part, sampling, self.positions)
        parameters = sampling_parameters(
            self.allowed,
            sampling,
            part.request.seed,
            logprobs=None,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = TokensPrompt(prompt_token_ids=part.request.prompt.tolist())
        outputs = self.engine.generate(prompt, parameters, f"speech-{next(self.names)}")
        drawn = 0
        async with aclosing(outputs):
            async for output in outputs:
                ids = [int(token) for token in output.outputs[0].token_ids]
                drawn += len(ids)
                if drawn > sampling.max_tokens and not self._ended(ids):
                    ids.pop()  # the place kept for an end token that did not come
                yield ids

    def _codes(self, ids: Sequence[int]) -> NDArray[np.int64]:
        return self.model.prompts.vocabulary.codes(np.asarray(ids, dtype=np.int64))

    def _ended(self, ids: Sequence[int]) -> bool:
        return bool(ids) and ids[-1] == self.model.prompts.vocabulary.speech_end

    def _count(self, fault: Fault) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1
