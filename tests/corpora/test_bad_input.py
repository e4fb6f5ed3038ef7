"""Bad input, one kind at a time, beside a corpus of 13 good clips: it is set aside with
what would help, and the 13 are indexed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from dagster import build_asset_context

from resources.artifact_store import ArtifactStoreResource
from tests.support.corpus_layouts import index, put, without_privileges, write
from tts_assets.core.accounting import SetAside
from tts_assets.core.artifacts import ArtifactError, Build, RawCorpus
from tts_assets.core.audio import read_clip
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig, FilterConfig
from tts_assets.corpora.filter import first_hit, of_samples
from tts_assets.corpora.index import index_corpus

GOOD = 13
RATE = 16_000
Damage = Callable[[Path], object]


@pytest.fixture
def speech(clips: Path) -> np.ndarray:
    return read_clip(clips / "audio" / "demo-nomatch.g722").wave


def add(corpus: Path, *lines: bytes) -> None:
    with (corpus / "samples.jsonl").open("ab") as stream:
        stream.writelines(line + b"\n" for line in lines)


def sample(wav_path: str, **fields: Any) -> bytes:
    return json.dumps({"wav_path": wav_path, "transcript": "words", **fields}).encode()


def only_record(corpus: Path, out: Path) -> SetAside:
    """The one record that was set aside beside the good clips."""
    rows, (record,) = index(corpus, out)
    assert len(rows) == GOOD
    return record


def spoiled(wave: np.ndarray, value: float) -> np.ndarray:
    return np.where(np.arange(len(wave)) == 100, value, wave)


def cut_short(path: Path, wave: np.ndarray) -> None:
    soundfile.write(path, wave, RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN: dict[str, tuple[str, str, str]] = {
    "0 bytes": ("a.wav", "empty file", "copy it again"),
    "text": ("a.wav", "not readable as audio", "convert it"),
    "a truncated flac": ("a.flac", "not readable as audio", "is it .flac?"),
    "a truncated wav": ("a.wav", "truncated", "copy it again from its source"),
    "NaN": ("a.wav", "not a number", "export it again"),
    "infinity": ("a.wav", "not a number", "export it again"),
    "nothing but a header": ("a.wav", "no samples", "record or export it again"),
    "a folder": ("a.wav", "not a file", "it is a folder"),
    "a pipe": ("a.wav", "not a file", "name a file"),
    "a link to nowhere": ("a.wav", "no such file", "put it there"),
    "nothing": ("a.wav", "no such file", "drop its line"),
}


def make(kind: str, path: Path, wave: np.ndarray) -> None:
    makers: dict[str, Damage] = {
        "0 bytes": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("these are words\n" * 50),
        "a truncated flac": lambda path: cut_short(path, wave),
        "a truncated wav": lambda path: cut_short(path, wave),
        "NaN": lambda path: soundfile.write(path, spoiled(wave, np.nan), RATE, "FLOAT"),
        "infinity": lambda path: soundfile.write(path, spoiled(wave, np.inf), RATE, "FLOAT"),
        "nothing but a header": lambda path: soundfile.write(path, wave[:0], RATE),
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a link to nowhere": lambda path: path.symlink_to(path.with_name("gone.wav")),
        "nothing": lambda path: None,
    }
    makers[kind](path)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_audio(corpus: Path, tmp_path: Path, speech: np.ndarray, kind: str) -> None:
    name, reason, remedy = BROKEN[kind]
    make(kind, corpus / "audio" / name, speech)
    add(corpus, sample(f"audio/{name}"))
    record = only_record(corpus, tmp_path / "out")
    assert (record.what, record.reason) == (f"samples.jsonl:{GOOD + 1}", reason)
    assert record.detail.startswith((f"{name}: ", "gone.wav: ")) and remedy in record.detail


LINES = {
    "not JSON": (b"{'wav_path': 'a.wav'}", "a line is one JSON object"),
    "not JSON ": (b'{"wav_path": "a.wav", "dnsmos_mos_ovr": NaN}', "write null"),
    "not JSON  ": (b"[" * 100_000, "a line is one JSON object"),
    "not a JSON object": (b'["a.wav", "words"]', "a list"),
    "no wav_path": (b'{"transcript": "words"}', "needs the path of its audio"),
    "a field of another type": (sample("a.wav", emotion=3), "emotion"),
    "a field of another type ": (sample("a.wav", transcript=["words"]), "transcript is a list"),
    "a field of another type  ": (sample("a.wav", speaker_id={"id": 1}), "speaker_id is a dict"),
    "text is not UTF-8": (sample("a.wav").replace(b"words", b"w\xf6rds"), "save it as UTF-8"),
    "not Unicode": (sample("a.wav").replace(b"words", b"w\\ud800rds"), "mend the line"),
    "not a path": (sample("a\0.wav"), "write the file's name"),
    "no such file": (sample("a" * 5000), "drop its line"),
    "path outside the corpus": (sample("../../etc/passwd"), "declare its folder as a corpus"),
}


@pytest.mark.parametrize("reason", LINES)
def test_bad_lines(corpus: Path, tmp_path: Path, reason: str) -> None:
    line, remedy = LINES[reason]
    add(corpus, b"", line)
    record = only_record(corpus, tmp_path / "out")
    assert (record.what, record.reason) == (f"samples.jsonl:{GOOD + 2}", reason.strip())
    assert remedy in record.detail


def test_a_missing_text_is_rejected_by_the_filters(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "samples.jsonl"
    first, *others = [json.loads(line) for line in path.read_text().splitlines()]
    del first["transcript"]
    write(path, "".join(json.dumps(each) + "\n" for each in (first, *others)))
    rows, set_aside = index(corpus, tmp_path / "out")
    assert len(rows) == GOOD and not set_aside
    assert rejections(rows) == ["empty transcript"]


def rejections(rows: pl.DataFrame) -> list[str]:
    """Reasons for which the default filters reject utterances."""
    samples = rows.with_columns(
        wav_path="audio", transcript="text", unread=pl.lit(""), dropped=False
    )
    reasons = samples.select(reason=first_hit(of_samples(FilterConfig())))["reason"]
    return reasons.drop_nulls().to_list()


def test_bom_and_crlf_are_removed(corpus: Path, tmp_path: Path) -> None:
    index(corpus, tmp_path / "plain")
    path = corpus / "samples.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    index(corpus, tmp_path / "windows")
    for name in ("utterances.parquet", "set_aside.jsonl"):
        assert (tmp_path / "plain" / name).read_bytes() == (
            tmp_path / "windows" / name
        ).read_bytes()


def test_ids_come_from_the_audio(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "samples.jsonl"
    lines = [json.loads(line) | {"id": "same"} for line in path.read_text().splitlines()]
    write(path, "".join(json.dumps(each) + "\n" for each in lines))
    rows, set_aside = index(corpus, tmp_path / "out")
    assert rows["id"].n_unique() == len(rows) == GOOD and not set_aside


def test_the_same_audio_twice(corpus: Path, tmp_path: Path) -> None:
    shutil.copyfile(corpus / "audio" / "demo-nomatch.g722", corpus / "audio" / "zz.g722")
    add(corpus, sample("audio/zz.g722"))
    record = only_record(corpus, tmp_path / "out")
    assert (record.what, record.reason) == (f"samples.jsonl:{GOOD + 1}", "duplicate audio")
    assert record.detail == f"the same bytes as samples.jsonl:{GOOD}; drop one of them"


def test_eight_channels_half_an_hour_and_five_milliseconds_are_indexed(
    corpus: Path, tmp_path: Path, speech: np.ndarray
) -> None:
    """They are valid audio; the filters reject clips by duration."""
    soundfile.write(corpus / "eight.wav", np.stack([speech] * 8, axis=1), RATE)
    half_hour = np.resize(speech, 30 * 60 * 8000)
    soundfile.write(corpus / "long.flac", half_hour, 8000)
    soundfile.write(corpus / "short.wav", speech[RATE : RATE + RATE // 200], RATE)
    add(corpus, *(sample(name) for name in ("eight.wav", "long.flac", "short.wav")))
    rows, set_aside = index(corpus, tmp_path / "out")
    found = {row["audio"]: row for row in rows.iter_rows(named=True)}
    assert len(rows) == GOOD + 3 and not set_aside
    assert found["eight.wav"]["channels"] == 8
    assert (found["long.flac"]["duration"], found["short.wav"]["duration"]) == (1800, 0.005)
    assert sorted(rejections(rows)) == ["too long", "too short"]


@pytest.mark.parametrize("link", ["a.wav", "folder"])
def test_links_out_of_the_corpus_are_set_aside(clips: Path, tmp_path: Path, link: str) -> None:
    """In a line, and in a folder that is walked."""
    put(clips / "audio" / "demo-nomatch.g722", tmp_path / "out.wav" / "b.wav")
    for number in range(1, 4):
        put(clips / "audio" / "digits" / f"{number}.g722", tmp_path / "c" / f"{number}.wav")
        write(tmp_path / "c" / f"{number}.txt", f"{number}")
    target = tmp_path / "out.wav"
    (tmp_path / "c" / link).symlink_to(target / "b.wav" if link == "a.wav" else target)
    rows, (record,) = index(tmp_path / "c", tmp_path / "out", "folder")
    assert (len(rows), record.what, record.reason) == (3, link, "path outside the corpus")
    named = link if link == "a.wav" else f"{link}/b.wav"
    write(tmp_path / "c" / "samples.jsonl", "")
    add(tmp_path / "c", sample(named), sample("1.wav"))
    rows, (record,) = index(tmp_path / "c", tmp_path / "again")
    assert len(rows) == 1
    assert (record.what, record.reason) == ("samples.jsonl:1", "path outside the corpus")


def test_links_inside_the_corpus_are_followed(clips: Path, tmp_path: Path) -> None:
    put(clips / "audio" / "demo-nomatch.g722", tmp_path / "c" / "store" / "b.wav")
    (tmp_path / "c" / "by speaker").mkdir()
    (tmp_path / "c" / "by speaker" / "a.wav").symlink_to("../store/b.wav")
    (tmp_path / "c" / "again").symlink_to("store")
    (tmp_path / "c" / "loop").symlink_to("loop")
    rows, set_aside = index(tmp_path / "c", tmp_path / "out", "recordings")
    assert rows["audio"].to_list() == ["store/b.wav"]
    assert [record.reason for record in set_aside] == ["duplicate audio"]


def test_a_file_name_that_is_not_utf8(clips: Path, tmp_path: Path) -> None:
    put(clips / "audio" / "demo-nomatch.g722", tmp_path / "c" / "a.wav")
    shutil.copyfile(tmp_path / "c" / "a.wav", os.fsencode(tmp_path / "c") + b"/\xe9.wav")
    rows, (record,) = index(tmp_path / "c", tmp_path / "out", "recordings")
    assert (len(rows), record.what, record.reason) == (1, "\\udce9.wav", "not Unicode")


def test_a_file_name_with_a_newline(clips: Path, tmp_path: Path) -> None:
    put(clips / "audio" / "demo-nomatch.g722", tmp_path / "c" / "a.wav")
    (tmp_path / "c" / "a\u2028b\n.wav").write_bytes(b"")
    _, (record,) = index(tmp_path / "c", tmp_path / "out", "recordings")
    assert (record.what, record.reason) == ("a\u2028b\n.wav", "empty file")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that all users may enter and write, unlike those of pytest."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_unreadable_files_are_set_aside(clips: Path, open_folder: Path) -> None:
    root = open_folder / "c"
    for name in ("1", "2", "3", "shut/4"):
        put(clips / "audio" / "digits" / f"{name[-1]}.g722", root / f"{name}.wav")
        write(root / f"{name}.txt", "words")
    for shut in ("2.wav", "3.txt", "shut"):
        (root / shut).chmod(0)
    with without_privileges():
        rows, set_aside = index(root, open_folder / "out", "folder")
    assert rows["audio"].to_list() == ["1.wav"]
    assert {record.what for record in set_aside} == {"2.wav", "3.wav", "shut"}
    assert {record.reason for record in set_aside} == {"no permission to read"}
    assert all("chmod" in record.detail for record in set_aside)
    (root / "2.wav").chmod(0o644)
    with without_privileges():  # it was not remembered as broken
        rows, _ = index(root, open_folder / "again", "folder")
    assert sorted(rows["audio"]) == ["1.wav", "2.wav"]


def test_an_unreadable_chapter_is_set_aside(clips: Path, open_folder: Path) -> None:
    for chapter in ("1", "2"):
        put(
            clips / "audio/digits" / f"{chapter}.g722",
            open_folder / f"c/9/{chapter}/9-{chapter}.flac",
        )
        write(open_folder / f"c/9/{chapter}/9-{chapter}.trans.txt", f"9-{chapter} WORDS")
    (open_folder / "c/9/2/9-2.trans.txt").chmod(0)
    with without_privileges():
        rows, (record,) = index(open_folder / "c", open_folder / "out", "librispeech")
    assert rows["audio"].to_list() == ["9/1/9-1.flac"]
    assert (record.what, record.reason) == ("9/2/9-2.trans.txt", "no permission to read")


def test_an_unreadable_list_is_an_error(clips: Path, open_folder: Path) -> None:
    shutil.copyfile(clips / "samples.jsonl", open_folder / "samples.jsonl")
    (open_folder / "samples.jsonl").chmod(0)
    with without_privileges(), pytest.raises(ConfigError, match="Permission denied"):
        index(open_folder, open_folder / "out")


def test_a_folder_where_a_list_is_expected(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").mkdir()
    with pytest.raises(ConfigError, match="correct path or reader"):
        index(tmp_path, tmp_path / "out")


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A filesystem of 200 kB."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small filesystem needs more privileges")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def short_files(folder: Path) -> Iterator[Path]:
    """No file of more than 40 kB: the system then refuses to write, as under a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("no_room", [full_disk, short_files])
