"""Automation of data assets on real files: exactly the changed assets run again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance

from jobs.asset_jobs import REFRESH
from tests.sensors.conftest import SPOKEN, Daemon, Made, watched_project
from tts_assets.arrays.arrays import CodeTable
from tts_assets.definitions import build_defs
from tts_assets.settings import load_settings

pytestmark = pytest.mark.slow

FOLLOWING = (
    "speech_segments",
    "filtered_samples",
    "codec_shards",
    "resynthesis",
    "code_arrays",
    "token_arrays",
)


def chain(corpus: str) -> list[Made]:
    return [("raw_corpus", corpus), *((asset, corpus) for asset in FOLLOWING)]


def ids(daemon: Daemon, corpus: str = SPOKEN) -> set[str]:
    """The utterances in a corpus' arrays."""
    path = daemon.store.current("code_arrays", corpus).path
    tables = (CodeTable.of_split(path, split) for split in ("train", "val"))
    return {sample["id"] for table in tables for sample in table.samples}


@pytest.fixture(scope="module")
def built(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A project at rest, to which each test does something and waits until it is at rest again."""
    settings = watched_project(tmp_path_factory.mktemp("project"), clips)
    with DagsterInstance.ephemeral() as instance:
        daemon = Daemon(settings, instance)
        assert set(daemon.settle()) == {*chain(SPOKEN), ("codec", None)}
        assert daemon.settle() == []
        yield daemon


@pytest.fixture
def folder(built: Daemon) -> Path:
    return built.settings.root / "corpora" / SPOKEN


def add_words(folder: Path, name: str) -> list[Made]:
    """Another corpus, of five words beside ``folder``; what is to be made of it."""
    new = Path(shutil.copytree(folder / "audio" / "digits", folder.with_name(name)))
    for audio in new.iterdir():
        audio.with_suffix(".txt").write_text(audio.stem)
    return chain(name)


def say(folder: Path, text: str) -> None:
    """Change the words of the first clip."""
    samples = folder / "samples.jsonl"
    first, *rest = samples.read_text().splitlines(keepends=True)
    first = json.dumps({**json.loads(first), "transcript": text}) + "\n"
    samples.write_text("".join([first, *rest]))


def test_every_asset_of_a_corpus_follows_data() -> None:
    settings = load_settings(environment={}, overrides={"arrays": {"export": "inworld"}})
    graph = build_defs(settings).resolve_asset_graph()
    followed = {*FOLLOWING, "inworld_arrays"}
    still = {name for name in followed if not graph.get(AssetKey(name)).automation_condition}
    assert not still


def test_a_new_folder_becomes_arrays(built: Daemon, folder: Path) -> None:
    words = add_words(folder, "words")
    assert set(built.settle()) == set(words)
    assert len(ids(built, "words")) == 5


def test_identical_data_starts_nothing(built: Daemon, folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    assert built.settle() == [("raw_corpus", SPOKEN)]


def test_a_changed_and_a_removed_clip_change_their_corpus_alone(
    built: Daemon, folder: Path
) -> None:
    before = ids(built)
    samples = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    clip = folder / json.loads(samples[0])["wav_path"]
    with clip.open("ab") as audio:
        audio.write(b"\xfa" * 800)
    assert built.settle() == chain(SPOKEN)
    changed = ids(built)
    assert len(before - changed) == len(changed - before) == 1

    (folder / "samples.jsonl").write_text("".join(samples[1:]))
    clip.unlink()
    assert built.settle() == chain(SPOKEN)
    assert ids(built) == before & changed


def test_a_change_without_effect_stops_early(built: Daemon, folder: Path) -> None:
    with (folder / "samples.jsonl").open("a") as samples:
        samples.write('{"wav_path": "audio/none.wav", "transcript": "nothing"}\n')
    # One more entry is set aside: that is another index, but no other samples.
    assert built.settle() == chain(SPOKEN)[:3]


def test_a_failed_check_blocks_its_corpus_until_it_passes(built: Daemon, folder: Path) -> None:
    samples = folder / "samples.jsonl"
    text = samples.read_text()
    samples.write_text(text.replace('"transcript": "', '"transcript": "...", "was": "'))
    words = add_words(folder, "more_words")
    assert set(built.settle()) == {*chain(SPOKEN)[:3], *words}  # no sample was kept
    samples.write_text(text)
    say(folder, "mended")
    assert set(built.settle()) == set(chain(SPOKEN))


def test_a_change_during_a_run_is_requested_later(built: Daemon, folder: Path) -> None:
    say(folder, "first")
    built.run(built.looks())
    asked = built.follow()
    assert asked == [("speech_segments", SPOKEN)]
    built.run(asked)
    say(folder, "second")
    built.run(built.looks())
    assert ("filtered_samples", SPOKEN) in built.settle()
    kept = built.store.current("filtered_samples", SPOKEN).path / "kept.jsonl"
    assert "second" in kept.read_text()


def test_a_run_of_the_whole_corpus_leaves_nothing_to_request(daemon: Daemon) -> None:
    assert daemon.follow() == []
    daemon.sense("new_corpora")
    job = daemon.defs.resolve_job_def(REFRESH)
    assert job.execute_in_process(instance=daemon.instance, partition_key=SPOKEN).success
    assert daemon.looks() == []
    assert daemon.follow() == []
