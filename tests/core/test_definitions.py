"""What every asset of every profile tells in the UI."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from dagster import AssetKey, FreshnessPolicy

from tts_assets.definitions import build_defs
from tts_assets.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
MORE = {
    "texts": {"chat": {"path": "chat.jsonl"}},
    "arrays": {
        "export": "inworld",
        "imported": {"theirs": {"path": "theirs", "codec": "their/codec"}},
    },
}


@pytest.mark.parametrize("profile", ["embedded", "gpu", "slurm", "codec_demo"])
def test_every_asset_says_what_it_is_and_whose(profile: str) -> None:
    environment = {} if profile == "embedded" else {"TTS_PROFILE": profile}
    graph = build_defs(load_settings(environment=environment, overrides=MORE)).resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.materializable_asset_keys]
    assert len(nodes) > 15
    for node in nodes:
        told = {
            "description": node.description,
            "group": node.group_name != "default" and node.group_name,
            "kinds": node.kinds,
            "code_version": node.code_version,
            "owners": node.owners,
        }
        assert all(told.values()), f"{node.key.to_user_string()} has no {told}"
        assert len(node.description or "") > 20, node.key


def test_definitions_load_without_torch() -> None:
    """Every process of Dagster loads them, also one that trains nothing: 2 s instead of 10."""
    code = "import sys, tts_assets.definitions; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert not {"torch", "transformers", "scipy"} & {*loaded.split()}


def test_reports_say_how_long_they_are_fresh() -> None:
    settings = load_settings(environment={}, overrides={"schedules": {"report_days": 3}})
    graph = build_defs(settings).resolve_asset_graph()
    policy = FreshnessPolicy.time_window(
        warn_window=timedelta(days=3), fail_window=timedelta(days=6)
    )
    assert graph.get(AssetKey(["report", "announcer"])).freshness_policy == policy
    assert graph.get(AssetKey(["sft", "announcer"])).freshness_policy is None


@pytest.mark.parametrize("owner", ["speech", "team:", "nobody@nowhere", "a b@c.de"])
def test_an_owner_is_an_address_or_a_team(owner: str) -> None:
    with pytest.raises(ValueError, match="owns nothing; write an address"):
        load_settings(environment={}, overrides={"project": {"owners": [owner]}})
