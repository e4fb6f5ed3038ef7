from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.conftest import CORPUS
from tests.support.speaking import LLAMA
from tts_assets.codec.model import Codec
from tts_assets.core.audio import Clip
from tts_assets.serving.pieces import fault
from tts_assets.serving.streaming import FIRST, LOOKAHEAD, StreamDecoder
from tts_assets.serving.synthesis import SynthesisLine, Synthesizer
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
    """The codes of a real sentence of 4 s."""
    return trained.encode([recordings["cannot-complete-as-dialed"][1].wave])[0]


def test_real_speech_has_no_fault(trained: Codec, recordings: dict[str, tuple[str, Clip]]) -> None:
    for _, clip in recordings.values():
        assert fault(trained.encode([clip.wave])[0], clip.wave, True, 16_000, 50) is None


def test_what_must_not_be_heard(trained: Codec, sentence: np.ndarray) -> None:
    wave = trained.decode([sentence])[0]
    looped = np.tile(sentence[60:85], 6)
    assert fault(sentence, wave, False, 16_000, 50) == "unending"
    assert fault(sentence, wave / 300, True, 16_000, 50) == "silent"
    assert fault(sentence[:0], wave[:0], True, 16_000, 50) == "silent"
    assert fault(looped, trained.decode([looped])[0], True, 16_000, 50) == "repeating"


class Scripted:
    """Completes with given codes: those of the first call, of the second, …"""

    positions = 2048

    def __init__(self, *answers: np.ndarray, vocabulary: SpeechVocabulary | None = None) -> None:
        self.answers = list(answers)
        self.vocabulary = vocabulary
        self.seeds: list[int] = []
        self.drawn = 0  # codes of the last stream

    def complete(
        self, requests: list[Request], sampling: SamplingConfig, progress: object
    ) -> list[Completion]:
        self.seeds += [request.seed for request in requests]
        none = np.empty(0)
        return [Completion(self.answers.pop(0), True, none, none) for _ in requests]

    def stream(self, request: Request, sampling: SamplingConfig) -> Iterator[int]:
        self.seeds.append(request.seed)
        assert self.vocabulary is not None
        self.drawn = 0
        for token in self.vocabulary.ids(self.answers.pop(0)):
            self.drawn += 1
            yield int(token)
        yield self.vocabulary.speech_end


@pytest.fixture
def scripted(synthesizer: Synthesizer, trained: Codec) -> Synthesizer:
    """The real synthesizer with the trained codec; its engine is to be replaced."""
    card = synthesizer.card.model_copy(update={"codebook_size": trained.codebook_size})
    lm = build(BaseModel(llama=LLAMA), trained.codebook_size, VocabularyConfig(), seed=0)
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    return Synthesizer(card, synthesizer.engine, prompts, trained)


def test_a_fault_is_drawn_again_once_with_another_seed(
    scripted: Synthesizer, sentence: np.ndarray
) -> None:
    looped = np.tile(sentence[60:85], 6)
    scripted.engine = engine = Scripted(looped, sentence)  # type: ignore[assignment]
    speech = scripted.say([SynthesisLine("hello", seed=4)], retries=1)[0]
    assert speech.fault is None and np.array_equal(speech.codes, sentence)
    assert engine.seeds[0] == 4 and engine.seeds[1] != 4


def test_a_fault_that_stays_is_told(scripted: Synthesizer, sentence: np.ndarray) -> None:
    looped = np.tile(sentence[60:85], 6)
    scripted.engine = Scripted(looped, looped)  # type: ignore[assignment]
    assert scripted.say([SynthesisLine("hello")], retries=1)[0].fault == "repeating"


def test_streamed_audio_is_the_whole_decodes(trained: Codec, sentence: np.ndarray) -> None:
    """But for what lies 12 dB below the speech, and exactly it where nothing follows."""
    prompt, codes = sentence[:40], sentence[40:]
    decoder = StreamDecoder(trained, prompt.tolist())
    chunks, first_at = [], 0
    for number, code in enumerate(codes, start=1):
        decoder.add(np.array([code]))
        if decoder.due():
            first_at = first_at or number
            chunks.append(decoder.decode())
    chunks.append(decoder.decode(last=True))
    streamed = np.concatenate(chunks)
    whole = trained.decode([sentence])[0][40 * 320 :]
    assert first_at == FIRST + LOOKAHEAD + 1 < len(codes)
    assert len(chunks) >= 3 and len(streamed) == len(whole)
    assert np.array_equal(streamed[-len(chunks[-1]) + 320 :], whole[-len(chunks[-1]) + 320 :])
    noise = ((streamed - whole) ** 2).sum()
    assert 10 * np.log10((whole**2).sum() / noise) > 12


