"""The program: caches, resuming after a kill, and independence of the number of ranks."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from tests.codec.conftest import ROOT
from tests.corpora.segments.conftest import (
    Segmented,
    index_recordings,
    publish,
    segment,
    write_program,
)
from tests.support.recordings import RATE, record, speech_of
from tts_assets.core.accounting import read_set_aside
from tts_assets.core.artifacts import ArtifactStore, sha256_file
from tts_assets.core.audio import resample
from tts_assets.corpora.segments.segment import main
from tts_assets.corpora.segments.words import WordTranscriber

FIRST, SECOND = ("auth-incorrect", "conf-onlyperson"), ("agent-newlocation", "invalid")


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Two short recordings."""
    for name, keys in (("one", FIRST), ("two", SECOND)):
        record(tmp_path / "talks" / "ann" / f"{name}.wav", keys, (1.0, 1.0))
    return tmp_path / "talks"


@pytest.fixture
def transcribed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The starts of the windows that Whisper transcribes from now on."""
    windows: list[float] = []
    words = WordTranscriber.words

    def counting(self: WordTranscriber, wave, window, language):  # type: ignore[no-untyped-def]
        windows.append(window.start)
        return words(self, wave, window, language)

    monkeypatch.setattr(WordTranscriber, "words", counting)
    return windows


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted((folder / "result").iterdir())}


def test_only_new_recordings_are_transcribed(
    talks: Path, store: ArtifactStore, tmp_path: Path, transcribed: list[float]
) -> None:
    later = talks / "ann" / "two.wav"
    later.rename(tmp_path / "two.wav")
    before = segment(index_recordings(talks, store), store, tmp_path / "a")
    assert len(transcribed) == 1
    (tmp_path / "two.wav").rename(later)
    both = segment(index_recordings(talks, store), store, tmp_path / "b")
    assert len(transcribed) == 2
    assert {row.id for row in before.rows} < {row.id for row in both.rows}
    segment(index_recordings(talks, store), store, tmp_path / "c", min_seconds=3.0)
    assert len(transcribed) == 2


def test_another_language_tag_updates_cached_clips(
    talks: Path, store: ArtifactStore, tmp_path: Path, transcribed: list[float]
) -> None:
    segment(index_recordings(talks, store, "en"), store, tmp_path / "a")
    windows = len(transcribed)
    british = segment(index_recordings(talks, store, "en-GB"), store, tmp_path / "b")
    assert {row.language for row in british.rows} == {"en-GB"}
    assert len(transcribed) == windows


@pytest.mark.slow
def test_without_its_caches_and_its_pool_the_result_is_the_same(
    talks: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    corpus = index_recordings(talks, store)
    main([str(write_program(corpus, store, tmp_path / "a"))])
    shutil.rmtree(store.audio_pool)
    main([str(write_program(corpus, store, tmp_path / "b"))])
    shutil.rmtree(store.root / ".cache")
    main([str(write_program(corpus, store, tmp_path / "c"))])
    assert digests(tmp_path / "a") == digests(tmp_path / "b") == digests(tmp_path / "c")
    publish(corpus, store, tmp_path / "c")


@pytest.mark.slow
def test_a_killed_program_keeps_finished_recordings(
    talks: Path, store: ArtifactStore, tmp_path: Path, transcribed: list[float]
) -> None:
    corpus = index_recordings(talks, store)
    run_json = write_program(corpus, store, tmp_path / "run")
    command = [sys.executable, "-m", "tts_assets.corpora.segments.segment", str(run_json)]
    process = subprocess.Popen(command, cwd=ROOT)
    done = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(done.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(done.glob("*.json"))) == 1
    main([str(run_json)])
    assert len(transcribed) == 1
    other = ArtifactStore(tmp_path / "other")
    main([str(write_program(corpus, other, tmp_path / "whole"))])
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def rows_of(folder: Path) -> str:
    return sha256_file(folder / "result" / "utterances.parquet")


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_ranks(
    talks: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    corpus = index_recordings(talks, store)
    main([str(write_program(corpus, store, tmp_path / "one"))])
    other = ArtifactStore(tmp_path / "other")
    run_json = write_program(corpus, other, tmp_path / "two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tts_assets.corpora.segments.segment", str(run_json)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


@pytest.mark.slow
def test_only_the_wanted_speaker_is_kept(store: ArtifactStore, tmp_path: Path) -> None:
    folder = tmp_path / "talks" / "ann"
    record(folder / "ann.wav", FIRST, (1.0, 1.0))
    record(tmp_path / "low.wav", SECOND, (1.0, 1.0))
    wave, _ = soundfile.read(tmp_path / "low.wav", dtype="float32")
    soundfile.write(folder / "low.wav", resample(wave, RATE, int(RATE * 1.35)), RATE, "PCM_16")
    soundfile.write(tmp_path / "ann.wav", speech_of("demo-nomatch"), RATE)
    found = segment(
        index_recordings(tmp_path / "talks", store),
        store,
        tmp_path / "run",
        speaker={"reference": tmp_path / "ann.wav", "min_similarity": 0.68},
    )
    by_file = {name: set[str]() for name in ("ann/ann.wav", "ann/low.wav")}
    ids = {name: sha256_file(tmp_path / "talks" / name)[:16] for name in by_file}
    for span in found.spans.iter_rows(named=True):
        for name, identity in ids.items():
            if span["recording"] == identity:
                by_file[name].add(span["reason"])
    assert by_file["ann/ann.wav"] == {"no speech", "kept"}
    # a phrase of less than a second has no speaker of its own
    assert by_file["ann/low.wav"] - {"too short"} == {"no speech", "another speaker"}
    assert found.facts.seconds["another speaker"] > 4


def test_changed_or_missing_recordings_are_set_aside(
    talks: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    record(talks / "ann" / "three.wav", ("conf-locked", "conf-noempty"), (0.5, 1.0))
    corpus = index_recordings(talks, store)
    record(talks / "ann" / "one.wav", SECOND, (0.5, 0.5))
    (talks / "ann" / "two.wav").unlink()
    found = segment(corpus, store, tmp_path / "run")
    assert {record.reason for record in read_set_aside(found.handle.path / "set_aside.jsonl")} >= {
        "changed since it was indexed",
        "no such file",
    }
    assert len(found.rows) >= 1
    assert sum(found.facts.seconds.values()) == pytest.approx(
        found.facts.recorded_hours * 3600, abs=0.01
    )


def test_noise_without_a_voice_gives_no_clip(store: ArtifactStore, tmp_path: Path) -> None:
    record(tmp_path / "talks" / "ann" / "noise.wav", (), (), lead=20.0, noise_db=-20.0)
    found: Segmented = segment(index_recordings(tmp_path / "talks", store), store, tmp_path / "run")
    assert found.facts.seconds == {"kept": 0.0, "no speech": 20.0}


def test_an_unsupported_language_fails_the_program(
    talks: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    corpus = index_recordings(talks, store, language="de")
    with pytest.raises(ValueError, match=r"one\.wav is 'de'; name a multilingual one"):
        segment(corpus, store, tmp_path / "run")


@pytest.mark.slow
def test_recordings_elsewhere_give_the_same_files(talks: Path, tmp_path: Path) -> None:
    """Another folder and another storage, without caches: a move changes no digest."""
    found = []
    for name in ("here", "far/away"):
        folder, store = tmp_path / name / "talks", ArtifactStore(tmp_path / name / "storage")
        shutil.copytree(talks, folder)
        made = segment(index_recordings(folder, store), store, store.root / ".work" / "run")
        assert all(row.path(made.audio).is_relative_to(store.audio_pool) for row in made.rows)
        found.append(made.handle.manifest.files)
    assert found[0] == found[1]
