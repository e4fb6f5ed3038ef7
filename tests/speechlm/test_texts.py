"""Lines of texts: three formats, and what is set aside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tts_assets.core.accounting import NothingUsableError, ValidationSplit, read_set_aside
from tts_assets.speechlm.formats import BadText, parse_text, read_texts, write_texts

USER = {"role": "user", "content": "What is two and two?"}
ANSWER = {"role": "assistant", "content": "Four."}
GOOD: list[dict[str, Any]] = [
    {"messages": [USER, ANSWER], "prompt": "of another key", "source": "a test"},
    {"prompt": "What is two and two?", "completion": "Four."},
    {"text": "Zwei und zwei sind vier. 二加二等于四。"},
]
HALF = ValidationSplit(fraction=0.5)


def test_all_formats_are_read() -> None:
    asked = {"messages": [USER, ANSWER]}
    assert [parse_text(line) for line in GOOD] == [asked, asked, {"text": GOOD[2]["text"]}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({}, "no text"),
        ({"prompt": "alone"}, "no text"),
        ({"text": 7}, "a text that is no string"),
        ({"text": " \n"}, "an empty text"),
        ({"text": "half a \ud83d pair"}, "text is not Unicode"),
        ({"messages": "hello"}, "not a list of messages"),
        ({"messages": [USER, {"role": "tool", "content": "4"}]}, "unknown role"),
        ({"messages": [USER]}, "no answer"),
        ({"messages": [ANSWER, USER]}, "no question"),
        ({"messages": [USER, {"role": "assistant"}]}, "a text that is no string"),
        ({"messages": [USER, {"role": "system", "content": "x"}, ANSWER]}, "system message inside"),
    ],
)
def test_bad_lines_have_a_reason(line: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadText) as bad:
        parse_text(line)
    assert bad.value.reason == reason


def test_every_line_is_written_or_set_aside(tmp_path: Path) -> None:
    good = [json.dumps({"text": f"Line {number}."}) for number in range(40)]
    lines = [*good[:20], "", "{", '{"text": ""}', *good[20:], "\xff\xfe"]
    raw = "\n".join(lines).encode("latin-1")
    (tmp_path / "a.jsonl").write_bytes(raw)
    counts = write_texts(tmp_path / "a.jsonl", HALF, tmp_path)
    samples = {
        split: [json.loads(line) for line in (tmp_path / f"{split}_samples.jsonl").open()]
        for split in ("train", "val")
    }
    assert counts == {"lines": 43, "set_aside": 3} | {
        f"{split}_samples": len(own) for split, own in samples.items()
    }
    assert sum(map(len, samples.values())) == 40 and len(samples["val"]) > 5
    aside = {item.what: item.reason for item in read_set_aside(tmp_path / "set_aside.jsonl")}
    assert aside == {
        "a.jsonl:22": "not JSON",
        "a.jsonl:23": "an empty text",
        "a.jsonl:44": "text is not UTF-8",
    }
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as packed:
        packed.write(raw)
    again = tmp_path / "again"
    again.mkdir()
    assert write_texts(tmp_path / "a.jsonl.gz", HALF, again) == counts
    assert (again / "val_samples.jsonl").read_text() == (tmp_path / "val_samples.jsonl").read_text()


def test_the_split_depends_on_the_text(tmp_path: Path) -> None:
    """In another order and company, too: equal lines are never on both sides."""
    lines = [json.dumps({"text": f"Line {number}."}) + "\n" for number in range(40)]
    held = []
    for name, own in (("a", lines), ("b", [*reversed(lines[:30]), lines[3]])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.jsonl").write_text("".join(own))
        write_texts(folder / "x.jsonl", HALF, folder)
        held.append({x["id"] for x in map(json.loads, (folder / "val_samples.jsonl").open())})
    ids = {
        sample["id"]
        for sample in read_texts(tmp_path / "b" / "x.jsonl")
        if isinstance(sample, dict)
    }
    assert held[1] == held[0] & ids and held[1]


def test_a_file_without_a_usable_line_is_an_error_with_counted_reasons(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": ""}\n{"text": " "}\nno JSON\n')
    with pytest.raises(NothingUsableError, match="3 lines, 0 for validation") as error:
        write_texts(path, ValidationSplit(), tmp_path)
    assert "an empty text: 2, for example texts.jsonl:1" in str(error.value)
    assert "not JSON: 1" in str(error.value)
