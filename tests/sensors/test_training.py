"""Automation of GPU assets: exactly the assets downstream of a change run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, DefaultScheduleStatus, DefaultSensorStatus

from tests.sensors.conftest import ROOT, SPOKEN, Daemon, Made
from tests.sensors.test_automation import chain, say
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.settings import Settings, load_settings

OTHER = "other"
RECIPE = """
[sft.{0}]
base.llama = {{ hidden_size = 64, intermediate_size = 128, layers = 2, heads = 2, kv_heads = 2 }}
corpora = {{ {0} = 1.0 }}
steps = 2
eval_every = 1
sample_texts = 0
"""


def two_voices(folder: Path, clips: Path) -> Settings:
    """Two corpora with one word each, and a recipe for each."""
    for corpus in (SPOKEN, OTHER):
        shutil.copytree(clips, folder / "corpora" / corpus)
        agreed = 'consent = { who = "Allison Smith", purpose = "tests" }\n'
        (folder / "corpora" / corpus / "corpus.toml").write_text(agreed)
    row = {"id": "1", "category": "digits", "text": "four three two"}
    (folder / "suite.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "project.toml").write_text(
        '[project]\nname = "voices"\n'
        '[discovery]\nroot = "corpora"\nlanguage = "en"\n'
        "[validation]\nfraction = 0.3\n"
        f'[codec]\nshard_samples = 5\ncheckpoint = "{ROOT / "codecs/announcer-16khz"}"\n'
        "[serving]\nsampling = { min_tokens = 5, max_tokens = 40 }\n"
        "check_vllm = false\n"
        '[evaluation]\nsuite = "suite.jsonl"\nreference_clips = 1\n'
        f'[promotion.voice]\ncandidates = ["{SPOKEN}", "{OTHER}"]\n'
        + RECIPE.format(SPOKEN)
        + RECIPE.format(OTHER)
    )
    return load_settings(folder / "project.toml", environment={})


@pytest.fixture
def voices(clips: Path, tmp_path: Path) -> Iterator[Daemon]:
    with DagsterInstance.local_temp() as instance:  # a schedule's tick needs one on disk
        yield Daemon(two_voices(tmp_path, clips), instance)


def trained(recipe: str) -> set[Made]:
    return {(f"{stage}/{recipe}", None) for stage in ("sft", "serving", "report")}


PROMOTED: set[Made] = {("promoted/voice", None)}


@pytest.mark.slow
def test_one_changed_corpus_retrains_exactly_what_depends_on_it(voices: Daemon) -> None:
    assert set(voices.settle()) == {*chain(SPOKEN), *chain(OTHER), ("codec", None)}
    voices.run(sorted([("evaluation_suite", None), *trained(SPOKEN), *trained(OTHER), *PROMOTED]))
    voices.on.append("gpu_automation")
    assert voices.settle() == []  # at the first look all is well

    folder = voices.settings.root / "corpora" / OTHER
    for path in folder.rglob("*"):
        path.touch()
    assert voices.settle() == [("raw_corpus", OTHER)]  # identical data trains nothing

    say(folder, "something else")
    again = voices.settle()
    assert set(again) == {*chain(OTHER), *trained(OTHER), *PROMOTED}
    assert len(again) == len(set(again))


@pytest.mark.slow
def test_gpu_automation_first_requests_the_suite_only(voices: Daemon) -> None:
    voices.on.append("gpu_automation")
    assert voices.follow() == [("evaluation_suite", None)]
    assert voices.follow() == []  # asked for once, whether it succeeds or not


def test_assets_without_inputs_are_requested_once_and_encoders_never(
    clips: Path, tmp_path: Path
) -> None:
    two_voices(tmp_path, clips)
    (tmp_path / "chat.jsonl").write_text('{"text": "hello"}\n')
    shutil.copy(tmp_path / "suite.jsonl", tmp_path / "more.jsonl")
    more = {
        "texts": {"chat": {"path": "chat.jsonl"}},
        "codec": {"report": {"corpora": [SPOKEN]}},
        "evaluation": {"suites": {"more": {"path": "more.jsonl"}}},
        "speakers": {"corpora": [SPOKEN], "purity": {}, "train": {"steps": 1}},
    }
    settings = load_settings(tmp_path / "project.toml", environment={}, overrides=more)
    with DagsterInstance.ephemeral() as instance:
        daemon = Daemon(settings, instance)
        daemon.on = ["gpu_automation"]
        once = ["evaluation_suite", "suite/more", "texts/chat"]
        assert daemon.follow() == [(name, None) for name in once]
        graph = daemon.defs.resolve_asset_graph()
        labels = {
            name: condition and condition.get_label()
            for name in ("codec_report", "speaker_report", "speaker_purity", "speaker_encoder")
            for condition in [graph.get(AssetKey(name)).automation_condition]
        }
    follows = dict.fromkeys(("codec_report", "speaker_report", "speaker_purity"), "follow_training")
    assert labels == follows | {"speaker_encoder": None}


def test_a_change_by_the_nightly_job_is_followed_by_training(voices: Daemon) -> None:
    """The tag by which data assets know that a job makes them all does not hide it from GPUs."""
    conditions = {
        key.to_user_string(): str(voices.defs.resolve_asset_graph().get(key).automation_condition)
        for key in voices.defs.resolve_asset_graph().get_all_asset_keys()
    }
    assert "whole_corpus" in conditions["code_arrays"]
    assert "whole_corpus" not in conditions[f"sft/{SPOKEN}"]


def test_no_sensor_of_gpu_assets_is_on_by_default(voices: Daemon) -> None:
    on = {
        s.name for s in voices.defs.sensors or () if s.default_status == DefaultSensorStatus.RUNNING
    }
    assert on == {"new_corpora", "data_automation"}
    schedules = {s.name: s.default_status for s in voices.defs.schedules or ()}
    ours = {"nightly_refresh", "weekly_retrain", "weekly_evaluate", "monthly_align", "weekly_prune"}
    assert set(schedules) == ours
    assert set(schedules.values()) == {DefaultScheduleStatus.STOPPED}


def test_the_nightly_refresh_requests_all_corpora_with_recordings(voices: Daemon) -> None:
    from dagster import build_schedule_context

    nightly = voices.defs.resolve_schedule_def("nightly_refresh")
    tonight = partial(
        build_schedule_context,
        instance=voices.instance,
        repository_def=voices.defs.get_repository_def(),
        scheduled_execution_time=datetime(2026, 11, 22, 1, tzinfo=UTC),
    )
    with tonight() as context:
        assert "no corpus is a partition" in str(nightly.evaluate_tick(context).skip_message)
    voices.sense("new_corpora")
    assert corpus_partitions.name is not None
    voices.instance.add_dynamic_partitions(corpus_partitions.name, ["imported"])
    with tonight() as context:
        requests = nightly.evaluate_tick(context).run_requests or ()
    assert {request.partition_key for request in requests} == {SPOKEN, OTHER}
