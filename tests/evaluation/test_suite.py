"""The demo's suite is held out; an invalid suite is refused with the line number."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tts_assets.core.config import ConfigError
from tts_assets.evaluation.suite import (
    SuiteText,
    audio_digests,
    known_texts,
    read_suite,
    source_digest,
    suite_languages,
    write_suite,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_demo_suite_is_held_out() -> None:
    suite = read_suite(EXAMPLES / "suites" / "announcer.jsonl")
    corpus = EXAMPLES / "corpora" / "asterisk_en" / "samples.jsonl"
    recorded = [json.loads(line)["transcript"] for line in corpus.read_text().splitlines()]
    prompts = (EXAMPLES / "texts" / "announcer_rlhf.txt").read_text().splitlines()
    assert Counter(text.category for text in suite) == {"digits": 40, "reordered": 20, "unseen": 15}
    assert known_texts(suite, recorded) == []
    assert known_texts(suite, [line for line in prompts if line.strip()]) == []


def test_a_known_text_is_found_in_another_notation() -> None:
    text = SuiteText(id="a", category="digits", text="One, two.")
    assert known_texts([text], ["1 2"]) == [text]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "a", "category": "x", "text": "hello"'], "suite.jsonl:1: not JSON"),
        (['{"id": "a", "category": "x", "txt": "hello"}'], "did you mean 'text'"),
        (['{"id": "a", "category": "x", "text": "..."}'], "suite.jsonl:1: no words"),
        (['{"id": "../a", "category": "x", "text": "hello"}'], "cannot name a file"),
        (['{"id": "a", "category": "x", "text": "hello"}'] * 2, "ids used twice"),
        ([], "no texts"),
    ],
)
def test_an_invalid_suite_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=message):
        read_suite(path)


def test_the_language_of_a_text_with_a_line_separator_is_known(tmp_path: Path) -> None:
    row = {"id": "a", "category": "x", "text": "Bonjour\u2028\x85Anne", "language": "fr"}
    path = tmp_path / "suite.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False))
    assert [text.text for text in read_suite(path)] == [row["text"]]
    assert suite_languages(path, "en") == {"en", "fr"}


PROMPT = EXAMPLES / "suites" / "prompts" / "carlo_flora.g722"


def meta_lst(folder: Path, *lines: str) -> Path:
    """A meta.lst with one prompt."""
    shutil.copytree(PROMPT.parent, folder / "prompt-wavs")
    path = folder / "meta.lst"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_a_meta_lst(tmp_path: Path) -> None:
    wav = "prompt-wavs/carlo_flora.g722"
    path = meta_lst(
        tmp_path, f"a-1|Prego riprovare.|{wav}|One two.", f"a-2|Prego.|{wav}|Three.|{wav}"
    )
    first, second = read_suite(path, "en")
    assert (first.id, first.category, first.text) == ("a-1", "en", "One two.")
    assert (first.prompt_text, first.reference_wav) == ("Prego riprovare.", None)
    assert first.prompt_wav == tmp_path / wav == second.reference_wav


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a|Prego.|prompt-wavs/carlo_flora.g722", "meta.lst:1: 3 fields; write name"),
        ("a|Prego.|prompt-wavs/none.wav|One.", "meta.lst:1: .*no such file"),
        ("a||prompt-wavs/carlo_flora.g722|One.", "4 fields; write"),
    ],
)
def test_an_invalid_meta_lst_is_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_suite(meta_lst(tmp_path, line))


def cv3_eval(root: Path) -> Path:
    """A language of CV3-Eval with two texts; its paths start at the checkout."""
    folder = root / "CV3-Eval" / "data" / "zero_shot" / "it"
    shutil.copytree(PROMPT.parent, folder / "waveform")
    wav = "data/zero_shot//it/waveform/carlo_flora.g722"
    (folder / "prompt_wav.scp").write_text(f"uttid_1 {wav}\nuttid_2 {wav}\n")
    (folder / "prompt_text").write_text("uttid_2 Prego.\nuttid_1 Vi prego.\n")
    (folder / "text").write_text("uttid_1 Uno due.\nuttid_2 Tre quattro.\n")
    return folder / "prompt_wav.scp"


def test_a_folder_of_cv3_eval(tmp_path: Path) -> None:
    path = cv3_eval(tmp_path)
    first, second = read_suite(path, "it")
    assert (first.id, first.text, first.prompt_text) == ("uttid_1", "Uno due.", "Vi prego.")
    assert (second.language, second.category) == ("it", "it")
    assert first.prompt_wav == (path.parent / "waveform" / "carlo_flora.g722").resolve()
    before = source_digest(path)
    (path.parent / "text").write_text("uttid_1 Uno.\nuttid_2 Due.\n")
    assert source_digest(path) != before, "another text gives another suite"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text", "uttid_1 Uno.", "scp:uttid_2: text or prompt_text beside it has no line"),
        ("prompt_wav.scp", "uttid_1 data/none.wav", "uttid_1: there is no data/none.wav"),
        ("text", None, "no text beside it, as CV3-Eval has them"),
    ],
)
def test_an_incomplete_folder_of_cv3_eval_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    path = cv3_eval(tmp_path)
    (path.parent / name).unlink() if content is None else (path.parent / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_suite(path, "it")


def test_a_written_suite_contains_its_audio(tmp_path: Path) -> None:
    texts = read_suite(EXAMPLES / "suites" / "unseen_speakers.jsonl")
    (tmp_path / "made").mkdir()
    write_suite(tmp_path / "made" / "suite.jsonl", texts)
    moved = (tmp_path / "made").rename(tmp_path / "moved")
    again = read_suite(moved / "suite.jsonl")
    assert audio_digests(again) == audio_digests(texts)
    assert len(list((moved / "wavs").iterdir())) == 3
    assert all(t.prompt_wav and t.prompt_wav.is_relative_to(moved) for t in again)


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("numerals", 6),
        ("tongue_twisters", 4),
        ("long_paragraphs", 3),
        ("questions", 5),
        ("languages", 5),
        ("unseen_speakers", 3),
    ],
)
def test_example_suites(name: str, categories: int) -> None:
    texts = read_suite(EXAMPLES / "suites" / f"{name}.jsonl")
    assert len({text.category for text in texts}) == categories
