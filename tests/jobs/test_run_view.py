"""The terminal of ``make demo`` shows what a failed check found."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    DagsterInstance,
    MaterializeResult,
    MetadataValue,
    asset,
    asset_check,
    materialize,
)

from jobs.foreground import RunView

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


@asset(name="evaluated")
def evaluated() -> MaterializeResult[None]:
    page = MetadataValue.url("http://127.0.0.1:3001/report/a%20b/all/f00/report.html")
    return MaterializeResult(metadata={"reused": False, "experiment": "seed 2", "page": page})


def test_pages_are_paths_and_experiments_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with DagsterInstance.ephemeral() as instance:
        result = materialize([evaluated], instance=instance)
        view = RunView(instance, result.run_id, tmp_path / ".work")
        view.update()
    assert view.pages == {"evaluated": tmp_path / "report/a b/all/f00/report.html"}
    assert "  evaluated (experiment: seed 2)  " in capsys.readouterr().out


@asset
def broken() -> None:
    raise ValueError("the corpus has no utterance")


def test_a_failed_step_shows_its_message_without_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with DagsterInstance.ephemeral() as instance:
        result = materialize([broken], instance=instance, raise_on_error=False)
        capsys.readouterr()
        RunView(instance, result.run_id, tmp_path).update()
    expected = "  broken FAILED: ValueError: the corpus has no utterance\n"
    assert capsys.readouterr().out == expected


def test_a_failed_check_shows_its_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assets = [made, suite_is_held_out, no_collapse, fine]
    with DagsterInstance.ephemeral() as instance:
        result = materialize(assets, instance=instance, raise_on_error=False)
        assert not result.success
        capsys.readouterr()
        view = RunView(instance, result.run_id, tmp_path)
        view.update()
    shown = capsys.readouterr().out
    for lines in EXPECTED:
        assert lines in shown
    assert "fine" not in shown
    assert {*view.failed_checks} == {lines.removesuffix("\n") for lines in EXPECTED}
