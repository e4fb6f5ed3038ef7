"""The selections of the jobs: complete, and consistent with the schedules."""

from __future__ import annotations

from typing import Any

import pytest
from dagster import Definitions

from jobs.asset_jobs import PRUNE, SCRUB
from tts_assets.definitions import build_defs
from tts_assets.settings import load_settings

SUITE = {"path": "examples/suites/numerals.jsonl"}
EVERYTHING: dict[str, Any] = {
    "texts": {"chat": {"path": "chat.jsonl"}},
    "arrays": {"imported": {"theirs": {"path": "theirs", "codec": "their/codec"}}},
    "codec": {"decoder": {"corpora": {"asterisk_en": 1.0}, "sample_rate": 16000, "steps": 1}},
    "sft": {"small": {"base": {"llama": {}}, "corpora": {"asterisk_en": 1.0}, "steps": 1}},
    "evaluation": {
        "suites": {"numerals": SUITE, "few": {**SUITE, "recipes": ["announcer_grpo"]}},
        "comparisons": {
            "sizes": {"models": ["announcer", "small"]},
            "all": {"models": ["announcer", "small", "announcer_grpo"]},
        },
    },
    "promotion": {"little": {"candidates": ["small"]}},
    "speakers": {"corpora": ["asterisk_en"], "checkpoint": "resemblyzer", "purity": {}},
}
SUITES = {"evaluation_suite", "suite/numerals", "suite/few"}
SFT = {
    f"{stage}/{recipe}{more}"
    for recipe in ("announcer", "small")
    for stage, more in (("sft", ""), ("serving", ""), ("report", ""), ("report", "/numerals"))
}
GRPO = {
    *("rlhf/announcer_grpo", "serving/announcer_grpo"),
    *(f"report/announcer_grpo{suite}" for suite in ("", "/numerals", "/few")),
}
RETRAINED = {"texts/chat", *SUITES, *SFT, "comparison/sizes"}
ALIGNED = {*GRPO, "comparison/announcer_grpo", "comparison/all", "effect/announcer"}


def assets_of(defs: Definitions, job: str) -> set[str]:
    keys = defs.resolve_job_def(job).asset_layer.selected_asset_keys
    return {key.to_user_string() for key in keys}


@pytest.fixture(scope="module")
def defs() -> Definitions:
    return build_defs(load_settings(environment={}, overrides=EVERYTHING))


def test_every_asset_is_in_a_job(defs: Definitions) -> None:
    names = {job.name for job in defs.jobs or ()} - {SCRUB, PRUNE}
    made = {name: assets_of(defs, name) for name in names}
    keys = defs.resolve_asset_graph().materializable_asset_keys
    assert {key.to_user_string() for key in keys} == set().union(*made.values())


def test_trained_recipes_are_evaluated_on_all_suites_and_promoted(defs: Definitions) -> None:
    assert assets_of(defs, "retrain") == {*RETRAINED, "promoted/announcer", "promoted/little"}
    assert assets_of(defs, "align") == {*ALIGNED, "promoted/announcer"}


def test_the_job_evaluate_has_all_reports_and_no_training(defs: Definitions) -> None:
    kinds = ("report", "suite", "comparison", "effect")
    evaluated = {name for name in RETRAINED | ALIGNED if name.startswith(kinds)}
    reports = {"codec_report", "speaker_report"}
    assert assets_of(defs, "evaluate") == {*evaluated, "evaluation_suite", *reports}


def test_without_a_speaker_encoder_there_is_no_speaker_report() -> None:
    plain = build_defs(load_settings(environment={}))
    assert "speaker_report" not in assets_of(plain, "evaluate")


def test_every_schedule_has_a_description(defs: Definitions) -> None:
    names = (
        "nightly_refresh",
        "weekly_retrain",
        "weekly_evaluate",
        "monthly_align",
        "weekly_prune",
    )
    assert all(defs.resolve_schedule_def(name).description for name in names)


def test_every_report_with_a_freshness_policy_is_scheduled_weekly(defs: Definitions) -> None:
    graph = defs.resolve_asset_graph()
    aging = {
        key.to_user_string()
        for key in graph.get_all_asset_keys()
        if graph.get(key).freshness_policy
    }
    weekly = defs.resolve_schedule_def("weekly_evaluate").job_name
    assert {"report/announcer", "codec_report", "speaker_report"} <= aging
    assert aging <= assets_of(defs, weekly)
