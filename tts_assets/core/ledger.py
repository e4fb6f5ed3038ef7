"""GPU-hours of launched programs per week, shown by ``python -m tts_assets.doctor gpu-hours``.

``storage/.ledger/`` has one small JSON file per attempt of a program. The launcher replaces it
atomically when the program starts, every :data:`BEAT_SECONDS` while it runs, and when it ends. A
killed launcher therefore loses at most that interval. A Slurm job that no launcher follows writes
such files itself; they are counted when its asset is materialized again. Weeks begin on Monday,
0:00 UTC.
"""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import Config

FOLDER = ".ledger"
BEAT_SECONDS = 30.0


class Attempt(Config):
    """``gpus`` held for ``seconds`` from ``started`` (seconds since 1970)."""

    asset: str
    gpus: int
    started: float
    seconds: float

    def hours_since(self, moment: float) -> float:
        """GPU-hours after ``moment`` (seconds since 1970)."""
        end = self.started + self.seconds
        return max(0.0, end - max(self.started, moment)) * self.gpus / 3600


class OverBudget(RuntimeError):
    """The week's GPU-hours are used up. The message says when the next week begins."""


class Ledger:
    """The attempts recorded in one folder, and the limit of GPU-hours per week (None: no limit)."""

    def __init__(self, folder: Path, limit: float | None = None) -> None:
        self.folder, self.limit = folder, limit

    def record(
        self, name: str, asset: str, gpus: int, seconds: float, started: float | None = None
    ) -> None:
        """Record that the attempt ``name`` has held ``gpus`` for ``seconds``.

        ``started`` is in seconds since 1970; None: ``seconds`` ago. Attempts without GPUs are not
        recorded. The recorded seconds never decrease: of two launchers that follow one job, the
        slower one may report an older value.
        """
        if not gpus:
            return
        path = self.folder / f"{name}.json"
        started = time.time() - seconds if started is None else started
        if path.is_file():
            known = Attempt.from_json(path)
            started, seconds = known.started, max(known.seconds, seconds)
        attempt = Attempt(asset=asset, gpus=gpus, started=started, seconds=round(seconds, 1))
        with atomic_write(path) as aside:
            aside.write_text(attempt.to_json())

    def attempts(self) -> list[Attempt]:
        """All recorded attempts, sorted by file name."""
        return [Attempt.from_json(path) for path in sorted(self.folder.glob("*.json"))]

    def used(self, now: datetime) -> dict[str, float]:
        """GPU-hours by asset since the week of ``now`` began."""
        monday = week_of(now).timestamp()
        hours: dict[str, float] = defaultdict(float)
        for attempt in self.attempts():
            hours[attempt.asset] += attempt.hours_since(monday)
        return {asset: spent for asset, spent in hours.items() if spent > 0}

    def check(self, gpus: int) -> None:
        """Raise :class:`OverBudget` if ``gpus`` > 0 and the limit of this week is reached."""
        if self.limit is None or not gpus:
            return
        now = datetime.now(UTC)
        used = sum(self.used(now).values())
        if used < self.limit:
            return
        monday = week_of(now) + timedelta(weeks=1)
        raise OverBudget(
            f"the budget of {self.limit:g} GPU-hours a week is used up ({used:.2f} since Monday, "
            f"0:00 UTC): no program is launched on GPUs until {monday:%A, %Y-%m-%d} 0:00 UTC. "
            "Raise budget.gpu_hours_a_week to continue now; "
            "python -m tts_assets.doctor gpu-hours lists the GPU-hours by asset"
        )


def week_of(moment: datetime) -> datetime:
    """The start of the week of ``moment``: Monday, 0:00 UTC."""
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=midnight.weekday())
