"""Every asset of every profile has complete metadata, and definitions load quickly."""

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
def test_every_asset_has_description_group_kinds_version_and_owners(profile: str) -> None:
    environment = {} if profile == "embedded" else {"TTS_PROFILE": profile}
    graph = build_defs(load_settings(environment=environment, overrides=MORE)).resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.materializable_asset_keys]
    assert len(nodes) > 15
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


def test_definitions_load_without_torch() -> None:
    """Every Dagster process loads the definitions: 2 s of CPU instead of 10."""
    code = "import sys, tts_assets.definitions; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    heavy = {"torch", "transformers", "scipy", "faster_whisper", "trl", "librosa"}
    assert not heavy & {*loaded.split()}


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
