"""llama.cpp: the tokens of transformers, up to the rounding of the weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.support.speaking import Speaking
from tts_assets.core.config import ConfigError
from tts_assets.serving import synthesize
from tts_assets.serving.config import Quantization
from tts_assets.serving.llama_cpp import CONTEXT, cached_model, context_of
from tts_assets.serving.served_model import SynthesisError, SynthesisLine, read_card
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.serving.verify import compare_completions, greedy, greedy_sampling
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.model import SpeechLM

needs_llama = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="the extra llama is not installed"
)
TEXTS = tuple(
    f"{first} {second}"
    for first in ("one", "two", "three", "four", "good morning")
    for second in ("five", "six seven", "thank you for calling", "goodbye")
)
# Largest difference of a log-probability: rounding of weights and activations to 11 and 8 bits.
TOLERANCE: dict[Quantization, float] = {"f16": 5e-3, "q8_0": 5e-2}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of the tests of this file."""
    folder = tmp_path_factory.getbasetemp() / "cache_of_llama_cpp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "tts-assets" / "gguf"


@pytest.fixture
def llama(speaking: Speaking, cache: Path) -> Iterator[Synthesizer]:
    yield Synthesizer.open(speaking.serving.path, "llama.cpp", weights="f16")


@needs_llama
@pytest.mark.parametrize("weights", ["f16", "q8_0"])
def test_greedy_tokens_of_20_texts_are_those_of_transformers(
    speaking: Speaking, weights: Quantization
) -> None:
    assert len(set(TEXTS)) == 20
    lm = SpeechLM.load(speaking.serving.path, 256)
    requests, completions = greedy(lm, TEXTS, tokens=24)
    engine = Synthesizer.open(speaking.serving.path, "llama.cpp", weights=weights).engine
    answers = engine.complete(requests, greedy_sampling(24), None)
    agreement = compare_completions(completions, answers, TOLERANCE[weights])
    assert agreement.holds, agreement
    assert agreement.largest_difference > 0
    assert agreement.tokens > (400 if weights == "f16" else 100)


@needs_llama
def test_the_prompt_is_that_of_transformers(speaking: Speaking, llama: Synthesizer) -> None:
    own = Synthesizer.open(speaking.serving.path)
    sampling = SamplingConfig()
    line = SynthesisLine("good morning", llama.voice(next(iter(llama.card.voices))))
    [piece], [expected] = (one.piece_requests(line, sampling) for one in (llama, own))
    assert piece.request.prompt.tolist() == expected.request.prompt.tolist()
    assert llama.engine.positions == own.engine.positions


@needs_llama
def test_a_seed_gives_the_same_samples_alone_among_others_and_in_a_stream(
    llama: Synthesizer,
) -> None:
    lines = [SynthesisLine("goodbye", seed=1), SynthesisLine("one two three", seed=9)]
    _, among = llama.synthesize(lines)
    [alone] = llama.synthesize(lines[1:])
    assert np.array_equal(alone.codes, among.codes)
    assert alone.wave.tobytes() == among.wave.tobytes()
    sampling = llama.card.sampling
    [piece] = llama.piece_requests(lines[1], sampling)
    streamed = list(llama.engine.stream(piece.request, sampling))
    codes = llama.prompts.vocabulary.codes(streamed)
    assert codes[codes >= 0].tolist() == alone.codes.tolist()


@needs_llama
def test_the_command_writes_the_model_to_the_cache_once(
    speaking: Speaking, tmp_path: Path, cache: Path
) -> None:
    command = ["--model", str(speaking.serving.path), "--text=one", "--backend=llama.cpp"]
    for name in ("a.wav", "b.wav"):
        synthesize.main([*command, "--out", str(tmp_path / name)])
        [file] = cache.glob("tiny-*-q8_0.gguf")
        written = file.stat().st_mtime_ns
    assert written == file.stat().st_mtime_ns
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_another_model_has_another_file(speaking: Speaking, cache: Path) -> None:
    card = read_card(speaking.serving.path)
    file = cached_model(speaking.serving.path, card, "f16")
    assert file.parent == cache
    before = file.stat().st_mtime_ns
    assert cached_model(speaking.serving.path, card, "f16") == file
    assert file.stat().st_mtime_ns == before
    assert cached_model(speaking.serving.path, card, "q8_0") != file


def test_the_context_is_at_most_that_of_the_model(speaking: Speaking) -> None:
    folder = speaking.serving.path
    assert [context_of(folder, given) for given in (None, 512, 2 * CONTEXT)] == [1024, 512, 1024]


def test_missing_packages_are_named(
    speaking: Speaking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # as if it were not installed
    with pytest.raises(SynthesisError, match=r"pip install 'tts-assets\[llama\]'"):
        Synthesizer.open(speaking.serving.path, "llama.cpp")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    card = read_card(speaking.serving.path)
    with pytest.raises(ConfigError, match=r"pip install 'tts-assets\[export\]'"):
        cached_model(speaking.serving.path, card, "f16")
