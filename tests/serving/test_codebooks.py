"""A serving model over a codec with several codebooks: whole frames in every engine and stream."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.support.codecs import saved
from tests.support.speaking import Speaking, publish_all
from tts_assets.arrays.merge import check_codes
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.serving.async_engine import AsyncVllm
from tts_assets.serving.config import ServerConfig
from tts_assets.serving.pieces import Chunks, StreamDecoder, first_repeat
from tts_assets.serving.served_model import open_prompts, read_card
from tts_assets.serving.synthesis import SynthesisLine, Synthesizer, decode
from tts_assets.serving.verify import compare_vllm
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request
from tts_assets.speechlm.vocabulary import saved_vocabulary

SAMPLING = SamplingConfig(max_tokens=66, seed=3)  # no whole number of frames of seven


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Speaking:
    """SNAC with random weights, and an untrained Llama over its codes."""
    codec = saved("snac", tmp_path_factory.mktemp("snac"))
    return publish_all(ArtifactStore(tmp_path_factory.mktemp("storage")), clips, codec)


@pytest.fixture(scope="module")
def synthesizer(speaking: Speaking) -> Synthesizer:
    return Synthesizer.open(speaking.serving.path)


def test_arrays_have_whole_frames(speaking: Speaking) -> None:
    assert speaking.arrays.facts.frame == (64,) * 7
    assert check_codes(speaking.arrays)["codebook_size"] == 448


def test_a_completion_is_decoded_in_whole_frames(synthesizer: Synthesizer) -> None:
    name = next(iter(synthesizer.card.voices))
    lines = [SynthesisLine("one", seed=1), SynthesisLine("two", synthesizer.voice(name), seed=2)]
    codec = synthesizer.codec
    for line, speech in zip(lines, synthesizer.synthesize(lines, SAMPLING), strict=True):
        assert len(speech.codes) == 63 and codec.frame.problem(speech.codes) == ""
        assert speech.fault == "unending"
        (wave,) = decode(codec, [speech.codes], [line.voice])
        assert len(wave) == 9 * 2048 == len(speech.wave)


def test_a_stream_is_the_decoding_of_all_frames(synthesizer: Synthesizer) -> None:
    line = SynthesisLine("one two three", seed=5)
    (speech,) = synthesizer.synthesize([line], SAMPLING)
    streamed = np.concatenate(list(synthesizer.stream(line, SAMPLING)))
    assert len(streamed) == len(speech.wave)
    assert np.abs(streamed - speech.wave).max() < np.abs(speech.wave).max()


def test_chunks_are_whole_frames(synthesizer: Synthesizer) -> None:
    codec = synthesizer.codec
    chunks = Chunks(codec)
    assert [chunks.codes(n) for n in (1, 8, 16)] == [7, 14, 28]  # 12 frames per second
    codes = synthesizer.synthesize([SynthesisLine("one", seed=9)], SAMPLING)[0].codes
    decoder = StreamDecoder(codec)
    waves = []
    for code in codes:
        decoder.add(np.array([code]))
        if decoder.ready():
            waves.append(decoder.decode())
    decoder.add(codes[:3])  # the start of another frame
    waves.append(decoder.decode(last=True))
    assert [len(wave) // 2048 for wave in waves] == [4, 5]


def test_a_loop_is_a_repetition_of_frames() -> None:
    random = np.random.default_rng(0)
    offsets = np.arange(7) * 64
    frames = random.integers(0, 64, (60, 7))
    looped = np.concatenate([frames[:20], *[frames[20:23]] * 10]) + offsets
    assert first_repeat(looped.ravel(), 82.0, 7) == 23 * 7
    assert first_repeat((frames + offsets).ravel(), 82.0, 7) is None


@pytest.mark.slow
def test_vllm_samples_the_same_frames(speaking: Speaking) -> None:
    size = speaking.codec.facts.codebook_size
    folders = speaking.checkpoint.path, speaking.serving.path
    agreement = compare_vllm(*folders, size, ["one two", "three"], tokens=30)
    assert agreement.holds and agreement.tokens > 30, agreement


@pytest.mark.slow
def test_concurrent_requests_of_the_server_are_frames(speaking: Speaking) -> None:
    """The asynchronous engine, with requests of several lengths in one batch."""
    folder = speaking.serving.path
    vocabulary = saved_vocabulary(folder)
    prompts = open_prompts(folder, read_card(folder))
    sampling = SamplingConfig(temperature=1.0, top_k=0, max_tokens=45)

    async def completions() -> list[list[int]]:
        engine = AsyncVllm(folder, vocabulary, ServerConfig(max_model_len=256))

        async def complete(seed: int) -> list[int]:
            request = Request(prompts.inference("one two"[: 3 + seed]), seed)
            own = sampling.model_copy(update={"max_tokens": 45 - 4 * seed})
            return [token async for ids in engine.generate(request, own) for token in ids]

        try:
            return await asyncio.gather(*map(complete, range(5)))
        finally:
            engine.close()

    for seed, ids in enumerate(asyncio.run(completions())):
        codes = vocabulary.codes(ids)
        assert vocabulary.frame.first_misplaced(codes) is None
        ended = ids[-1] == vocabulary.speech_end
        assert len(codes) % 7 == 0 if ended else len(codes) == 45 - 4 * seed
