"""Only changed audio is opened again; the cache does not affect results."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.corpora.test_lhotse import manifest, recording, supervision
from tests.support.corpus_layouts import index, put
from tests.support.watching import reads_below
from tts_assets.core.audio import read_clip


def files(corpus: Path) -> set[str]:
    return {path.name for path in corpus.rglob("*.g722")}


def result(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("utterances.parquet", "set_aside.jsonl")]


def test_one_changed_clip_is_the_only_one_that_is_read(corpus: Path, tmp_path: Path) -> None:
    with reads_below(corpus / "audio") as read:
        index(corpus, tmp_path / "first")
    assert read == files(corpus)
    with reads_below(corpus / "audio") as read:
        index(corpus, tmp_path / "again")
    assert read == set()
    assert result(tmp_path / "again") == result(tmp_path / "first")
    with (corpus / "audio" / "demo-nomatch.g722").open("ab") as stream:
        stream.write(b"\xfa" * 800)
    with reads_below(corpus / "audio") as read:
        rows, _ = index(corpus, tmp_path / "changed")
    assert read == {"demo-nomatch.g722"}
    (longer,) = rows.filter(audio="audio/demo-nomatch.g722")["duration"]
    assert longer == pytest.approx(read_clip(corpus / "audio" / "demo-nomatch.g722").seconds)


def test_without_the_cache_the_bytes_are_the_same(corpus: Path, tmp_path: Path) -> None:
    with (corpus / "samples.jsonl").open("a") as lines:
        for name in ("words.wav", "nothing.wav"):
            lines.write(json.dumps({"wav_path": name, "transcript": "a"}) + "\n")
    (corpus / "words.wav").write_text("words")
    index(corpus, tmp_path / "first")
    index(corpus, tmp_path / "cached")
    (tmp_path / "storage" / ".cache" / "audio.sqlite").unlink()
    index(corpus, tmp_path / "alone")
    assert result(tmp_path / "first") == result(tmp_path / "cached") == result(tmp_path / "alone")


def test_broken_audio_is_read_again_when_it_changes(corpus: Path, tmp_path: Path) -> None:
    clip = corpus / "audio" / "demo-nomatch.wav"
    with (corpus / "samples.jsonl").open("a") as lines:
        lines.write(json.dumps({"wav_path": "audio/demo-nomatch.wav", "transcript": "a"}) + "\n")
    reasons = []
    for step in ("missing", "words", "words again", "audio"):
        if step == "words":
            clip.write_text("words")
        if step == "audio":
            put(corpus / "audio" / "demo-nomatch.g722", clip)
        _, set_aside = index(corpus, tmp_path / step)
        reasons.append([record.reason for record in set_aside])
    broken = ["not readable as audio"]
    assert reasons == [["no such file"], broken, broken, []]


def test_embedded_audio_is_extracted_once(clips: Path, tmp_path: Path) -> None:
    audio = [path.read_bytes() * 9 for path in sorted(clips.rglob("*.g722"))]
    cells = [{"bytes": one, "path": "a.g722"} for one in audio]
    (tmp_path / "c").mkdir()
    pq.write_table(pa.table({"audio": cells, "text": ["a"] * len(cells)}), tmp_path / "c/a.parquet")
    index(tmp_path / "c", tmp_path / "first", "parquet")
    before = bytes_read()
    index(tmp_path / "c", tmp_path / "again", "parquet")
    assert bytes_read() - before < sum(map(len, audio)) / 4
    assert result(tmp_path / "again") == result(tmp_path / "first")


def bytes_read() -> int:
    """Bytes that this process has read so far, from files of any kind."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_touched_recording_is_read_but_not_cut_again(clips: Path, tmp_path: Path) -> None:
    root, pool = tmp_path / "c", tmp_path / "storage" / "audio"
    put(clips / "audio" / "demo-nomatch.g722", root / "a.wav")
    manifest(root / "recordings.jsonl", [recording("a.wav")])
    manifest(root / "supervisions.jsonl", [supervision("a", n / 10, 0.5) for n in range(9)])
    index(root, tmp_path / "first", "lhotse")
    times = {path: path.stat().st_mtime_ns for path in pool.rglob("*.flac")}
    assert len(times) == 9
    os.utime(root / "a.wav", (1, 1))
    with reads_below(root) as read, reads_below(pool) as pooled:
        index(root, tmp_path / "touched", "lhotse")
    assert ("a.wav" in read, pooled) == (True, set())
    assert {path: path.stat().st_mtime_ns for path in pool.rglob("*.flac")} == times
    assert result(tmp_path / "touched") == result(tmp_path / "first")


def test_a_lost_file_of_the_pool_is_restored(clips: Path, tmp_path: Path) -> None:
    root, pool = tmp_path / "c", tmp_path / "storage" / "audio"
    put(clips / "audio" / "demo-nomatch.g722", root / "a.wav")
    manifest(root / "recordings.jsonl", [recording("a.wav")])
    manifest(root / "supervisions.jsonl", [supervision("a", 1.0, 0.5)])
    index(root, tmp_path / "first", "lhotse")
    (path,) = pool.rglob("*.flac")
    path.unlink()
    index(root, tmp_path / "second", "lhotse")
    assert soundfile.info(path).duration == pytest.approx(0.5)
