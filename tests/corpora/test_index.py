"""Readers and the index on real clips; bad items are set aside."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.corpus_layouts import index, put, write
from tts_assets.core.accounting import count_reasons
from tts_assets.core.config import ConfigError


def test_the_index_does_not_depend_on_times_order_or_root(clips: Path, tmp_path: Path) -> None:
    index(clips, tmp_path / "first")
    copy = tmp_path / "copy"
    shutil.copytree(clips, copy)
    lines = (copy / "samples.jsonl").read_text().splitlines()
    (copy / "samples.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    index(copy, tmp_path / "second")
    for name in ("utterances.parquet", "set_aside.jsonl"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_bad_lines_and_files_are_set_aside(clips: Path, tmp_path: Path) -> None:
    good = len(index(clips, tmp_path / "good")[0])
    bad = tmp_path / "bad"
    shutil.copytree(clips, bad)
    first = json.loads((bad / "samples.jsonl").read_text().splitlines()[0])
    shutil.copyfile(bad / first["wav_path"], bad / "again.g722")
    (bad / "words.wav").write_text("words")
    lines = [
        "not json",
        '["a list"]',
        json.dumps({"transcript": "no path"}),
        json.dumps({"wav_path": "missing.wav", "transcript": "a"}),
        json.dumps({"wav_path": "../../etc/passwd", "transcript": "a"}),
        json.dumps({"wav_path": "words.wav", "transcript": "a"}),
        json.dumps({"wav_path": "again.g722", "transcript": "a"}),
        json.dumps({"wav_path": first["wav_path"], "dnsmos_mos_ovr": "good"}),
    ]
    path = bad / "samples.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    with path.open("a") as stream:
        stream.write("\n".join(lines) + "\n")
    rows, set_aside = index(bad, tmp_path / "out")
    assert len(rows) == good
    assert count_reasons(set_aside) == {
        "not JSON": 1,
        "not a JSON object": 1,
        "no wav_path": 1,
        "no such file": 1,
        "path outside the corpus": 1,
        "not readable as audio": 1,
        "duplicate audio": 1,
        "a field of another type": 1,
    }
    where = {record.reason: record.what for record in set_aside}
    assert where["not JSON"] == f"samples.jsonl:{good + 1}"


def wavs(clips: Path, target: Path) -> dict[str, str]:
    """The clips as wav files in ``target``; name -> text."""
    texts = {}
    for line in (clips / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        name = sample["wav_path"].removesuffix(".g722").replace("/", "_")
        put(clips / sample["wav_path"], target / f"{name}.wav")
        texts[name] = sample["transcript"]
    return texts


def test_ljspeech(clips: Path, tmp_path: Path) -> None:
    texts = wavs(clips, tmp_path / "lj" / "wavs")
    lines = [f"{name}|raw|{text}" for name, text in texts.items()] + ["a line without columns"]
    (tmp_path / "lj" / "metadata.csv").write_text("\n".join(lines) + "\n")
    rows, (record,) = index(tmp_path / "lj", tmp_path / "out", "ljspeech", speaker="linda")
    assert sorted(rows["text"]) == sorted(texts.values())
    assert set(rows["speaker"]) == {"linda"}
    assert record.what == f"metadata.csv:{len(lines)}"


def test_a_plain_folder(clips: Path, tmp_path: Path) -> None:
    texts = wavs(clips, tmp_path / "corpus" / "deep")
    for name, text in list(texts.items())[1:]:
        (tmp_path / "corpus" / "deep" / f"{name}.txt").write_text(text + "\n")
    rows, (record,) = index(tmp_path / "corpus", tmp_path / "out", "folder")
    assert sorted(rows["text"]) == sorted(list(texts.values())[1:])
    assert record.reason == "no text file"


def test_texts_beside_audio(clips: Path, tmp_path: Path) -> None:
    for name, clip in zip("abc", sorted(clips.rglob("*.g722")), strict=False):
        put(clip, tmp_path / "c" / f"{name}.wav")
    write(tmp_path / "c" / "a.txt", "Good morning.")
    write(tmp_path / "c" / "b.TXT", "Well then.")  # as Windows may write it
    write(tmp_path / "c" / "c.txt", "word " * 300_000)
    rows, (record,) = index(tmp_path / "c", tmp_path / "out", "folder")
    assert set(rows["text"]) == {"Good morning.", "Well then."}
    assert (record.what, record.reason) == ("c.wav", "text too long")


def test_a_missing_corpus_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="correct path or reader"):
        index(tmp_path / "nowhere", tmp_path / "out")


def test_a_corpus_that_is_one_file_with_absolute_paths(clips: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    samples = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    lines = [json.dumps(s | {"wav_path": str(clips / s["wav_path"])}) for s in samples]
    file.write_text("\n".join(lines))
    rows, _ = index(file, tmp_path / "out")
    assert len(rows) == len(samples)
    assert all(Path(audio).is_file() for audio in rows["audio"])
