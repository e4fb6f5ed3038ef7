"""All jobs on a minimal profile: twice, and again after a change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, Definitions, ExecuteInProcessResult

from jobs.asset_jobs import ALIGN, REFRESH, RETRAIN
from tests.pipeline.conftest import minimal
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.definitions import build_defs
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.settings import Settings, load_settings

CORPUS = "asterisk_en"
DATA = (
    "raw_corpus",
    "speech_segments",
    "filtered_samples",
    "codec",
    "codec_shards",
    "resynthesis",
    "code_arrays",
    "token_arrays",
)
TRAINED = ("evaluation_suite", "sft/announcer", "serving/announcer", "report/announcer")
ALIGNED = (
    "rlhf/announcer_grpo",
    "serving/announcer_grpo",
    "report/announcer_grpo",
    "comparison/announcer_grpo",
    "effect/announcer",
)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        assert corpus_partitions.name is not None
        ephemeral.add_dynamic_partitions(corpus_partitions.name, [CORPUS])
        yield ephemeral


def run_all(defs: Definitions, instance: DagsterInstance) -> dict[str, bool]:
    """Run the three jobs; for each asset, whether it was reused rather than built."""
    reused: dict[str, bool] = {}
    for job, partition in ((REFRESH, CORPUS), (RETRAIN, None), (ALIGN, None)):
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance, partition_key=partition
        )
        assert result.success
        assert all(check.passed for check in result.get_asset_check_evaluations())
        reused |= reuse(result)
    return reused


def reuse(result: ExecuteInProcessResult) -> dict[str, bool]:
    """Of all assets but ``promoted``, whose decision is made again each time."""
    events = result.get_asset_materialization_events()
    return {
        event.asset_key.to_user_string(): bool(
            event.step_materialization_data.materialization.metadata["reused"].value
        )
        for event in events
        if event.asset_key is not None and event.asset_key.path[0] != "promoted"
    }


def data_version(instance: DagsterInstance, asset: str) -> str:
    event = instance.get_latest_materialization_event(AssetKey(asset.split("/")))
    assert event is not None
    assert event.asset_materialization is not None
    return (event.asset_materialization.tags or {})["dagster/data_version"]


@pytest.mark.slow
def test_build_reuse_and_rebuild_after_a_change(
    settings: Settings, instance: DagsterInstance, corpus: Path, tmp_path: Path
) -> None:
    defs = build_defs(settings)
    first = run_all(defs, instance)
    assert set(first) == {*DATA, *TRAINED, *ALIGNED}
    assert not any(first.values())
    store = ArtifactStore(settings.storage)
    report = store.current("report/announcer_grpo")
    assert (report.path / "report.html").stat().st_size > 10_000
    assert report.facts.texts == 2
    assert store.current("promoted/announcer").facts.voice == "announcer"

    assert all(run_all(defs, instance).values()), "unchanged inputs must build nothing"

    versions = {asset: data_version(instance, asset) for asset in (*DATA, *TRAINED, *ALIGNED)}
    os.utime(next(corpus.rglob("*.g722")))  # other time, same bytes: looked at again, no more
    assert [asset for asset, was in run_all(defs, instance).items() if not was] == ["raw_corpus"]
    assert data_version(instance, "raw_corpus") == versions["raw_corpus"]

    samples = corpus / "samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    rows[0]["transcript"] = "something else"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = run_all(defs, instance)
    kept = {asset for asset, was in changed.items() if was} - {"resynthesis"}  # may have the clip
    assert kept == {"codec", "evaluation_suite"}
    assert data_version(instance, "code_arrays") != versions["code_arrays"]

    here, there = corpus.parent, tmp_path / "moved" / "far"
    there.mkdir(parents=True)
    for name in ("corpus", "work"):  # the recordings; storage, texts and suite
        (here / name).rename(there / name)
    moved = load_settings(environment={}, overrides=minimal(there / "corpus", there / "work"))
    found = run_all(build_defs(moved), instance)
    assert [asset for asset, was in found.items() if not was] == ["raw_corpus"]
