"""The speakers of recordings, which are real clips of four people: windows, cuts, diarization."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support.recordings import speech_of
from tts_assets.audio_models.speaker_similarity import SpeakerEncoder, SpeakerSimilarity
from tts_assets.core.audio import AudioPool, Clip, Wave, read_wave
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.segments import PAUSE, SegmentConfig
from tts_assets.corpora.segments.recording import (
    FindSpeakers,
    Span,
    Transcript,
    cut,
    diarized,
    wanted_speaker,
)
from tts_assets.corpora.segments.recording import speech_of as speech_of_phrases
from tts_assets.corpora.segments.speech import RATE, Interval, find_speech
from tts_assets.corpora.segments.words import ANOTHER, Phrase, Word, choose

PROMPTS = Path(__file__).resolve().parents[3] / "examples" / "suites" / "prompts"
SHE = ("agent-newlocation", "demo-nomatch", "check-number-dial-again", "cannot-complete-as-dialed")
SILENCE = np.zeros(RATE // 2, np.float32)


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder()


def voice(name: str, seconds: float = 9.0) -> Wave:
    """Speech of another person."""
    wave = read_wave(PROMPTS / f"{name}.g722", RATE)
    speech = find_speech(wave, 0.5, PAUSE)
    wave = wave[round(speech[0].start * RATE) : round(speech[-1].end * RATE)]
    return wave[: round(seconds * RATE)]


@dataclass(frozen=True)
class Talk:
    """A recording, and where each of its parts lies in seconds."""

    wave: Wave
    parts: list[Interval]

    @classmethod
    def of(cls, *parts: Wave, gap: Wave = SILENCE) -> Talk:
        waves, bounds, at = [SILENCE], [], len(SILENCE)
        for part in parts:
            bounds.append(Interval(at / RATE, (at + len(part)) / RATE))
            waves += [part, gap]
            at += len(part) + len(gap)
        return cls(np.concatenate([*waves, SILENCE]), bounds)

    def spans(self, speakers: FindSpeakers | None, pool: Path) -> list[Span]:
        """The spans, with a word in each interval of speech and no ends of sentences."""
        speech = find_speech(self.wave, 0.5, PAUSE)
        words = tuple(Word(f" word{i}", s.start, s.end, 0.9) for i, s in enumerate(speech))
        transcript = Transcript("en", tuple(speech), words)
        config = SegmentConfig(loudness="none")
        return cut(Clip(self.wave, RATE, 1), transcript, config, speakers, AudioPool(pool))


def wanted(encoder: SpeakerEncoder) -> FindSpeakers:
    reference = SpeakerSimilarity(encoder, [(speech_of("vm-savefolder"), RATE)]).reference
    return partial(wanted_speaker, encoder, reference, 0.6)


def within(span: Span, part: Interval) -> float:
    """Seconds of ``part`` in the span."""
    return Interval(span.start / RATE, span.end / RATE).overlap(part)


@pytest.mark.parametrize("seconds", [1.5, 2.0, 3.0])
def test_a_clip_with_a_short_part_of_another_voice_is_not_kept(
    encoder: SpeakerEncoder, tmp_path: Path, seconds: float
) -> None:
    """Without a pause there is no cut: the embedding of the whole clip was above 0.75."""
    hers = speech_of("cannot-complete-as-dialed")
    mixed = np.concatenate([hers, voice("carlo_flora", seconds)])
    # a pause that no clip contains
    talk = Talk.of(speech_of("demo-nomatch"), mixed, gap=np.zeros(round(1.2 * RATE), np.float32))
    similarity = SpeakerSimilarity(encoder, [(speech_of("vm-savefolder"), RATE)])
    assert (similarity(mixed, RATE) or 0) > 0.7
    kept = [span for span in talk.spans(wanted(encoder), tmp_path) if span.clip]
    foreign = Interval(talk.parts[1].end - seconds, talk.parts[1].end)
    assert kept and all(within(span, foreign) < 0.2 for span in kept)
    assert any(within(span, talk.parts[0]) > 1 for span in kept)


def test_clips_are_cut_where_the_speaker_changes(encoder: SpeakerEncoder, tmp_path: Path) -> None:
    """Short pauses would join the phrases of both into one clip."""
    gap = SILENCE[: round(0.3 * RATE)]
    talk = Talk.of(speech_of("demo-nomatch"), voice("carlo_flora", 2.5), speech_of(SHE[0]), gap=gap)
    alone = [span for span in talk.spans(None, tmp_path) if span.clip]
    assert any(sum(within(span, part) > 0.5 for part in talk.parts) > 1 for span in alone)
    found = talk.spans(wanted(encoder), tmp_path)
    kept = [span for span in found if span.clip]
    assert len(kept) >= 2 and all(within(span, talk.parts[1]) < 0.2 for span in kept)
    assert all(span.speaker_similarity is not None for span in kept)
    assert any(span.reason == "another speaker" for span in found)


def test_the_speakers_of_a_recording_become_speakers(
    encoder: SpeakerEncoder, tmp_path: Path
) -> None:
    his = [voice("carlo_flora"), voice("carlo_flora", 2.2)]
    hers = [speech_of(key) for key in SHE]
    talk = Talk.of(hers[0], his[0], hers[1], hers[2], his[1], hers[3])
    whose = ["1", "2", "1", "1", "2", "1"]
    kept = [span for span in talk.spans(partial(diarized, encoder), tmp_path) if span.clip]
    found = set()
    for span in kept:
        (part,) = [i for i, part in enumerate(talk.parts) if within(span, part) > 0.5][:1]
        assert span.speaker == whose[part]
        found.add(span.speaker)
    assert found == {"1", "2"}


def test_one_speaker_stays_one(encoder: SpeakerEncoder, tmp_path: Path) -> None:
    talk = Talk.of(*(speech_of(key) for key in SHE))
    spans = talk.spans(partial(diarized, encoder), tmp_path)
    assert {span.speaker for span in spans if span.clip} == {""}


def test_windows_of_speech_are_unit_vectors(encoder: SpeakerEncoder) -> None:
    wave = speech_of("demo-nomatch")
    found = encoder.windows(wave)
    assert found.shape == (len(encoder.windows(wave[: RATE // 4])) + len(found) - 1, 256)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert encoder.windows(np.zeros(10, np.float32)).shape == (1, 256)


def phrase(start: float, speaker: int | None) -> Phrase:
    interval = Interval(start, start + 2.5)
    word = Word(" word.", interval.start, interval.end, 0.9)
    return Phrase(interval, interval, (word,), speaker)


def test_a_clip_has_phrases_of_one_speaker() -> None:
    """A phrase that is too short for an embedding belongs to either speaker."""
    config = SegmentConfig(min_seconds=5.0)
    runs, _ = choose([phrase(0, 0), phrase(2.6, 1)], config)
    assert runs == []
    runs, _ = choose([phrase(0, 0), phrase(2.6, None)], config)
    assert [len(run) for run in runs] == [2]
    _, left = choose([phrase(0, ANOTHER)], SegmentConfig())
    assert [why for _, why in left] == ["another speaker"]


def test_a_reference_and_diarization_exclude_each_other() -> None:
    values = {"path": "a", "reader": "recordings", "language": "en", "licence": "x"}
    segments = {"diarize": True, "speaker": {"reference": "her.wav"}}
    with pytest.raises(ValueError, match=r"diarize keeps all speakers.*drop one"):
        CorpusConfig.model_validate(values | {"segments": segments})


def test_the_speech_of_phrases_has_no_pauses() -> None:
    wave = np.arange(10 * RATE, dtype=np.float32)
    speech = speech_of_phrases(wave, [phrase(0, 0), phrase(5, 0)])
    assert len(speech) == 5 * RATE and speech[-1] == 7.5 * RATE - 1
