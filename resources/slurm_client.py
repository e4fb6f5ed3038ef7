"""Slurm commands, with a timeout, on this machine or on a login node.

The controller may be unreachable for minutes (restart, fail-over, network) while jobs run. Queries
are therefore repeated until they are answered. Only what Slurm rejects is an error.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
LONGEST_WAIT = 60.0  # seconds between two attempts to reach the controller
_UNREACHABLE = re.compile(
    "Unable to contact slurm controller|Socket timed out|Connection refused|Connection timed out|"
    "Zero Bytes were transmitted|Communication connection failure|standby mode|"
    "Resource temporarily unavailable|Unable to establish|No route to host|"
    "temporarily unable to accept|Transport endpoint|"
    "Could not establish a configuration source",
    re.IGNORECASE,
)
_SSH_FAILED = 255


class Unreachable(Exception):
    """The controller, or the login node, did not answer."""


class Refused(Exception):
    """Slurm rejected a command. The message is its output."""


@dataclass(frozen=True)
class Job:
    """The state of a job. ``seconds``: run time of the current start; ``starts``: earlier
    starts."""

    id: int
    state: str
    reason: str = "None"
    expected: str = "Unknown"
    starts: int = 0
    seconds: int = 0
    nodes: str = ""
    exit_code: str = "0:0"

    @property
    def ended(self) -> bool:
        """Whether the state is final, unless the job is requeued."""
        return self.state in ENDED


@dataclass(frozen=True)
class SlurmClient:
    """Slurm commands. ``login`` is a prefix such as ``ssh login1``; empty: this machine."""

    login: tuple[str, ...]
    command_seconds: float
    warn: Callable[[str], None]

    def find(self, name: str) -> list[int]:
        """The ids of waiting or running jobs of the user with this name, the oldest first."""
        text = self._ask("squeue", "--noheader", "--me", f"--name={name}", "--format=%i %T")
        rows = [line.split() for line in text.splitlines()]
        active = [job for job, state in rows if state not in ENDED | {"COMPLETING"}]
        return sorted(int(job.removesuffix("+0")) for job in active)  # 7+0: heterogeneous

    def submit(self, script: Path) -> int:
        """Submit a script once. :class:`Unreachable` means that it may or may not be accepted."""
        text = self._run("sbatch", "--parsable", str(script))
        return int(text.strip().splitlines()[-1].split(";")[0])

    def show(self, job: int) -> Job | None:
        """The job as the controller knows it; None if it was removed after ``MinJobAge``."""
        try:
            text = self._ask("scontrol", "--oneliner", "show", "job", str(job))
        except Refused as refusal:
            if "Invalid job id" in str(refusal):
                return None
            raise
        leader = text.splitlines()[0]  # of the components of a heterogeneous job
        fields = dict(re.findall(r"(?:^| )([A-Za-z/]+)=(\S*)", leader))
        return Job(
            job,
            state=fields["JobState"],
            reason=fields.get("Reason", "None"),
            expected=fields.get("StartTime", "Unknown"),
            starts=int(fields.get("Restarts", 0)),
            seconds=_seconds(fields.get("RunTime", "0:0:0")),
            nodes=fields.get("NodeList", ""),
            exit_code=fields.get("ExitCode", "0:0"),
        )

    def account(self, job: int) -> Job | None:
        """The job as the accounting knows it; None without slurmdbd."""
        columns = "State,ExitCode,ElapsedRaw"
        try:
            text = self._ask("sacct", f"--jobs={job}", "-X", "-n", "-P", f"--format={columns}")
        except Refused:
            return None  # no slurmdbd
        if not text.strip():
            return None
        state, code, seconds = text.strip().splitlines()[0].split("|")
        return Job(job, state.split()[0], seconds=int(seconds), exit_code=code)

    def release(self, job: int) -> None:
        """Release a held job."""
        self._ask("scontrol", "release", str(job))

    def cancel(self, name: str) -> None:
        """Cancel all jobs of the user with this name, in one attempt."""
        self._run("scancel", "--me", f"--name={name}")

    def _ask(self, *command: str) -> str:
        """Repeat a query until the controller answers."""
        wait, since = 2.0, time.monotonic()
        while True:
            try:
                return self._run(*command)
            except Unreachable as trouble:
                self.warn(
                    f"Slurm does not answer for {time.monotonic() - since:.0f} s, trying on; "
                    f"jobs are not affected: {trouble}"
                )
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _run(self, *command: str) -> str:
        line = [*self.login, shlex.join(command)] if self.login else list(command)
        try:
            done = subprocess.run(
                line,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self.command_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(f"{command[0]}: no answer in {self.command_seconds:.0f} s") from None
        if done.returncode == 0:
            return done.stdout
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        if _UNREACHABLE.search(said) or (self.login and done.returncode == _SSH_FAILED):
            raise Unreachable(said)
        raise Refused(said or f"{command[0]} failed with exit status {done.returncode}")


def _environment() -> dict[str, str]:
    """The environment without the variables of a job in which Dagster may run.

    sbatch would use them as options.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }


def _seconds(text: str) -> int:
    """Seconds of ``[days-]hours:minutes:seconds``."""
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
