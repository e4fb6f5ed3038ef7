"""The launcher of programs on a Slurm cluster, as batch jobs that outlive Dagster.

The controller may be unreachable for minutes (restart, fail-over, network) while jobs run. Queries
of :class:`SlurmClient` are therefore repeated until they are answered.
:class:`Follower` polls one job until its end, through requeues and preemption, and also if the
controller has removed it from its memory.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import AssetExecutionContext, DagsterExecutionInterruptedError, DagsterRunStatus
from pydantic import Field

from resources.launcher import Launcher, LaunchError, Program, launch_error
from resources.slurm_job import EXIT_MARKER, REQUEUES, STARTS, gpus_of, job_name, write_script
from resources.torchrun import time_limit_message
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.compute import SlurmOptions, too_many_threads
from tts_assets.core.processes import Reminder

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
FIRST_POLL = 1.0  # seconds; the interval grows to the launcher's poll_seconds
RELEASES = 3  # of a job that Slurm failed to start, and would hold forever
RESULT_SECONDS = 30.0  # until a shared file system shows writes of another machine
# Arguments: name of a start of a job, its seconds, its GPUs, its start time (None: seconds ago).
Record = Callable[[str, float, int, float | None], None]


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


@dataclass(frozen=True)
class Ended:
    """The end of a job. ``stopped``: it saved at its time limit, and was not requeued."""

    job: int
    state: str
    exit_code: str
    stopped: bool = False


def record_starts(program: Program, record: Record) -> None:
    """Record all starts of jobs of the run folder, also of jobs that no launcher followed."""
    for path in sorted((program.run_dir / STARTS).glob("*.json")):
        start = json.loads(path.read_text())
        record(path.stem, start["seconds"], start["gpus"], start["started"])


class Follower:
    """Polls a job. ``say`` gets a line for each change, ``record`` each start of the job.

    For a job that does not run, the line is repeated every few minutes.
    """

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
        """Return when the job has ended and is not requeued."""
        shown, wait, ends, releases, reminder = "", FIRST_POLL, 0, 0, Reminder()
        while True:
            seen = self.client.show(job)
            if seen is None:
                return self._forgotten(job)
            if seen.state != "PENDING":
                self._record(seen.id, seen.starts, seen.seconds)
            if changed := (line := describe(seen)) != shown:
                shown, wait, reminder = line, FIRST_POLL, Reminder()
                record_starts(self.program, self.record)  # one may have ended between two polls
                if seen.reason == "launch_failed_requeued_held" and releases < RELEASES:
                    releases += 1
                    self.client.release(job)
            # A running program logs progress itself. If it does not, it hangs.
            if (changed or seen.state != "RUNNING") and reminder.due():
                self.say(line)
            # While a job is requeued, it may show the end of its last start for a moment.
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
        """The end of a job that the controller removed after ``MinJobAge``.

        It is read from the run folder or, if there is one, from slurmdbd.
        """
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
            time.sleep(FIRST_POLL)

    def _marker(self, job: int) -> dict[str, Any] | None:
        """``exit.json`` of the batch script, if it is from this job."""
        path = self.program.run_dir / EXIT_MARKER
        if not path.is_file():
            return None
        marker: dict[str, Any] = json.loads(path.read_text())
        return marker if marker["job"] == job else None

    def _last_start(self, job: int) -> int:
        """The number of the last start, whose seconds the accounting reports without a number."""
        starts = (self.program.run_dir / STARTS).glob(f"{job}.*.json")
        return max((int(path.stem.rpartition(".")[2]) for path in starts), default=0)

    def _record(self, job: int, start: int, seconds: int) -> None:
        self.record(f"{job}.{start}", seconds, self.gpus, None)


def describe(job: Job) -> str:
    """The state of a job in one line for the log."""
    if job.state == "PENDING":
        expected = "" if job.expected == "Unknown" else f", expected to start {job.expected}"
        again = f", start {job.starts + 1}" if job.starts else ""
        return f"job {job.id} is PENDING ({job.reason}){expected}{again}"
    again = f" (start {job.starts + 1})" if job.starts else ""
    return f"job {job.id} is {job.state} on {job.nodes}{again}"


SUBMIT_SECONDS = 5.0  # before the next attempt, if it is unknown whether sbatch succeeded
# States after which a retry would fail again: ended by the user, or too few resources.
PERMANENT = {"CANCELLED", "OUT_OF_MEMORY", "DEADLINE", "REVOKED"}
HINTS = {
    "CANCELLED": "cancelled by a user (scancel)",
    "OUT_OF_MEMORY": "raise compute.memory_gb",
    "LOST": "its end is unknown to the controller, the accounting and the run folder",
}


class SlurmLauncher(Launcher):
    """Runs each program as one batch job. The nodes must share the file system of the run folder.

    A waiting or running job of the same build is found by its name, and followed instead of
    submitted again. Canceling the Dagster run cancels the job. If Dagster restarts or crashes, the
    job continues, and the next run of the asset follows it.
    """

    account: str | None = None
    partition: str | None = None
    modules: list[str] = Field(default_factory=list)
    options: list[str] = Field(default_factory=list)
    srun_options: list[str] = Field(default_factory=list)
    login: list[str] = Field(default_factory=list)
    save_seconds: int = 300
    max_requeues: int = 10
    poll_seconds: float = 15.0
    command_seconds: float = 60.0

    def record_missed_starts(self, program: Program, asset: str) -> None:
        """Record the starts of jobs that ran without a launcher."""
        record_starts(program, functools.partial(self.record, program, asset))

    def launch(
        self, context: AssetExecutionContext, program: Program, pipes: Mapping[str, str]
    ) -> None:
        """Submit or find the job of ``program`` and follow it. Raises :class:`LaunchError`."""
        client = SlurmClient(tuple(self.login), self.command_seconds, context.log.warning)
        asset = context.asset_key.to_user_string()
        record = functools.partial(self.record, program, asset)
        follower = Follower(client, program, self.poll_seconds, context.log.info, record)
        try:
            job = self._find(context, client, program)
            if job is None:
                (program.run_dir / REQUEUES).unlink(missing_ok=True)
                job = self._submit(context, client, program, pipes)
            while (ended := follower.follow(job)) and self._may_resubmit(program, ended):
                context.log.info(f"job {job} reached its time limit; submitting it again")
                job = self._submit(context, client, program, pipes)
        except (DagsterExecutionInterruptedError, KeyboardInterrupt):
            self._leave(context, client, job_name(program))
            raise
        if program.facts() is None:
            raise failure(program, ended)

    def _find(
        self, context: AssetExecutionContext, client: SlurmClient, program: Program
    ) -> int | None:
        found = client.find(job_name(program))
        if found:
            context.log.info(f"job {found[0]} already runs this build: following it")
        return found[0] if found else None

    def _submit(
        self,
        context: AssetExecutionContext,
        client: SlurmClient,
        program: Program,
        pipes: Mapping[str, str],
    ) -> int:
        self.refuse_over_budget(program, gpus_of(program))
        for role in program.roles():
            role.forget_failures()
            cpus = role.shape.cpus  # None: only the cluster knows
            if cpus and (warning := too_many_threads(role.shape, cpus)):
                context.log.warning(f"{role.module}: {warning}")
        script = write_script(program, self.slurm_options(), pipes)
        while True:
            try:
                job = client.submit(script)
            except Unreachable as trouble:
                context.log.warning(f"sbatch got no answer, looking for the job: {trouble}")
                time.sleep(SUBMIT_SECONDS)
                found = client.find(job_name(program))
                if not found:
                    continue
                job = found[0]
            except Refused as refusal:
                message = f"sbatch refuses {script}: {refusal}"
                raise LaunchError(message, program, permanent=True) from None
            context.log.info(f"submitted {script} as job {job}")
            return job

    def slurm_options(self) -> SlurmOptions:
        """The options of ``[compute.slurm]``."""
        return SlurmOptions(**{name: getattr(self, name) for name in SlurmOptions.model_fields})

    def _may_resubmit(self, program: Program, ended: Ended) -> bool:
        """Whether the job ended at its time limit without a requeue, and may be submitted again."""
        if program.facts() is not None or not (ended.stopped or ended.state == "TIMEOUT"):
            return False
        path = program.run_dir / REQUEUES
        used = int(path.read_text()) if path.is_file() else 0
        if used >= self.max_requeues:
            limits = f"job {ended.job} reached the last of {used + 1} time limits: "
            raise LaunchError(limits + time_limit_message(program), program, permanent=True)
        with atomic_write(path) as aside:
            aside.write_text(f"{used + 1}\n")
        return True

    def _leave(self, context: AssetExecutionContext, client: SlurmClient, name: str) -> None:
        """Cancel the job if the Dagster run is being canceled; otherwise leave it running."""
        run = context.instance.get_run_by_id(context.run_id)
        if run is None or run.status not in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED):
            context.log.info(f"leaving {name} in the queue: run the asset again to follow it")
            return
        deadline = time.monotonic() + self.grace_seconds
        while True:
            try:
                client.cancel(name)
                context.log.info(f"cancelled the job {name}")
                return
            except Unreachable as trouble:
                if time.monotonic() > deadline:
                    context.log.error(f"{name} may still run; scancel --name={name}: {trouble}")
                    return
            time.sleep(1)


def failure(program: Program, ended: Ended) -> LaunchError:
    """The error of a job that ended without a result."""
    hint = f" ({HINTS[ended.state]})" if ended.state in HINTS else ""
    code = f" with exit code {ended.exit_code}" if ended.state == "FAILED" else ""
    without = " without a result" if ended.state == "COMPLETED" else ""
    how = f"job {ended.job} ended as {ended.state}{code}{without}{hint}"
    error = launch_error(program, how)
    error.permanent |= ended.state in PERMANENT
    return error
