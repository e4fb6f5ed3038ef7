"""Who waits says so, again and again: a silent run is taken for one that hangs (``stuck_runs``)."""

from __future__ import annotations

import time

AGAIN_SECONDS = 300.0  # twice within the shortest [alerts] end_stuck_minutes


class Reminder:
    """Of saying what one waits for: due at once, and every :data:`AGAIN_SECONDS` from then on."""

    def __init__(self) -> None:
        self._next = time.monotonic()

    def due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + AGAIN_SECONDS
        return True
