"""Following one job from PENDING to its end, through requeues, preemption and forgetfulness."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from resources.launcher import Program
from resources.slurm_client import Job, SlurmClient
from resources.slurm_script import EXIT_MARKER, STARTS, gpus_of
from tts_assets.waiting import Reminder

FIRST_LOOK = 1.0  # seconds; then ever longer, up to the launcher's poll_seconds
RELEASES = 3  # of a job that Slurm could not start, and would hold for ever
RESULT_SECONDS = 30.0  # that a shared file system may take to show what another machine wrote


# The name of a job's start, its seconds, its GPUs, and when it was (None: it ends now).
Record = Callable[[str, float, int, float | None], None]


@dataclass(frozen=True)
class Ended:
    """How a job ended. ``stopped``: it saved because its time was over, and was not requeued."""

    job: int
    state: str
    exit_code: str
    stopped: bool = False


def record_starts(program: Program, record: Record) -> None:
    """Of all jobs of the run folder, also those that ended while nobody followed them."""
    for path in sorted((program.run_dir / STARTS).glob("*.json")):
        start = json.loads(path.read_text())
        record(path.stem, start["seconds"], start["gpus"], start["started"])


class Follower:
    """Looks at the queue and tells what changes. ``say`` gets one line a change, and that of a job
    that does not run again every few minutes; ``record`` each start."""

    def __init__(
        self,
        client: SlurmClient,
        program: Program,
        poll_seconds: float,
        say: Callable[[str], None],
        record: Record,
    ) -> None:
        self.client, self.program, self.poll_seconds, self.say = client, program, poll_seconds, say
        self.record, self.gpus = record, gpus_of(program)

    def follow(self, job: int) -> Ended:
        """Return when the job has ended for good."""
        told, wait, ends, releases, reminder = "", FIRST_LOOK, 0, 0, Reminder()
        while True:
            seen = self.client.show(job)
            if seen is None:
                return self._forgotten(job)
            if seen.state != "PENDING":
                self._record(seen.id, seen.starts, seen.seconds)
            if changed := (line := describe(seen)) != told:
                told, wait, reminder = line, FIRST_LOOK, Reminder()
                record_starts(self.program, self.record)  # one may have ended between two looks
                if seen.reason == "launch_failed_requeued_held" and releases < RELEASES:
                    releases += 1
                    self.client.release(job)
            # One that runs speaks for itself: what is silent then is its program, which hangs.
            if (changed or seen.state != "RUNNING") and reminder.due():
                self.say(line)
            # A job that is being requeued may show the end of its last start for a moment.
            ends = ends + 1 if seen.ended else 0
            if ends and (seen.state == "COMPLETED" or self._marker(job) or ends > 1):
                return self._ended(seen)
            time.sleep(wait)
            wait = min(1.5 * wait, self.poll_seconds)

    def _ended(self, job: Job) -> Ended:
        if job.state == "COMPLETED":
            self._await_result()
        marker = self._marker(job.id) or {}
        return Ended(job.id, job.state, job.exit_code, bool(marker.get("stopped")))

    def _forgotten(self, job: int) -> Ended:
        """The controller keeps a job for ``MinJobAge``; the run folder and slurmdbd know longer."""
        record_starts(self.program, self.record)
        marker = self._marker(job)
        if marker is not None:
            state = "COMPLETED" if marker["status"] == 0 else "FAILED"
            return Ended(job, state, f"{marker['status']}:0", marker["stopped"])
        known = self.client.account(job)
        if known is not None:
            self._record(job, self._last_start(job), known.seconds)
            return Ended(job, known.state, known.exit_code)
        self._await_result()
        return Ended(job, "LOST", "?")

    def _await_result(self) -> None:
        deadline = time.monotonic() + RESULT_SECONDS
        while self.program.facts() is None and time.monotonic() < deadline:
            time.sleep(FIRST_LOOK)

    def _marker(self, job: int) -> dict[str, Any] | None:
        """What the batch script left at its end, if it is this job's."""
        path = self.program.run_dir / EXIT_MARKER
        if not path.is_file():
            return None
        marker: dict[str, Any] = json.loads(path.read_text())
        return marker if marker["job"] == job else None

    def _last_start(self, job: int) -> int:
        """The one whose seconds the accounting tells; it does not number them."""
        starts = (self.program.run_dir / STARTS).glob(f"{job}.*.json")
        return max((int(path.stem.rpartition(".")[2]) for path in starts), default=0)

    def _record(self, job: int, start: int, seconds: int) -> None:
        self.record(f"{job}.{start}", seconds, self.gpus, None)


def describe(job: Job) -> str:
    """One line for Dagster's log; the same as long as nothing changes."""
    if job.state == "PENDING":
        expected = "" if job.expected == "Unknown" else f", expected to start {job.expected}"
        again = f", start {job.starts + 1}" if job.starts else ""
        return f"job {job.id} is PENDING ({job.reason}){expected}{again}"
    again = f" (start {job.starts + 1})" if job.starts else ""
    return f"job {job.id} is {job.state} on {job.nodes}{again}"
