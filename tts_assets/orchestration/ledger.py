"""GPU-hours of launched programs, week by week: ``python -m tts_assets.orchestration.ledger``.

``storage/.ledger/`` has a small JSON file for each attempt of a program, which its launcher writes
anew, in one step, when it starts, while it runs, and when it ends. A launcher that was killed
leaves what it wrote last, at most :data:`BEAT_SECONDS` behind; a cluster's job that nobody follows
keeps such files itself, and is counted when its asset is materialized again. Weeks begin on
Monday, 0:00 UTC.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tts_assets.core.artifacts import written_aside
from tts_assets.core.config import Config, ConfigError

FOLDER = ".ledger"
BEAT_SECONDS = 30.0


class Attempt(Config):
    """``gpus`` held for ``seconds`` from ``started`` (seconds since 1970)."""

    asset: str
    gpus: int
    started: float
    seconds: float

    def hours_since(self, moment: float) -> float:
        """GPU-hours after ``moment``."""
        end = self.started + self.seconds
        return max(0.0, end - max(self.started, moment)) * self.gpus / 3600


class OverBudget(RuntimeError):
    """The week's GPU-hours are used up: the message says when there are new ones."""


class Ledger:
    """All attempts whose launchers were given this folder."""

    def __init__(self, folder: Path, limit: float | None = None) -> None:
        self.folder, self.limit = folder, limit

    def record(
        self, name: str, asset: str, gpus: int, seconds: float, started: float | None = None
    ) -> None:
        """The attempt ``name`` has held ``gpus`` for ``seconds`` by now, or since ``started``; CPUs
        cost nothing.

        It never becomes less: of two who tell, one may have looked away earlier.
        """
        if not gpus:
            return
        path = self.folder / f"{name}.json"
        started = time.time() - seconds if started is None else started
        if path.is_file():
            known = Attempt.from_json(path)
            started, seconds = known.started, max(known.seconds, seconds)
        attempt = Attempt(asset=asset, gpus=gpus, started=started, seconds=round(seconds, 1))
        with written_aside(path) as aside:
            aside.write_text(attempt.to_json())

    def attempts(self) -> list[Attempt]:
        return [Attempt.from_json(path) for path in sorted(self.folder.glob("*.json"))]

    def used(self, now: datetime) -> dict[str, float]:
        """GPU-hours by asset since the week of ``now`` began."""
        monday = week_of(now).timestamp()
        hours: dict[str, float] = defaultdict(float)
        for attempt in self.attempts():
            hours[attempt.asset] += attempt.hours_since(monday)
        return {asset: spent for asset, spent in hours.items() if spent > 0}

    def check(self, gpus: int) -> None:
        """Before a launch on ``gpus``; raises :class:`OverBudget` if there is nothing left."""
        if self.limit is None or not gpus:
            return
        now = datetime.now(UTC)
        used = sum(self.used(now).values())
        if used < self.limit:
            return
        monday = week_of(now) + timedelta(weeks=1)
        raise OverBudget(
            f"the budget of {self.limit:g} GPU-hours a week is used up ({used:.2f} since Monday, "
            f"0:00 UTC): nothing more is launched on GPUs until {monday:%A, %Y-%m-%d} 0:00 UTC. "
            "Raise budget.gpu_hours_a_week to go on now; "
            "python -m tts_assets.orchestration.ledger shows for what it was spent"
        )


def week_of(moment: datetime) -> datetime:
    """When the week began: Monday, 0:00 UTC."""
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=midnight.weekday())


def main() -> int:
    from tts_assets.settings import load_settings

    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    limit = settings.budget.gpu_hours_a_week
    used = Ledger(settings.storage / FOLDER).used(datetime.now(UTC))
    for asset, hours in sorted(used.items(), key=lambda item: -item[1]):
        print(f"{hours:10.2f}  {asset}")
    of = "" if limit is None else f" of {limit:g}"
    print(f"{sum(used.values()):10.2f}{of} GPU-hours since Monday, 0:00 UTC")
    return 0


if __name__ == "__main__":
    sys.exit(main())
