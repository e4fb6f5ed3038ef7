"""Change detection: every change is reported, also when scans are interrupted, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tts_assets.core.artifacts import ArtifactStore
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.discovery import Corpus
from tts_assets.corpora.watch import RecordedScan, Scan, Watch, access_problem, walk

NAME = "voice"
LONG = 60.0


@pytest.fixture
def folder(clips: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clips, tmp_path / "corpus"))


def corpus_at(path: Path, language: str = "en") -> Corpus:
    values = {"path": path, "reader": "jsonl", "language": language}
    return Corpus(path, CorpusConfig.model_validate(values))


def see(corpus: Corpus, store: ArtifactStore, *outside: Path, name: str = NAME) -> None:
    """Record a scan, as ``raw_corpus`` does."""
    scan = Scan.begin(corpus)
    assert scan.folder(corpus.path)
    seen = RecordedScan(outside=tuple(sorted(map(str, outside))))
    assert scan.outside(seen.states(scan.after))
    replace(seen, digest=scan.digest).record(store, name)


def changed(store: ArtifactStore, *corpora: Corpus, watch: Watch | None = None) -> list[str]:
    named = {NAME if i == 0 else f"{NAME}{i}": corpus for i, corpus in enumerate(corpora)}
    return sorted((watch or Watch()).round(named, store, LONG))


def overwrite(folder: Path) -> None:
    (folder / "audio" / "digits" / "1.g722").write_bytes(b"\xfa" * 8000)


def touch(folder: Path) -> None:
    os.utime(folder / "samples.jsonl", (1, 1))


def remove(folder: Path) -> None:
    (folder / "audio" / "digits" / "2.g722").unlink()


def add(folder: Path) -> None:
    (folder / "audio" / "new.g722").write_bytes(b"")


def rename(folder: Path) -> None:
    (folder / "audio" / "digits").rename(folder / "audio" / "numbers")


def forbid(folder: Path) -> None:
    (folder / "audio" / "digits" / "3.g722").chmod(0)


@pytest.mark.parametrize("change", [overwrite, touch, remove, add, rename, forbid])
def test_each_change_is_detected(
    folder: Path, store: ArtifactStore, change: Callable[[Path], None]
) -> None:
    corpus = corpus_at(folder)
    assert changed(store, corpus) == [NAME]  # never looked at
    see(corpus, store)
    assert changed(store, corpus) == []
    change(folder)
    assert changed(store, corpus) == [NAME]
    see(corpus, store)
    assert changed(store, corpus) == []


def test_another_configuration_is_a_change(folder: Path, store: ArtifactStore) -> None:
    see(corpus_at(folder), store)
    assert changed(store, corpus_at(folder, "es")) == [NAME]


def test_audio_outside_the_folder_is_scanned(
    folder: Path, clips: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    outside = [tmp_path / "elsewhere" / name for name in ("a.g722", "b.g722")]
    outside[0].parent.mkdir()
    shutil.copyfile(clips / "audio" / "digits" / "1.g722", outside[0])
    corpus = corpus_at(folder)
    see(corpus, store, *outside)
    assert changed(store, corpus) == []
    shutil.copyfile(clips / "audio" / "digits" / "2.g722", outside[1])  # was missing
    assert changed(store, corpus) == [NAME]
    see(corpus, store, *outside)
    outside[0].unlink()
    assert changed(store, corpus) == [NAME]


def test_a_change_that_cannot_be_indexed_is_reported_once(
    folder: Path, store: ArtifactStore
) -> None:
    corpus, watch = corpus_at(folder), Watch()
    see(corpus, store)
    samples = folder / "samples.jsonl"
    times = (samples.stat().st_atime_ns, samples.stat().st_mtime_ns)
    os.utime(samples, (1, 1))
    for reported in ([NAME], []):
        digests = watch.round({NAME: corpus}, store, LONG)
        assert list(digests) == reported
        watch = Watch.load(watch.dump())
        watch.requested |= digests
    os.utime(samples, ns=times)  # as it was when it was indexed
    assert changed(store, corpus, watch=watch) == []
    os.utime(samples, (1, 1))  # and again as it was reported
    assert changed(store, corpus, watch=watch) == [NAME]


def test_a_cursor_of_another_version_is_dropped() -> None:
    assert Watch.load('{"asterisk_en": "0123"}') == Watch.load("no JSON") == Watch()


def rounds(watch: Watch, corpora: dict[str, Corpus], store: ArtifactStore, limit: int) -> list[str]:
    """Rounds with a deadline after one file each; the reported corpora in order."""
    reported = []
    for _ in range(limit):
        digests = watch.round(corpora, store, seconds=-1.0)
        watch = Watch.load(watch.dump())
        watch.requested |= digests
        reported += list(digests)
    return reported


def test_an_interrupted_scan_has_the_digest_of_a_whole_one(
    folder: Path, clips: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    outside = [tmp_path / name for name in ("x.g722", "y.g722")]
    for path in outside:
        shutil.copyfile(clips / "audio" / "digits" / "1.g722", path)
    corpora = {"a": corpus_at(folder), "b": corpus_at(clips)}
    see(corpora["a"], store, *outside, name="a")
    see(corpora["b"], store, name="b")
    watch = Watch()
    assert rounds(watch, corpora, store, 100) == []
    os.utime(outside[1], (1, 1))
    assert rounds(watch, corpora, store, 100) == ["a"]
    see(corpora["a"], store, *outside, name="a")
    remove(folder)
    assert rounds(watch, corpora, store, 100) == ["a"]


def test_a_change_behind_an_unfinished_scan_is_detected_by_the_next(
    folder: Path, store: ArtifactStore
) -> None:
    corpora, watch = {NAME: corpus_at(folder)}, Watch()
    see(corpora[NAME], store)
    for _ in range(8):
        watch.round(corpora, store, seconds=-1.0)
    seen = watch.unfinished[NAME][1]
    os.utime(next(path for path in sorted(folder.rglob("*.g722"))), (1, 1))
    assert str(next(iter(sorted(folder.rglob("*.g722")))).relative_to(folder)) < seen
    assert rounds(watch, corpora, store, 60) == [NAME]


def test_a_large_corpus_does_not_delay_others_forever(
    folder: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    (small / "samples.jsonl").write_text("{}\n")
    corpora = {"large": corpus_at(folder), "small": corpus_at(small)}
    assert rounds(Watch(), corpora, store, 4) == ["small"]


def test_cyclic_links_broken_links_and_odd_names(tmp_path: Path, clips: Path) -> None:
    root = tmp_path / "corpus"
    (root / "a" / "deep").mkdir(parents=True)
    (root / "a" / "deep" / "up").symlink_to(root)
    (root / "linked").symlink_to(clips)
    (root / "gone").symlink_to(root / "nowhere")
    (root / os.fsdecode(b"\xff.wav")).write_bytes(b"")
    whole = list(walk(root))
    paths = [path for path, _ in whole]
    assert len(paths) == len(set(paths)) == 16  # 14 files through the link, and two of its own
    assert dict(whole)["gone"] == "errno 2"
    for i, path in enumerate(paths):
        assert list(walk(root, path)) == whole[i + 1 :]
    scan = Scan.begin(corpus_at(root))
    assert scan.folder(root)


def test_a_corpus_of_one_file(folder: Path, store: ArtifactStore) -> None:
    samples = folder / "samples.jsonl"
    corpus = corpus_at(samples)
    audio = sorted(folder.rglob("*.g722"))
    see(corpus, store, *audio)
    assert changed(store, corpus) == []
    os.utime(audio[3], (1, 1))
    assert changed(store, corpus) == [NAME]


def test_access_problems_are_reported(folder: Path, tmp_path: Path) -> None:
    assert access_problem(corpus_at(folder)) is None
    assert access_problem(corpus_at(folder / "samples.jsonl")) is None
    message = access_problem(corpus_at(tmp_path / "unmounted"))
    assert message is not None
    assert f"No such file or directory: {tmp_path / 'unmounted'}; mount it" in message


def test_a_missing_or_damaged_record_means_a_new_scan(folder: Path, store: ArtifactStore) -> None:
    corpus = corpus_at(folder)
    see(corpus, store)
    (store.folder("raw_corpus", NAME) / "seen.json").write_text('{"digest": "')
    assert changed(store, corpus) == [NAME]
