"""Sensors of corpora: new partitions, one request per change, and problems in the log."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl
from dagster import DagsterRunStatus

from jobs.asset_jobs import REFRESH
from jobs.foreground import register_corpora
from sensors import corpora as sensors
from tests.sensors.conftest import SPOKEN, Daemon
from tests.support.corpus_layouts import write
from tts_assets.corpora.corrections import Correction, Corrections
from tts_assets.settings import load_settings

LOOK = [("raw_corpus", SPOKEN)]


def test_corpora_become_partitions_and_problems_are_logged(daemon: Daemon, corpora: Path) -> None:
    write(corpora / "odd" / "notes.txt", "no corpus")
    daemon.sense("new_corpora")
    assert sensors.partitions(daemon.instance) == {SPOKEN}
    quiet = daemon.sense("new_corpora")
    assert not quiet.dynamic_partitions_requests
    assert quiet.skip_reason is not None
    assert "write reader = …" in str(quiet.skip_reason.skip_message)
    assert str(corpora / "odd") in str(quiet.skip_reason.skip_message)
    shutil.rmtree(corpora / SPOKEN)
    gone = daemon.sense("new_corpora").skip_reason
    assert f"{SPOKEN} has no corpus any more" in str(gone)


def test_jobs_accept_discovered_corpora(daemon: Daemon) -> None:
    assert register_corpora(daemon.instance, daemon.settings) == [SPOKEN]
    partitions_def = daemon.defs.resolve_job_def(REFRESH).partitions_def
    assert partitions_def is not None
    # What a backfill of all partitions runs:
    assert partitions_def.get_partition_keys(dynamic_partitions_store=daemon.instance) == [SPOKEN]


def test_a_change_is_requested_once(daemon: Daemon, corpora: Path) -> None:
    assert daemon.looks() == LOOK
    assert daemon.looks() == []  # asked for, whether it succeeds or not
    daemon.run(LOOK)
    assert daemon.looks() == []
    os.utime(next(corpora.rglob("*.g722")))
    assert daemon.looks() == LOOK
    assert daemon.looks() == []


def test_corrections_make_the_samples_again(daemon: Daemon) -> None:
    chain = [(asset, SPOKEN) for asset in ("raw_corpus", "speech_segments", "filtered_samples")]
    daemon.looks()
    layer = Corrections.of(daemon.settings.root, SPOKEN)
    layer = layer.add(Correction(id="0" * 16, text="not of this corpus"))
    assert daemon.looks() == []  # no samples yet
    daemon.run(chain)
    assert daemon.looks() == []
    samples = daemon.store.current("filtered_samples", SPOKEN)
    row = pl.read_parquet(daemon.store.current("raw_corpus", SPOKEN).path / "utterances.parquet")
    layer = layer.add(Correction(id=row["id"][0], drop=True))
    assert daemon.looks() == chain[-1:]
    assert daemon.looks() == []  # asked for, whether it succeeds or not
    daemon.run(chain[-1:])
    assert daemon.looks() == []
    changed = daemon.store.current("filtered_samples", SPOKEN)
    assert changed.content != samples.content
    with layer.path.open("a") as file:
        file.write("{}\n")
    assert f"{layer.path}:3" in str(daemon.sense("changed_corpora").skip_reason)


def test_a_corpus_is_not_requested_during_a_run(daemon: Daemon) -> None:
    from dagster._core.test_utils import create_run_for_test

    tags = {sensors.PARTITION_TAG: SPOKEN}
    run = create_run_for_test(daemon.instance, status=DagsterRunStatus.STARTED, tags=tags)
    assert daemon.looks() == []
    daemon.instance.delete_run(run.run_id)
    assert daemon.looks() == LOOK


def test_a_missing_corpus_does_not_block_others(daemon: Daemon) -> None:
    gone = daemon.settings.root / "gone"
    fields = {"path": str(gone), "reader": "jsonl", "language": "en"}
    settings = load_settings(
        daemon.settings.root / "project.toml",
        environment={},
        overrides={"corpora": {"gone": fields}},
    )
    daemon = Daemon(settings, daemon.instance)
    assert daemon.looks() == LOOK
    skipped = daemon.sense("changed_corpora").skip_reason
    assert f"gone is skipped: No such file or directory: {gone}" in str(skipped)


def test_the_cursor_does_not_grow_with_the_corpus(daemon: Daemon, corpora: Path) -> None:
    for number in range(500):
        (corpora / SPOKEN / f"{number}.g722").write_bytes(b"")
    assert daemon.looks() == LOOK
    assert daemon.sensor_cursor is not None
    assert len(daemon.sensor_cursor) < 200


def test_audio_outside_of_the_corpus_is_checked_after_the_first_run(
    daemon: Daemon, corpora: Path
) -> None:
    elsewhere = daemon.settings.root / "elsewhere"
    shutil.move(corpora / SPOKEN / "audio", elsewhere)
    samples = corpora / SPOKEN / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"audio/', f'"{elsewhere}/'))
    daemon.run(daemon.looks())
    assert daemon.looks() == []
    os.utime(next(elsewhere.rglob("*.g722")))
    assert daemon.looks() == LOOK
