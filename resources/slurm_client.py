"""The few Slurm commands that are needed, each with a timeout, here or on a login node.

The controller may be away for minutes (a restart, a fail-over, the network) while jobs run on.
Questions are therefore asked again until they are answered; only what Slurm refuses is an error.
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
LONGEST_WAIT = 60.0  # seconds between two tries to reach the controller
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
    """Slurm answered, and said no: the message is what it said."""


@dataclass(frozen=True)
class Job:
    """One look at a job. ``seconds`` has its current start run; ``starts`` counts the earlier."""

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
        return self.state in ENDED


@dataclass(frozen=True)
class SlurmClient:
    """``login`` runs a command line where Slurm is (``ssh login1``); empty: this machine."""

    login: tuple[str, ...]
    command_seconds: float
    warn: Callable[[str], None]

    def find(self, name: str) -> list[int]:
        """The user's jobs of this name that wait or run, the oldest first."""
        text = self._ask("squeue", "--noheader", "--me", f"--name={name}", "--format=%i %T")
        rows = [line.split() for line in text.splitlines()]
        return sorted(int(job) for job, state in rows if state not in ENDED | {"COMPLETING"})

    def submit(self, script: Path) -> int:
        """One try; raise :class:`Unreachable` where it is not known whether it was accepted."""
        text = self._run("sbatch", "--parsable", str(script))
        return int(text.strip().splitlines()[-1].split(";")[0])

    def show(self, job: int) -> Job | None:
        """What the controller knows; None if it has forgotten the job (``MinJobAge``)."""
        try:
            text = self._ask("scontrol", "--oneliner", "show", "job", str(job))
        except Refused as refusal:
            if "Invalid job id" in str(refusal):
                return None
            raise
        fields = dict(re.findall(r"(?:^| )([A-Za-z/]+)=(\S*)", text))
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
        """What the accounting knows of a job that the controller has forgotten, if there is one."""
        columns = "State,ExitCode,ElapsedRaw"
        try:
            text = self._ask("sacct", f"--jobs={job}", "-X", "-n", "-P", f"--format={columns}")
        except Refused:
            return None  # no slurmdbd
        if not text.strip():
            return None
        state, code, seconds = text.strip().splitlines()[-1].split("|")
        return Job(job, state.split()[0], seconds=int(seconds), exit_code=code)

    def release(self, job: int) -> None:
        """Let a job that Slurm holds back start again."""
        self._ask("scontrol", "release", str(job))

    def cancel(self, name: str) -> None:
        """End all the user's jobs of this name; one try."""
        self._run("scancel", "--me", f"--name={name}")

    def _ask(self, *command: str) -> str:
        """The answer, however long it takes to reach the controller."""
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
    """Without the variables of a job in which Dagster itself may run: sbatch would take them."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }


def _seconds(text: str) -> int:
    """``[days-]hours:minutes:seconds``."""
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
