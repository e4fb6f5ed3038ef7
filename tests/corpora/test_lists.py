"""Columns of lists, quoted cells, names from other systems, and signs of mixed-up columns."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import polars as pl
import pytest

from tests.support.corpus_layouts import index, write
from tests.support.encoding import mp3, speech_like
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.index import index_corpus, plausibility
from tts_assets.corpora.readers.lists import cells_of

TEXTS = ["Good morning to you all.", "The train leaves at noon.", "Please close the door."]
NAMES = ["Ann Smith", "Bob Jones"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the mp3 files 0 to 2, which have no Xing header."""
    for number in range(3):
        path = tmp_path / "c" / f"{number}.mp3"
        mp3(path, speech_like(seed=number), 16_000, xing=False)
    return tmp_path / "c"


def read(root: Path, list_lines: list[str], **fields: object) -> list[tuple[str, str]]:
    """Speaker and text of each clip of a list with these lines, in order of the audio."""
    write(root / "metadata.csv", "\n".join(list_lines) + "\n")
    out = root.parent / f"out{len(list(root.parent.iterdir()))}"
    rows, _ = index(root, out, "pipe_list", **fields)
    return rows.sort("audio").select("speaker", "text").rows()


@pytest.mark.parametrize(
    "form", ["{n}.mp3|{speaker}|{text}", "{n}.mp3|{text}|{speaker}", "{text}|{n}.mp3|{speaker}"]
)
@pytest.mark.parametrize("speakers", [["0", "0", "1"], ["ann", "ann", "bob"]])
def test_columns_are_recognized_by_content(root: Path, form: str, speakers: list[str]) -> None:
    rows = list(zip(speakers, TEXTS, strict=True))
    lines = [form.format(n=n, speaker=who, text=text) for n, (who, text) in enumerate(rows)]
    assert read(root, lines) == rows


def test_a_raw_and_a_normalized_text_are_no_speaker(root: Path) -> None:
    lines = [f"{n}.mp3|Dr. {text}|Doctor {text}" for n, text in enumerate(TEXTS)]
    assert read(root, lines) == [("", f"Doctor {text}") for text in TEXTS]


def test_names_of_several_words_are_recognized_by_their_repetition(root: Path) -> None:
    lines = [f"{n % 3}.mp3|{NAMES[n % 2]}|Sentence number {n} of many." for n in range(12)]
    assert {speaker for speaker, _ in read(root, lines)} <= set(NAMES)


def test_ambiguous_columns_are_refused_with_both_readings(root: Path) -> None:
    lines = ["0.mp3|one|zoe", "1.mp3|two|ann", "2.mp3|three|bob"]
    with pytest.raises(ConfigError) as refused:
        read(root, lines)
    assert "'one' says 'zoe'" in str(refused.value)
    assert "'zoe' says 'one'" in str(refused.value)
    columns = {"columns": ["audio", "text", "speaker"]}
    assert read(root, lines, options=columns)[0] == ("zoe", "one")
    with pytest.raises(ConfigError, match="4 columns without a header"):
        read(root, ["0.mp3|a b|c d|e f"])
    with pytest.raises(ValueError, match="'text' once"):
        CorpusConfig.model_validate(
            {
                "path": root,
                "reader": "pipe_list",
                "language": "en",
                "options": {"columns": ["audio", "speaker"]},
            }
        )


def test_names_beside_words_that_differ_are_ambiguous(root: Path) -> None:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
    lines = [f"{n % 3}.mp3|Ann Smith|{word}" for n, word in enumerate(words)]
    with pytest.raises(ConfigError, match="'Ann Smith' says 'zero'"):
        read(root, lines)
    options = {"columns": ["audio", "speaker", "text"]}
    assert set(read(root, lines, options=options)) <= {("Ann Smith", word) for word in words}


def test_a_header_without_a_column_of_texts_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="needs audio_file and text once"):
        read(root, ["audio_file|transcript|speaker_name", "0.mp3|Good morning.|ann"])
    rows = read(root, ["speaker_name|text|audio_file", "ann|Good morning.|0.mp3"])
    assert rows == [("ann", "Good morning.")]


