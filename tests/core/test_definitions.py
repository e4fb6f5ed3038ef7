"""Every asset of every profile has complete metadata, and definitions load quickly."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    Definitions,
    FreshnessPolicy,
    execute_job,
    reconstructable,
)

from tests.support import side_by_side
from tts_assets.core.compute import Compute
from tts_assets.definitions import build_defs, executor_of
from tts_assets.project_file import overlay
from tts_assets.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
MORE = {
    "texts": {"chat": {"path": "chat.jsonl"}},
    "arrays": {
        "export": "inworld",
        "imported": {"theirs": {"path": "theirs", "codec": "their/codec"}},
    },
}
CORPUS = ["asterisk_en"]
SUITE = {"path": "examples/suites/numerals.jsonl"}
SMALL = {"base": {"llama": {}}, "corpora": {"asterisk_en": 1.0}, "steps": 1, "eval_samples": 50}
SPEAKERS = {"corpora": CORPUS, "checkpoint": "resemblyzer"}
# Each table that a project file may have, with the fewest keys; the first part is the section.
OPTIONAL: dict[str, dict[str, Any]] = {
    "alerts.email": {"sender": "a@b.de", "to": ["c@d.de"], "host": "b.de"},
    "alerts.slack": {"channel": "#speech"},
    "arrays": {"export": "inworld"},
    "arrays.imported.theirs": {"path": "theirs", "codec": "their/codec"},
    "budget": {"gpu_hours_a_week": 1},
    "codec.decoder": {"corpora": {"asterisk_en": 1.0}, "sample_rate": 16000, "steps": 1},
    "codec.report": {"corpora": CORPUS, "clips": 1},
    "compute": {"environment": {"OMP_NUM_THREADS": "1"}},
    "corpora.mine": {"path": "examples", "reader": "folder", "language": "en"},
    "dpo.third": {"base": "announcer", "preferences": "rated"},
    "discovery": {"root": "examples/none", "language": "en"},
    "evaluation.comparisons.pair": {"models": ["announcer", "announcer_grpo"]},
    "evaluation.gates": {"wer": 0.1},
    "evaluation.suites.numerals": SUITE,
    "external_models": {
        "python": sys.executable,
        "recipes": {"theirs": {"family": "vits", "corpora": CORPUS}},
        "notes": {"theirs": "a note"},
    },
    "filters": {"min_p808": 2.0},
    "preferences.rated": {"rollouts": "announcer_grpo", "pairs": 9},
    "promotion.second": {"candidates": ["announcer"]},
    "retention": {"days": 7, "versions": 2},
    "rlhf.second": {"base": "announcer", "prompts": {"texts": "a.txt"}, "steps": 1},
    "schedules": {"report_days": 3},
    "serving": {"voices": 1},
    "sft.small": SMALL,
    "speakers": SPEAKERS,
    "speakers.purity": {"encoder": "speaker_encoder"},
    "text": {},
    "texts.chat": {"path": "chat.jsonl"},
    "validation": {},
    "vllm": {"restarts": 1},
    "wandb": {"project": "speech"},
}
NEEDS = {"speakers.purity": ["speakers"], "dpo.third": ["preferences.rated"]}


def tables(*names: str) -> dict[str, Any]:
    """The optional tables of the dotted ``names``, nested."""
    values: dict[str, Any] = {}
    for name in names:
        table: dict[str, Any] = OPTIONAL[name]
        for key in reversed(name.split(".")):
            table = {key: table}
        values = overlay(values, table)
    return values


@pytest.mark.parametrize("name", OPTIONAL)
def test_all_definitions_load_with_each_optional_table_alone(name: str) -> None:
    """A lazy load of the definitions does not find a job named like an asset."""
    chosen = tables(*NEEDS.get(name, ()), name)
    Definitions.validate_loadable(build_defs(load_settings(environment={}, overrides=chosen)))


@pytest.mark.parametrize("profile", ["embedded", "gpu", "slurm", "codec_demo"])
def test_all_definitions_load_with_all_optional_tables(profile: str) -> None:
    settings = load_settings(environment={}, profile=profile, overrides=tables(*OPTIONAL))
    Definitions.validate_loadable(build_defs(settings))


def test_every_section_of_the_project_file_is_among_the_optional_tables() -> None:
    required = {"project", "codec", "evaluation"}
    assert {name.split(".")[0] for name in OPTIONAL} | required == {*Settings.model_fields}


@pytest.mark.parametrize("profile", ["embedded", "gpu", "slurm", "codec_demo", "base"])
def test_every_asset_has_description_group_kinds_version_and_owners(profile: str) -> None:
    environment = {} if profile == "embedded" else {"TTS_PROFILE": profile}
    graph = build_defs(load_settings(environment=environment, overrides=MORE)).resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.materializable_asset_keys]
    assert len(nodes) > 12
    for node in nodes:
        found = {
            "description": node.description,
            "group": node.group_name != "default" and node.group_name,
            "kinds": node.kinds,
            "code_version": node.code_version,
            "owners": node.owners,
        }
        assert all(found.values()), f"{node.key.to_user_string()} lacks one of {found}"
        assert len(node.description or "") > 20, node.key


def test_nodes_of_a_group_have_different_names_and_their_roles() -> None:
    """The graph shows the group, the kinds, and of a key the last part only."""
    chosen = {**tables(*OPTIONAL), "sft": {"small": SMALL, "my-voice": SMALL}}
    graph = build_defs(load_settings(environment={}, overrides=chosen)).resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.materializable_asset_keys]
    shown = Counter((node.group_name, node.key.path[-1]) for node in nodes)
    assert [name for name, count in shown.items() if count > 1] == []
    groups = {node.key.to_user_string(): node.group_name for node in nodes}
    assert groups["report/announcer_grpo"] == "reports"
    assert groups["comparison/announcer_grpo"] == "comparisons"
    assert groups["report/my-voice/numerals"] == "reports_my_voice"
    assert groups["spoken/theirs/numerals"] == "external_syntheses_theirs"
    stages = {"sft", "rlhf", "serving", "report", "comparison", "promoted", "family", "spoken"}
    stages |= {"dpo", "preferences", "effect"}
    kinds = {node.key.path[0]: node.kinds for node in nodes if node.key.path[0] in stages}
    assert len({frozenset(kind) for kind in kinds.values()}) == len(stages) == len(kinds)


@pytest.mark.slow
def test_definitions_load_without_torch() -> None:
    """Every Dagster process loads the definitions: 2 s of CPU instead of 10."""
    code = "import sys, tts_assets.definitions; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    heavy = {"torch", "transformers", "scipy", "faster_whisper", "trl", "librosa"}
    assert not heavy & {*loaded.split()}


@pytest.mark.slow
def test_definitions_load_without_warnings() -> None:
    """Dagster warns of each use of a part that it calls preview, beta or superseded."""
    done = subprocess.run(
        [sys.executable, "-c", "import tts_assets.definitions"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stderr == ""


def test_reports_have_a_freshness_policy() -> None:
    settings = load_settings(environment={}, overrides={"schedules": {"report_days": 3}})
    graph = build_defs(settings).resolve_asset_graph()
    policy = FreshnessPolicy.time_window(
        warn_window=timedelta(days=3), fail_window=timedelta(days=6)
    )
    assert graph.get(AssetKey(["report", "announcer"])).freshness_policy == policy
    assert graph.get(AssetKey(["sft", "announcer"])).freshness_policy is None


@pytest.mark.parametrize("owner", ["speech", "team:", "nobody@nowhere", "a b@c.de"])
def test_an_owner_is_an_address_or_a_team(owner: str) -> None:
    with pytest.raises(ValueError, match="is no valid owner; write an address"):
        load_settings(environment={}, overrides={"project": {"owners": [owner]}})


def test_steps_run_one_after_the_other_on_this_machine_and_side_by_side_under_slurm() -> None:
    assert executor_of(Compute()).name == "in_process"
    profile = load_settings(environment={"TTS_PROFILE": "slurm"})
    job = build_defs(profile).resolve_job_def("retrain")
    assert job.executor_def.name == "multiprocess"


@pytest.mark.slow
def test_independent_steps_of_a_run_under_slurm_run_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(side_by_side.FOLDER, str(tmp_path))
    with DagsterInstance.local_temp() as instance:
        assert execute_job(reconstructable(side_by_side.both), instance=instance).success