def test_a_loop_that_is_streamed_ends_at_the_next_chunk(
    scripted: Synthesizer, sentence: np.ndarray
) -> None:
    """Its second saying begins at code 85, and codes to 112 are given when it is two seconds."""
    looped = np.concatenate([sentence[:60], np.tile(sentence[60:85], 20)])
    scripted.engine = engine = Scripted(looped, vocabulary=scripted.prompts.vocabulary)  # type: ignore[assignment]
    faults: list[str] = []
    heard = np.concatenate(list(scripted.stream(SynthesisLine("hello"), None, 1, faults.append)))
    assert len(heard) == 112 * 320
    assert engine.drawn == 249 < len(looped)
    assert faults == ["repeating"]


def test_a_short_loop_is_cut_where_it_begins_again(
    scripted: Synthesizer, sentence: np.ndarray
) -> None:
    looped = np.concatenate([sentence[:130], np.tile(sentence[60:80], 5)])
    assert looped[129] != looped[149]
    scripted.engine = Scripted(looped, vocabulary=scripted.prompts.vocabulary)  # type: ignore[assignment]
    assert sum(map(len, scripted.stream(SynthesisLine("hello")))) == 150 * 320


def test_silence_that_is_streamed_is_drawn_again(
    scripted: Synthesizer, trained: Codec, sentence: np.ndarray
) -> None:
    silence = trained.encode([np.zeros(48_000, dtype=np.float32)])[0]
    vocabulary = scripted.prompts.vocabulary
    scripted.engine = engine = Scripted(silence, sentence, vocabulary=vocabulary)  # type: ignore[assignment]
    faults: list[str] = []
    heard = np.concatenate(
        list(scripted.stream(SynthesisLine("hello", seed=4), None, 1, faults.append))
    )
    assert len(heard) == len(sentence) * 320
    assert faults == ["silent"]
    assert engine.seeds[0] == 4 and engine.seeds[1] != 4


def test_streaming_ids_are_those_of_the_whole(synthesizer: Synthesizer) -> None:
    line = SynthesisLine("one two", seed=8)
    waves = list(synthesizer.stream(line))
    speech = synthesizer.say([line])[0]
    assert len(waves) >= 3
    assert sum(map(len, waves)) == len(speech.wave)
    tail = 320 * 4
    assert np.allclose(np.concatenate(waves)[-tail:], speech.wave[-tail:], atol=1e-6)


def test_a_long_text_is_spoken_in_pieces(synthesizer: Synthesizer) -> None:
    sampling = synthesizer.card.sampling
    text = "One two three four. Five six seven. Eight nine ten."
    parts = synthesizer.parts(SynthesisLine(text, seed=1), sampling)
    assert len(parts) == 3
    assert len({part.request.seed for part in parts}) == 3 and parts[0].request.seed == 1
    speech = synthesizer.say([SynthesisLine(text, seed=1)])[0]
    assert len(speech.wave) > 320 * len(speech.codes)


def test_a_tag_that_the_model_does_not_know_is_refused(synthesizer: Synthesizer) -> None:
    with pytest.raises(ValueError, match="does not know <laugh>"):
        synthesizer.say([SynthesisLine("<laugh> one")])


def test_frequent_tokens_are_drawn_less(synthesizer: Synthesizer) -> None:
    sampling = synthesizer.card.sampling.model_copy(
        update={"temperature": 0.0, "repetition_penalty": 1.0}
    )
    plain = synthesizer.say([SynthesisLine("one")], sampling)[0].codes
    varied = sampling.model_copy(update={"frequency_penalty": 2.0})
    penalized = synthesizer.say([SynthesisLine("one")], varied)[0].codes
    assert len(set(penalized.tolist())) > len(set(plain.tolist()))
