from __future__ import annotations

import numpy as np
import pytest

from tts_assets.serving.pieces import (
    CROSSFADE_SECONDS,
    LONGEST_PAUSE,
    Piece,
    PieceConcatenator,
    sections,
    speech_length,
    split,
)

TEXT = (
    "The number you have dialed is not in service. Please check the number, Dr. Smith, and dial "
    "again! Would you like to leave a message? Press one."
)


def test_short_text_is_one_piece() -> None:
    assert split("  one two three ", 40) == [Piece("one two three", 0.0)]


def test_long_text_is_split_at_sentences() -> None:
    pieces = split(TEXT, 70)
    assert [piece.text[-8:] for piece in pieces] == ["service.", "l again!", "ess one."]
    assert [piece.pause for piece in pieces] == [0.35, 0.35, 0.0]


def test_pieces_have_all_words() -> None:
    for longest in range(20, 160, 7):
        pieces = split(TEXT, longest)
        assert " ".join(piece.text for piece in pieces).split() == TEXT.split()
        assert all(speech_length(piece.text) <= longest for piece in pieces)


def test_long_sentence_is_split_at_commas_then_words() -> None:
    pieces = split("one two three four, five six seven eight nine ten", 22)
    assert pieces == [
        Piece("one two three four,", 0.15),
        Piece("five six seven eight", 0.0),
        Piece("nine ten", 0.0),
    ]


def test_abbreviation_does_not_end_a_sentence() -> None:
    assert split("He saw Dr. Smith. He left.", 18)[0].text == "He saw Dr. Smith."


def test_paragraph_has_a_longer_pause() -> None:
    assert split("One two three four.\n\nFive six seven eight.", 24)[0].pause == 0.6


def test_marks_of_pauses_divide_a_text() -> None:
    text = 'One [pause 0.5s] two<break time="250ms"/> three [PAUSE] four <break strength="weak"/>'
    assert [(each.text.strip(), each.pause) for each in sections(text)] == [
        ("One", 0.5),
        ("two", 0.25),
        ("three", 0.7),
        ("four", 0.2),
        ("", 0.0),
    ]
    text = "<break strength='weak' time='500 ms'/>one<break time=2s>two"
    assert [(each.text, each.pause) for each in sections(text)] == [
        ("", 0.5),
        ("one", 2.0),
        ("two", 0.0),
    ]
    assert sections("no marks <laugh>") == [Piece("no marks <laugh>", 0.0)]
    assert sections("a [pause 99999s] b")[0].pause == LONGEST_PAUSE
    with pytest.raises(ValueError, match=r"'1\.2\.3' is no pause"):
        sections("a [pause 1.2.3] b")


def test_chinese_is_split_without_spaces() -> None:
    assert [p.text for p in split("你好世界。今天天气很好。", 20)] == [
        "你好世界。",
        "今天天气很好。",
    ]


def tone(samples: int, level: float = 0.5) -> np.ndarray:
    return (level * np.cos(np.arange(samples) / 5)).astype(np.float32)


def concatenated(pieces: list[np.ndarray], pause: float, chunk: int) -> np.ndarray:
    concatenator = PieceConcatenator(16_000)
    out = []
    for piece in pieces:
        out += [concatenator.push(piece[i : i + chunk]) for i in range(0, len(piece), chunk)]
        concatenator.end_piece(pause)
    return np.concatenate([*out, concatenator.finish()])


@pytest.mark.parametrize("pause", [0.0, 0.35])
def test_no_click_between_pieces(pause: float) -> None:
    """Neighboring samples differ no more than within the tone."""
    wave = concatenated([tone(8000), -tone(8000)], pause, chunk=3000)
    assert np.abs(np.diff(wave)).max() <= 1.1 * np.abs(np.diff(tone(8000))).max()


def test_chunk_size_does_not_change_the_result() -> None:
    pieces = [tone(8000), tone(5000, 0.2)]
    assert np.allclose(concatenated(pieces, 0.2, 8000), concatenated(pieces, 0.2, 700), atol=1e-7)


def test_existing_silence_counts_towards_the_pause() -> None:
    quiet = np.zeros(1600, dtype=np.float32)
    wave = concatenated([np.concatenate([tone(4000), quiet]), tone(4000)], 0.35, 9999)
    assert len(wave) == 8000 + round(0.35 * 16_000)


def test_pieces_without_pause_are_crossfaded() -> None:
    assert (
        len(concatenated([tone(4000), tone(4000)], 0.0, 9999)) == 8000 - CROSSFADE_SECONDS * 16_000
    )