@pytest.mark.parametrize(
    ("line", "quoted", "cells"),
    [
        ('a|"He said ""good morning"" to me."', False, ["a", 'He said "good morning" to me.']),
        ('a|"one|two"|b', False, ["a", "one|two", "b"]),
        ('a|"Yes, sir."', False, ["a", '"Yes, sir."']),
        ('a|"Yes, sir."', True, ["a", "Yes, sir."]),
        ('a|"Yes," he said.|b', False, ["a", '"Yes," he said.', "b"]),
        ('a|he said "yes"', False, ["a", 'he said "yes"']),
        ("a||b", False, ["a", "", "b"]),
    ],
)
def test_quoted_cells(line: str, quoted: bool, cells: list[str]) -> None:
    assert cells_of(line, quoted=quoted) == cells


def test_a_list_that_quotes_every_text_is_csv(root: Path) -> None:
    lines = [f'{n}.mp3|"{text}"' for n, text in enumerate(TEXTS)]
    assert [text for _, text in read(root, lines)] == TEXTS
    lines = [f'{n}.mp3|"""Yes"", {text}"' for n, text in enumerate(TEXTS)]
    assert [text for _, text in read(root, lines)] == [f'"Yes", {text}' for text in TEXTS]
    lines = ['0.mp3|"He said ""yes"" to me."', '1.mp3|"The train, it leaves."', "2.mp3|Well then."]
    assert [text for _, text in read(root, lines)] == [
        'He said "yes" to me.',
        "The train, it leaves.",
        "Well then.",
    ]
    lines = ['0.mp3|"Yes, sir."', "1.mp3|Well then."]  # not CSV: nothing needs quotes
    assert [text for _, text in read(root, lines)] == ['"Yes, sir."', "Well then."]


@pytest.mark.parametrize("reader", ["pipe_list", "ljspeech"])
def test_a_quoted_text_of_two_lines_is_set_aside(root: Path, tmp_path: Path, reader: str) -> None:
    (root / "wavs").symlink_to(root)
    lines = ['0.mp3|"He said ""yes"" to me."', '1.mp3|"The first half', 'and the second half."']
    write(root / "metadata.csv", "\n".join([*lines, "2.mp3|Well then."]) + "\n")
    rows, set_aside = index(root, tmp_path / "out", reader)
    assert set(rows["text"]) == {'He said "yes" to me.', "Well then."}
    assert (set_aside[0].what, set_aside[0].reason) == ("metadata.csv:2", "unfinished quote")


def test_ljspeech_with_a_column_of_speakers(root: Path, tmp_path: Path) -> None:
    (root / "wavs").mkdir()
    for number in range(3):
        (root / f"{number}.mp3").rename(root / "wavs" / f"{number}.mp3")
    lines = [f"{n}|{text}|{n % 2}" for n, text in enumerate(TEXTS)]
    write(root / "metadata.csv", "\n".join(lines) + "\n")
    rows, set_aside = index(root, tmp_path / "out", "ljspeech")
    assert set(rows["text"]) == set(TEXTS) and set(rows["speaker"]) == {"0", "1"}
    assert not set_aside  # the audio is mp3 although the layout says wav


@pytest.mark.parametrize(
    ("written", "stored", "match"),
    [
        (unicodedata.normalize("NFC", "café.mp3"), unicodedata.normalize("NFD", "café.mp3"), "Uni"),
        (unicodedata.normalize("NFD", "café.mp3"), unicodedata.normalize("NFC", "café.mp3"), "Uni"),
        ("Clips/A.MP3", "clips/a.mp3", "letter case, letter case"),
        ("clips\\a.mp3", "clips/a.mp3", "backslashes"),
        ("a", "a.mp3", "suffix"),
    ],
)
def test_names_of_other_systems_are_matched(
    root: Path, store: object, written: str, stored: str, match: str
) -> None:
    (root / stored).parent.mkdir(exist_ok=True)
    (root / "0.mp3").rename(root / stored)
    sample = {"wav_path": written, "transcript": "one two"}
    write(root / "samples.jsonl", json.dumps(sample) + "\n")
    config = CorpusConfig(path=root, reader="jsonl", language="en")
    result = root.parent / "result"
    result.mkdir()
    facts = index_corpus("c", root.resolve(), config, store, result)  # type: ignore[arg-type]
    assert facts.utterances == 1
    (name,) = facts.adjusted
    assert name.startswith("name matched by") and match in name
    assert facts.unused_files == {".mp3": 2}


