from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import numpy as np
import pytest

from tests.conftest import CORPUS
from tests.support.speaking import LLAMA
from tts_assets.audio_models.watermark import Watermarker, mark
from tts_assets.codec.model import Codec
from tts_assets.core.audio import Clip
from tts_assets.serving.pieces import FIRST, LOOKAHEAD, StreamDecoder, find_fault
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speechlm.config import BaseModel, SamplingConfig, VocabularyConfig
from tts_assets.speechlm.generate import Completion, Request
from tts_assets.speechlm.model import build
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.vocabulary import SpeechVocabulary

TRAINED = CORPUS.parents[1] / "codecs" / "announcer-16khz"


@pytest.fixture(scope="module")
def trained() -> Codec:
    return Codec.load(TRAINED)


@pytest.fixture(scope="module")
def sentence(trained: Codec, recordings: dict[str, tuple[str, Clip]]) -> np.ndarray:
    """The codes of a recorded sentence of 4 s."""
    return trained.encode([recordings["cannot-complete-as-dialed"][1].wave])[0]


def test_real_speech_has_no_fault(trained: Codec, recordings: dict[str, tuple[str, Clip]]) -> None:
    for _, clip in recordings.values():
        assert find_fault(trained.encode([clip.wave])[0], clip.wave, True, 16_000, 50) is None


def test_faults_are_found(trained: Codec, sentence: np.ndarray) -> None:
    wave = trained.decode([sentence])[0]
    looped = np.tile(sentence[60:85], 6)
    assert find_fault(sentence, wave, False, 16_000, 50) == "unending"
    assert find_fault(sentence, wave / 300, True, 16_000, 50) == "silent"
    assert find_fault(sentence[:0], wave[:0], True, 16_000, 50) == "silent"
    assert find_fault(looped, trained.decode([looped])[0], True, 16_000, 50) == "repeating"


class ScriptedEngine:
    """Completes requests with given codes, one array a call."""

    positions = 2048

    def __init__(self, *answers: np.ndarray, vocabulary: SpeechVocabulary | None = None) -> None:
        self.answers = list(answers)
        self.vocabulary = vocabulary
        self.seeds: list[int] = []
        self.sampled = 0  # codes of the last stream

    def complete(
        self, requests: list[Request], sampling: SamplingConfig, progress: object
    ) -> list[Completion]:
        self.seeds += [request.seed for request in requests]
        none = np.empty(0)
        return [Completion(self.answers.pop(0), True, none, none) for _ in requests]

    def stream(self, request: Request, sampling: SamplingConfig) -> Iterator[int]:
        self.seeds.append(request.seed)
        assert self.vocabulary is not None
        self.sampled = 0
        for token in self.vocabulary.ids(self.answers.pop(0)):
            self.sampled += 1
            yield int(token)
        yield self.vocabulary.speech_end


@pytest.fixture
def scripted(synthesizer: Synthesizer, trained: Codec) -> Synthesizer:
    """A synthesizer with the trained codec. The tests replace its engine."""
    card = synthesizer.card.model_copy(update={"codebook_size": trained.codebook_size})
    lm = build(BaseModel(llama=LLAMA), trained.codebook_size, VocabularyConfig(), seed=0)
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    return Synthesizer(card, synthesizer.engine, prompts, trained)


def test_faulty_completion_is_retried_with_another_seed(
    scripted: Synthesizer, sentence: np.ndarray
) -> None:
    looped = np.tile(sentence[60:85], 6)
    scripted.engine = engine = ScriptedEngine(looped, sentence)  # type: ignore[assignment]
    speech = scripted.synthesize([SynthesisLine("hello", seed=4)], retries=1)[0]
    assert speech.fault is None and np.array_equal(speech.codes, sentence)
    assert engine.seeds[0] == 4 and engine.seeds[1] != 4


def test_repeated_fault_is_reported(scripted: Synthesizer, sentence: np.ndarray) -> None:
    looped = np.tile(sentence[60:85], 6)
    scripted.engine = ScriptedEngine(looped, looped)  # type: ignore[assignment]
    assert scripted.synthesize([SynthesisLine("hello")], retries=1)[0].fault == "repeating"


def test_streamed_audio_equals_whole_decoding(trained: Codec, sentence: np.ndarray) -> None:
    """Differences are at least 10 dB below the speech. The last chunk is equal."""
    prompt, codes = sentence[:40], sentence[40:]
    decoder = StreamDecoder(trained, prompt.tolist())
    chunks, first_at = [], 0
    for number, code in enumerate(codes, start=1):
        decoder.add(np.array([code]))
        if decoder.ready():
            first_at = first_at or number
            chunks.append(decoder.decode())
    chunks.append(decoder.decode(last=True))
    streamed = np.concatenate(chunks)
    whole = trained.decode([sentence])[0][40 * 320 :]
    assert first_at == FIRST + LOOKAHEAD + 1 < len(codes)
    assert len(chunks) >= 3 and len(streamed) == len(whole)
    assert np.array_equal(streamed[-len(chunks[-1]) + 320 :], whole[-len(chunks[-1]) + 320 :])
    noise = ((streamed - whole) ** 2).sum()
    assert 10 * np.log10((whole**2).sum() / noise) > 10