def test_a_full_disk(clips: Path, tmp_path: Path, no_room: Any) -> None:
    """Audio is extracted until the disk is full: no artifact appears, and with room it does."""
    audio = []
    for path in sorted(clips.rglob("*.g722")):
        put(path, tmp_path / f"{path.stem}.wav")
        audio.append((tmp_path / f"{path.stem}.wav").read_bytes())
    (tmp_path / "c").mkdir()
    pq.write_table(pa.table({"audio": audio, "text": ["words"] * GOOD}), tmp_path / "c/a.parquet")
    config = CorpusConfig(path=tmp_path / "c", reader="parquet", language="en")
    build = Build("raw_corpus", {}, {}, "1")

    def materialize(root: Path) -> None:
        store = ArtifactStoreResource(root=str(root))
        store.materialize(
            build_asset_context(),
            RawCorpus,
            build,
            lambda work: index_corpus("c", config.path, config, store.store, work / "result"),
        )

    with no_room(tmp_path / "storage") as root:
        with pytest.raises(ArtifactError, match=f"no room left to write below {root}.*project.sto"):
            materialize(root)
        assert not (root / "raw_corpus").exists()
        assert len(list(root.rglob("*.wav"))) < GOOD
    materialize(tmp_path / "storage")
    assert ArtifactStoreResource(root=str(tmp_path / "storage")).store.find(build) is not None