def test_several_similar_names_are_reported(root: Path, tmp_path: Path) -> None:
    (root / "0.mp3").rename(root / "A.mp3")
    (root / "1.mp3").rename(root / "a.MP3")
    write(root / "metadata.csv", "a.mp3|Good morning.\n2.mp3|Well then.\n")
    _, (record,) = index(root, tmp_path / "out", "pipe_list")
    assert record.reason == "no such file" and "A.mp3, a.MP3 have similar names" in record.detail


def test_a_file_with_another_suffix_is_named(root: Path, tmp_path: Path) -> None:
    write(root / "metadata.csv", "0.wav|Good morning.\n1.mp3|Well then.\n")
    _, (record,) = index(root, tmp_path / "out", "pipe_list")
    assert record.reason == "no such file" and "there is 0.mp3" in record.detail


def test_files_that_nothing_reads_are_counted(root: Path, store: object) -> None:
    for name in ("x.gsm", "deep/y.gsm", "z.wma", "book.m4b", "notes.txt"):
        write(root / name, "x")
    write(root / "metadata.csv", "0.mp3|Good morning.\n")
    config = CorpusConfig(path=root, reader="pipe_list", language="en")
    (root.parent / "out").mkdir()
    facts = index_corpus("c", root.resolve(), config, store, root.parent / "out")  # type: ignore[arg-type]
    assert facts.unused_files == {".gsm": 2, ".m4b": 1, ".mp3": 2, ".wma": 1}


@pytest.mark.parametrize("above", ["wav", "dev/aac"])
def test_folders_above_the_speakers_are_skipped(root: Path, tmp_path: Path, above: str) -> None:
    for number in range(3):
        path = root / above / f"id1000{number}" / "session" / "00001.mp3"
        path.parent.mkdir(parents=True)
        (root / f"{number}.mp3").rename(path)
    rows, _ = index(root, tmp_path / "out", "speakers")
    assert set(rows["speaker"]) == {"id10000", "id10001", "id10002"}


def test_a_line_that_is_too_long_is_set_aside(root: Path, tmp_path: Path) -> None:
    good = json.dumps({"wav_path": "0.mp3", "transcript": "one two"})
    long = json.dumps({"wav_path": "1.mp3", "transcript": "one " * 500_000})
    write(root / "samples.jsonl", f"{long}\n{good}\n")
    rows, (record,) = index(root, tmp_path / "out")
    assert (record.what, record.reason) == ("samples.jsonl:1", "line too long")
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("speakers", "texts", "sign"),
    [
        (["a"] * 12, [f"Sentence number {n}." for n in range(12)], None),
        ([str(n) for n in range(12)], [f"Sentence {n}." for n in range(12)], "12 speakers"),
        (["a"] * 12, ["zero", "one"] * 6, "2 distinct texts"),
        ([f"Well, this is {n}" for n in range(3)], ["a b"] * 3, "look like sentences"),
        (["a"] * 12, [f"SENTENCE NUMBER {n}" for n in range(12)], "all texts are in capitals"),
        (["a"] * 12, [f"sentence number {n}" for n in range(12)], "no text has a capital"),
        (["a"] * 12, [f"\u4f60\u597d, {n} \u6587." for n in range(12)], None),
        (["a"] * 4, [f"wavs/LJ00{n}.wav" for n in range(4)], "ids or paths"),
        (["a"] * 4, ["LJ001-0001", "LJ001-0002", "LJ001-0003", "x"], "ids or paths"),
    ],
)
def test_signs_of_mixed_up_columns(speakers: list[str], texts: list[str], sign: str | None) -> None:
    signs = plausibility(pl.DataFrame({"speaker": speakers, "text": texts}))
    assert signs == [] if sign is None else any(sign in each for each in signs)
