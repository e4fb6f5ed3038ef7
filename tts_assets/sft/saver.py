"""Work of the disk beside that of training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec

P = ParamSpec("P")


class Saver:
    """A thread that writes one thing after another; what fails there fails the trainer."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._pending: dict[str, Future[None]] = {}

    def submit(self, kind: str, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Write in the background; first waits for the one before of its kind."""
        self.wait(kind)
        self._pending[kind] = self._thread.submit(work, *args, **kwargs)

    def check(self) -> None:
        """Raise the error of a write that has failed meanwhile."""
        for kind, future in list(self._pending.items()):
            if future.done():
                self.wait(kind)

    def wait(self, *kinds: str) -> None:
        """Until these are written, or everything."""
        for kind in kinds or list(self._pending):
            if kind in self._pending:
                self._pending.pop(kind).result()
