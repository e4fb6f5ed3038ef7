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
        self._last: Future[None] | None = None

    def submit(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Write in the background; waits for what was submitted before, lest memory fills up."""
        self.wait()
        self._last = self._thread.submit(work, *args, **kwargs)

    def check(self) -> None:
        """Raise the error of a write that has failed meanwhile."""
        if self._last is not None and self._last.done():
            self.wait()

    def wait(self) -> None:
        """Until all is written."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
