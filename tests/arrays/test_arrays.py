"""Damaged files are rejected. The error names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.arrays.conftest import Utterance, write_shard
from tts_assets.arrays.arrays import ArrayError, CodeTable

CODES, INDEX, SAMPLES = (f"shard-00000.{n}" for n in ("codes.npy", "index.npy", "samples.jsonl"))


@pytest.fixture
def folder(tmp_path: Path, utterances: list[Utterance]) -> Path:
    write_shard(tmp_path, 0, utterances)
    return tmp_path


def read(folder: Path) -> CodeTable:
    table = CodeTable.of_shard(folder, 0)
    assert table.samples
    return table


def test_an_intact_shard_is_read(folder: Path, utterances: list[Utterance]) -> None:
    table = read(folder)
    assert len(table) == len(utterances)
    np.testing.assert_array_equal(table[12], utterances[12].codes)


@pytest.mark.parametrize("row", [13, -1])
def test_rows_outside_of_a_table_raise(folder: Path, row: int) -> None:
    with pytest.raises(IndexError, match=rf"sample {row} of 13"):
        read(folder)[row]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def change_index(folder: Path, change: Callable[[np.ndarray], None]) -> None:
    starts = np.load(folder / INDEX)
    change(starts)
    np.save(folder / INDEX, starts)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "codes cut short": (lambda f: cut(f / CODES, 900), rf"{CODES} is damaged"),
    "codes empty": (lambda f: cut(f / CODES, 0), rf"{CODES} is damaged"),
    "codes too long": (lambda f: append(f / CODES, b"\0\0"), rf"{CODES} is longer"),
    "codes without header": (
        lambda f: np.zeros(90, np.int32).tofile(f / CODES),
        rf"{CODES} is damaged or not a \.npy",
    ),
    "codes of another type": (
        lambda f: np.save(f / CODES, np.zeros(90, np.float32)),
        rf"{CODES} holds float32 of shape \(90,\), not a row of uint16 or int32",
    ),
    "codes in a table": (
        lambda f: np.save(f / CODES, np.zeros((9, 10), np.uint16)),
        r"of shape \(9, 10\)",
    ),
    "codes of another shard": (
        lambda f: np.save(f / CODES, np.zeros(90, np.uint16)),
        rf"{INDEX} does not describe .*{CODES}: sample \d+ would be",
    ),
    "codes missing": (lambda f: (f / CODES).unlink(), rf"{CODES} is missing"),
    "index backwards": (
        lambda f: change_index(f, lambda starts: starts.__setitem__(5, 3)),
        r"sample 4 would be codes\[\d+:3\]",
    ),
    "index shifted": (
        lambda f: change_index(f, lambda starts: starts.__iadd__(1)),
        "first sample starts at 1, not at 0",
    ),
    "index missing": (lambda f: (f / INDEX).unlink(), rf"{INDEX} is missing"),
    "a line more": (
        lambda f: append(f / SAMPLES, b'{"id": "x"}\n'),
        rf"{SAMPLES} has 14 samples, but its index 13",
    ),
    "half a line": (lambda f: cut(f / SAMPLES, -30), rf"{SAMPLES} ends within a line"),
    "a line that is not JSON": (
        lambda f: (f / SAMPLES).write_bytes(b"{]\n" * 13),
        rf"{SAMPLES}, line 1 is not JSON",
    ),
    "a line that is not UTF-8": (
        lambda f: (f / SAMPLES).write_bytes(b'{"id": "\xff"}\n' * 13),
        rf"{SAMPLES}, line 1 is not JSON",
    ),
    "a line that is no sample": (
        lambda f: (f / SAMPLES).write_bytes(b"[1]\n" * 13),
        rf"{SAMPLES}, line 1 is not a sample",
    ),
    "samples missing": (lambda f: (f / SAMPLES).unlink(), rf"{SAMPLES} is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_error_names_the_damaged_file(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ArrayError, match=message):
        read(folder)
