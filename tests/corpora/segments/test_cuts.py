"""Cuts of a recording by pauses, words and the configured lengths."""

from __future__ import annotations

from tts_assets.corpora.segments import SegmentConfig
from tts_assets.corpora.segments.speech import Interval
from tts_assets.corpora.segments.words import Word, choose, phrases, windows


def spoken(*parts: tuple[float, float, str]) -> tuple[list[Interval], list[Word]]:
    """Intervals of speech, each with one word of the same time."""
    intervals = [Interval(start, end) for start, end, _ in parts]
    return intervals, [Word(text, start, end, 0.9) for start, end, text in parts if text]


def cut(
    speech: list[Interval], words: list[Word], **config: float
) -> tuple[list[str], dict[str, str]]:
    """The texts of the clips, and the reason for each other text."""
    clips, left = choose(phrases(speech, speech, words), SegmentConfig(**config))
    texts = ["".join(word.text for phrase in clip for word in phrase.words) for clip in clips]
    return texts, {"".join(word.text for word in phrase.words): why for phrase, why in left}


def test_sentences_are_clips_where_they_are_long_enough() -> None:
    found = cut(*spoken((0, 3, " One."), (3.3, 6, " Two."), (6.4, 9, " Three.")))
    assert found == ([" One.", " Two.", " Three."], {})


def test_short_phrases_are_joined_up_to_the_end_of_a_sentence() -> None:
    speech, words = spoken(
        (0, 1.5, " One,"), (1.8, 3, " two."), (3.3, 4.5, " And"), (4.7, 6, " six.")
    )
    assert cut(speech, words)[0] == [" One, two.", " And six."]


def test_too_long_and_too_short_phrases_are_set_aside() -> None:
    speech, words = spoken((0, 11, " Long."), (13, 14, " Short."), (16, 19, " Right."))
    assert cut(speech, words) == (
        [" Right."],
        {" Long.": "too long without a pause", " Short.": "too short"},
    )


def test_a_long_pause_is_in_no_clip() -> None:
    speech, words = spoken((0, 1.5, " One,"), (2.9, 4.5, " two."))
    assert cut(speech, words)[0] == []
    assert cut(speech, words, longest_pause=1.5)[0] == [" One, two."]


def test_speech_without_words_is_in_no_clip() -> None:
    speech, words = spoken((0, 1.2, " One,"), (1.5, 2.5, ""), (2.8, 4, " two."))
    assert cut(speech, words) == (
        [],
        {" One,": "too short", "": "no words heard", " two.": "too short"},
    )


def test_a_pause_inside_a_word_is_not_a_cut() -> None:
    speech = [Interval(0, 2.5), Interval(2.8, 5.5)]
    words = [Word(" in", 0, 2, 0.9), Word(" side", 2, 3.2, 0.9), Word(" it.", 3.2, 5.5, 0.9)]
    assert cut(speech, words)[0] == [" in side it."]
    words[1] = Word(" side", 2, 2.85, 0.9)  # as exact as Whisper's timestamps are
    assert cut(speech, words, longest_pause=0.2, max_seconds=3)[0] == [" in side", " it."]


def test_a_word_that_includes_a_pause_is_assigned_to_its_speech() -> None:
    speech = [Interval(0, 2.5), Interval(4, 7)]
    words = [Word(" One.", 0.5, 4.0, 0.9), Word(" Two.", 4.0, 7.0, 0.9)]
    assert cut(speech, words)[0] == [" One.", " Two."]


def test_windows_hold_all_speech_and_end_in_long_pauses() -> None:
    speech = [Interval(i * 4.0, i * 4.0 + 3.5) for i in range(10)]
    speech[5] = Interval(20.0, 22.0)
    assert [(part.start, part.end) for part in windows(speech)] == [(0, 22.0), (24.0, 39.5)]
    assert list(windows([Interval(0, 40), Interval(41, 43)])) == [Interval(41, 43)]
