"""The terminal of ``make demo`` shows what a failed check found."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    DagsterInstance,
    MaterializeResult,
    asset,
    asset_check,
    materialize,
)

import scripts.demo
from scripts.demo import RunView, run_job
from tts_assets.settings import load_settings

KNOWN = [f"text-{number}" for number in range(25)]


@asset(name="report")
def made() -> MaterializeResult[None]:
    return MaterializeResult(metadata={"reused": False})


@asset_check(asset=made, blocking=True)
def suite_is_held_out() -> AssetCheckResult:
    return AssetCheckResult(
        passed=False,
        metadata={"trained_on": 1234, "known": KNOWN, "known_audio": [], "pairs": [["a", 42]]},
    )


@asset_check(asset=made)
def no_collapse() -> AssetCheckResult:
    return AssetCheckResult(
        passed=False,
        severity=AssetCheckSeverity.WARN,
        description="the entropy fell",
        metadata={"entropy": "from update 3 on: 0.1", "set_aside": {"too short": 2}},
    )


@asset_check(asset=made)
def fine() -> AssetCheckResult:
    return AssetCheckResult(passed=True, metadata={"clips": 3})


EXPECTED = (
    """\
  report  check suite_is_held_out FAILED
    known: text-0, text-1, text-2, text-3, text-4, text-5, text-6, text-7, text-8, text-9, """
    """… (25 in all)
    known_audio: none
    pairs: ["a", 42]
    trained_on: 1234
""",
    """\
  report  check no_collapse warns
    the entropy fell
    entropy: from update 3 on: 0.1
    set_aside: too short: 2
""",
)


def run(instance: DagsterInstance) -> None:
    assets = [made, suite_is_held_out, no_collapse, fine]
    tags = {"tts/demo": "x"}
    result = materialize(assets, instance=instance, tags=tags, raise_on_error=False)
    assert not result.success


def test_a_failed_check_shows_its_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with DagsterInstance.ephemeral() as instance:
        run(instance)
        capsys.readouterr()
        view = RunView(instance, {"tts/demo": "x"}, tmp_path)
        view.update()
    shown = capsys.readouterr().out
    for lines in EXPECTED:
        assert lines in shown
    assert "fine" not in shown
    assert {*view.failed_checks} == {lines.removesuffix("\n") for lines in EXPECTED}


def test_a_failed_job_ends_with_its_failed_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the end of the log, which is long."""
    settings = load_settings(environment={}, overrides={"project": {"storage": str(tmp_path)}})
    with DagsterInstance.ephemeral() as instance:
        run(instance)
        monkeypatch.setattr(sys, "executable", "/bin/false")
        monkeypatch.setattr(scripts.demo.uuid, "uuid4", lambda: SimpleNamespace(hex="x"))
        with pytest.raises(SystemExit) as caught:
            run_job(instance, settings, "retrain", {})
    message = str(caught.value)
    assert "job retrain failed; the end of" in message
    assert "\n\nchecks that did not pass:\n  report  check " in message
    for lines in EXPECTED:
        assert lines.removesuffix("\n") in message