def test_streamed_loop_ends_at_the_next_chunk(scripted: Synthesizer, sentence: np.ndarray) -> None:
    """The repetition starts at code 85. Codes up to 112 are returned before it is detected."""
    looped = np.concatenate([sentence[:60], np.tile(sentence[60:85], 20)])
    scripted.engine = engine = ScriptedEngine(looped, vocabulary=scripted.prompts.vocabulary)  # type: ignore[assignment]
    faults: list[str] = []
    wave = np.concatenate(list(scripted.stream(SynthesisLine("hello"), None, 1, faults.append)))
    assert len(wave) == 112 * 320
    assert engine.sampled == 249 < len(looped)
    assert faults == ["repeating"]


def test_short_loop_is_cut_at_its_repetition(scripted: Synthesizer, sentence: np.ndarray) -> None:
    looped = np.concatenate([sentence[:130], np.tile(sentence[60:80], 5)])
    assert looped[129] != looped[149]
    scripted.engine = ScriptedEngine(looped, vocabulary=scripted.prompts.vocabulary)  # type: ignore[assignment]
    assert sum(map(len, scripted.stream(SynthesisLine("hello")))) == 150 * 320


def test_silent_stream_is_retried(
    scripted: Synthesizer, trained: Codec, sentence: np.ndarray
) -> None:
    silence = trained.encode([np.zeros(48_000, dtype=np.float32)])[0]
    vocabulary = scripted.prompts.vocabulary
    scripted.engine = engine = ScriptedEngine(silence, sentence, vocabulary=vocabulary)  # type: ignore[assignment]
    faults: list[str] = []
    wave = np.concatenate(
        list(scripted.stream(SynthesisLine("hello", seed=4), None, 1, faults.append))
    )
    assert len(wave) == len(sentence) * 320
    assert faults == ["silent"]
    assert engine.seeds[0] == 4 and engine.seeds[1] != 4


@pytest.fixture
def unmarked(synthesizer: Synthesizer) -> Synthesizer:
    """The synthesizer of a serving model without the watermark."""
    other = copy(synthesizer)
    other.card = other.card.model_copy(update={"watermark": False})
    return other


def test_the_watermark_is_the_only_difference(
    synthesizer: Synthesizer, unmarked: Synthesizer
) -> None:
    line = SynthesisLine("one two", seed=8)
    rate = synthesizer.sample_rate
    marked, bare = (one.synthesize([line])[0].wave for one in (synthesizer, unmarked))
    assert np.array_equal(marked, mark(bare, rate))
    assert not np.array_equal(marked, bare)
    watermarker = Watermarker(rate)
    expected = [watermarker.push(wave) for wave in unmarked.stream(line)]
    for wave, other in zip(synthesizer.stream(line), expected, strict=True):
        assert np.array_equal(wave, other)


def test_stream_has_the_tokens_of_the_whole_synthesis(unmarked: Synthesizer) -> None:
    synthesizer, line = unmarked, SynthesisLine("one two", seed=8)
    waves = list(synthesizer.stream(line))
    speech = synthesizer.synthesize([line])[0]
    assert len(waves) >= 3
    assert sum(map(len, waves)) == len(speech.wave)
    tail = 320 * 4
    assert np.allclose(np.concatenate(waves)[-tail:], speech.wave[-tail:], atol=1e-6)


def test_long_text_is_synthesized_in_pieces(synthesizer: Synthesizer) -> None:
    sampling = synthesizer.card.sampling
    text = "One two three four. Five six seven. Eight nine ten."
    parts = synthesizer.piece_requests(SynthesisLine(text, seed=1), sampling)
    assert len(parts) == 3
    assert len({part.request.seed for part in parts}) == 3 and parts[0].request.seed == 1
    speech = synthesizer.synthesize([SynthesisLine(text, seed=1)])[0]
    assert len(speech.wave) > 320 * len(speech.codes)


def test_unknown_nonverbal_tag_is_rejected(synthesizer: Synthesizer) -> None:
    with pytest.raises(ValueError, match="does not know <laugh>"):
        synthesizer.synthesize([SynthesisLine("<laugh> one")])


def test_frequency_penalty_gives_more_distinct_codes(synthesizer: Synthesizer) -> None:
    sampling = synthesizer.card.sampling.model_copy(
        update={"temperature": 0.0, "repetition_penalty": 1.0}
    )
    plain = synthesizer.synthesize([SynthesisLine("one")], sampling)[0].codes
    varied = sampling.model_copy(update={"frequency_penalty": 2.0})
    penalized = synthesizer.synthesize([SynthesisLine("one")], varied)[0].codes
    assert len(set(penalized.tolist())) > len(set(plain.tolist()))
