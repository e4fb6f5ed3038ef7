"""The ledger of GPU-hours: weeks, limits and killed launchers."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tts_assets.core.compute import Attempt, Ledger, OverBudget, week_of

MONDAY = datetime(2026, 11, 16, tzinfo=UTC)


def test_a_week_begins_on_monday() -> None:
    for moment in (MONDAY, MONDAY + timedelta(days=6, hours=23)):
        assert week_of(moment) == MONDAY
    assert week_of(MONDAY - timedelta(seconds=1)) == MONDAY - timedelta(weeks=1)


def test_an_attempt_over_midnight_counts_in_both_weeks() -> None:
    start = MONDAY.timestamp() - 3600
    attempt = Attempt(asset="sft/a", gpus=8, started=start, seconds=3 * 3600)
    assert attempt.hours_since(MONDAY.timestamp()) == 16
    assert attempt.hours_since(start) == 24
    assert attempt.hours_since(start + 10 * 3600) == 0


def test_a_later_record_replaces_an_earlier_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for seconds in (0.0, 30.0, 60.0, 45.0):  # the last is of an older reading
        ledger.record("run.0", "sft/a", 2, seconds)
    ledger.record("run.1", "sft/a", 0, 600.0)  # CPUs are free
    (attempt,) = ledger.attempts()
    assert attempt.seconds == 60.0
    assert abs(attempt.started - time.time()) < 60  # as the first word of it said


def test_no_launch_on_gpus_after_the_weekly_limit(tmp_path: Path) -> None:
    Ledger(tmp_path).record("a", "sft/a", 4, 1.0)
    used = sum(Ledger(tmp_path).used(datetime.now(UTC)).values())
    Ledger(tmp_path, limit=2 * used).check(8)
    spent = Ledger(tmp_path, limit=used)
    spent.check(0)
    with pytest.raises(OverBudget, match=r"Raise budget\.gpu_hours_a_week"):
        spent.check(1)
    with pytest.raises(OverBudget, match="used up"):
        Ledger(tmp_path / "none", limit=0).check(1)
