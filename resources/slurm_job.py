"""Slurm commands, and the batch script of a program.

:class:`SlurmClient` runs Slurm commands with a timeout, on this machine or on a login node. The
controller may be unreachable for minutes (restart, fail-over, network) while jobs run. Queries are
therefore repeated until they are answered. Only what Slurm rejects is an error.

The batch script is written to the run folder, and may be submitted by hand. It starts one task per
node, each a torchrun with its rendezvous at the first node; a program of one process needs no
torchrun. The script asks the program to save before the time limit, and requeues the job. It writes
``exit.json`` at its end, for a controller that has removed the job from its memory. While it runs,
it writes the cost of each start to ``starts/``: a node may die, and Dagster may not run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from resources.launcher import LOG, LaunchError, Program
from tts_assets.core.compute import CONTROL, Shape, SlurmOptions
from tts_assets.core.ledger import BEAT_SECONDS
from tts_assets.core.program import STOP_FILE

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
        return sorted(int(job) for job, state in rows if state not in ENDED | {"COMPLETING"})

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
        """The job as the accounting knows it; None without slurmdbd."""
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


SCRIPT = "job.sh"
ENVIRONMENT = "environment.sh"
EXIT_MARKER = "exit.json"
STARTS = "starts"  # <job>.<start>.json: start time, seconds and GPUs
REQUEUES = "requeues"  # how many time limits were reached
PROJECT = Path(__file__).resolve().parents[1]
SERVICE_GRACE = 30  # seconds until the service is killed after the end of the program


def job_name(program: Program) -> str:
    """The name of the job of a build: asset, partition, fingerprint, and a digest of the store.

    The path of the run folder contains the first three. The digest of the whole path distinguishes
    stores.
    """
    where = hashlib.sha256(str(program.run_dir).encode()).hexdigest()[:8]
    inside = ".work" in program.run_dir.parts
    below = str(program.run_dir).rpartition("/.work/")[2] if inside else program.run_dir.name
    name = re.sub("[^A-Za-z0-9._-]", "-", below)  # squeue splits names at commas
    return f"{name}.{where}"


def gpus_of(program: Program) -> int:
    """The GPUs of the job. All nodes have as many as the role that needs more."""
    shapes = [role.shape for role in program.roles()]
    return sum(shape.nodes for shape in shapes) * max(shape.gpus or 0 for shape in shapes)


def write_script(program: Program, options: SlurmOptions, pipes: Mapping[str, str]) -> Path:
    """Write ``job.sh`` and ``environment.sh`` to the run folder. Returns the path of the script."""
    environment = {**program.common_environment(), **pipes}
    path = program.run_dir / ENVIRONMENT
    path.touch(mode=0o600)  # it may contain tokens
    path.write_text("".join(f"export {k}={quoted(v)}\n" for k, v in environment.items()))
    script = program.run_dir / SCRIPT
    script.write_text(render(program, options))
    return script


def quoted(value: str) -> str:
    """``value`` as one word of bash on one line: ``$'a\\x0ab'`` if it has control characters."""
    if not re.search(r"[\x00-\x1f\x7f]", value):
        return shlex.quote(value)
    escaped = re.sub(r"[\\']", r"\\\g<0>", value)
    return "$'" + re.sub(r"[\x00-\x1f\x7f]", lambda c: f"\\x{ord(c[0]):02x}", escaped) + "'"


def render(program: Program, options: SlurmOptions) -> str:
    """The text of the batch script.

    Raises :class:`LaunchError` for a path with control characters. Sbatch reads its options line
    by line, so that a newline would start a command of the script.
    """
    for path in (PROJECT, *(role.run_dir for role in program.roles())):
        if CONTROL.search(str(path)):
            message = f"the path {str(path)!r} has a control character: rename its folder"
            raise LaunchError(message, program, permanent=True)
    parts = [
        "#!/bin/bash -l" if options.modules else "#!/bin/bash",
        "# Written for this run folder; by hand: sbatch job.sh",
        *(f"#SBATCH {option}" for option in sbatch_options(program, options)),
        "",
        *([f"module load {shlex.join(options.modules)}"] if options.modules else []),
        f"run={shlex.quote(str(program.run_dir))}",
        f"max_requeues={options.max_requeues} gpus={gpus_of(program)}",
        _threads(program.shape),
        _PROLOGUE,
    ]
    if program.service is None:
        parts += [_trainer(program, options, ""), _WAIT]
    else:
        parts += [_service(program, options), _WAIT_FOR_BOTH]
    return "\n".join([*parts, _EPILOGUE])


def sbatch_options(program: Program, options: SlurmOptions) -> list[str]:
    """The options of sbatch for a program."""
    shapes = [role.shape for role in program.roles()]
    given = {
        "job-name": job_name(program),
        "output": program.run_dir / LOG,
        "open-mode": "append",
        "chdir": PROJECT,
        "nodes": sum(shape.nodes for shape in shapes),
        "ntasks-per-node": 1,
        "cpus-per-task": _most(shape.cpus for shape in shapes),
        "gpus-per-node": _most(shape.gpus for shape in shapes) or None,
        "mem": _megabytes(_most(shape.memory_gb for shape in shapes)),
        "time": _minutes(program.shape.hours),
        "signal": f"B:USR1@{options.save_seconds}",
        "account": options.account,
        "partition": options.partition,
        "dependency": "singleton",  # two jobs of one name never run at the same time
    }
    given = {name: value for name, value in given.items() if value is not None}
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in given.items()]
    return [*lines, "--requeue", *options.options]


def _trainer(program: Program, options: SlurmOptions, nodes: str) -> str:
    shape = program.shape
    what = shlex.join(["-m", program.module, str(program.run_dir / "run.json")])
    if shape.nodes == shape.processes == 1:
        python = shlex.join([*shape.prefix, shape.python or sys.executable])
        return f"{_srun(shape, options, nodes)} {python} {what} &\nprogram=$!"
    torchrun = [
        *(*shape.prefix, shape.python or sys.executable, "-m", "torch.distributed.run"),
        f"--nnodes={shape.nodes}",
        f"--nproc-per-node={shape.processes}",
        f"--log-dir={program.run_dir / 'ranks'}",
        *("--redirects=0", "--tee=3"),
    ]
    meeting = '--node-rank="$SLURM_PROCID" --master-addr="$master" --master-port="$port"'
    command = f"exec {shlex.join(torchrun)} {meeting} {what}"
    return f"{_srun(shape, options, nodes)} bash -c {shlex.quote(command)} &\nprogram=$!"


def _service(program: Program, options: SlurmOptions) -> str:
    service = program.service
    assert service is not None
    shape, count = service.shape, program.shape.nodes
    command = [
        *(*shape.prefix, shape.python or sys.executable),
        *("-m", service.module, str(service.run_dir / "run.json")),
    ]
    return "\n".join(
        [
            f"service_run={shlex.quote(str(service.run_dir))}",
            'export TTS_SERVICE_HOST; TTS_SERVICE_HOST=$(address "${nodes[-1]}")',
            "export TTS_SERVICE_PORT=$((port + 1))",
            f'rm -f "$service_run/{STOP_FILE}"',
            f"{_srun(shape, options, '${nodes[-1]}')} {shlex.join(command)} &",
            "service=$!",
            f'first_nodes=$(IFS=,; echo "${{nodes[*]:0:{count}}}")',
            _trainer(program, options, "$first_nodes"),
        ]
    )


def _srun(shape: Shape, options: SlurmOptions, nodes: str) -> str:
    words = ["srun", f"--nodes={shape.nodes}", f"--ntasks={shape.nodes}", "--ntasks-per-node=1"]
    words += [f"--cpus-per-task={shape.cpus}"] if shape.cpus else []  # not taken from sbatch's
    words += ["--kill-on-bad-exit=1", *(shlex.quote(option) for option in options.srun_options)]
    words += [f'--nodelist="{nodes}"'] if nodes else []
    return " ".join(words)


def _threads(shape: Shape) -> str:
    if shape.threads:
        return f"export OMP_NUM_THREADS={shape.threads}"
    share = f"SLURM_CPUS_ON_NODE / {shape.processes}"
    return f"export OMP_NUM_THREADS=$(({share} > 0 ? {share} : 1))"


def _most(values: Iterable[float | None]) -> float | None:
    """The larger of both roles: all nodes of a job are equal."""
    return max((value for value in values if value is not None), default=None)


def _megabytes(gigabytes: float | None) -> str | None:
    return None if gigabytes is None else f"{round(gigabytes * 1000)}M"


def _minutes(hours: float | None) -> int | None:
    return None if hours is None else max(1, round(hours * 60))


_PROLOGUE = f"""\
export master port
status=0 stopping=
started=$(date +%s)
echo "job $SLURM_JOB_ID, start ${{SLURM_RESTART_COUNT:-0}}, on $SLURM_JOB_NODELIST"

finished() {{ [ -e "$run/result.json" ]; }}
start="$run/{STARTS}/$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}"
mkdir -p "$run/{STARTS}"
beat() {{
    printf '{{"started": %s, "seconds": %s, "gpus": %s}}\\n' \\
        "$started" $(($(date +%s) - started)) "$gpus" > "$start.$BASHPID.new" \\
        && mv "$start.$BASHPID.new" "$start.json"
}}
leave() {{
    beat
    printf '{{"job": %s, "status": %s, "stopped": %s}}\\n' "$SLURM_JOB_ID" "$status" "$1" \\
        > "$run/{EXIT_MARKER}.new"
    mv "$run/{EXIT_MARKER}.new" "$run/{EXIT_MARKER}"
    exit "$status"
}}
# Node names do not resolve everywhere; the controller knows their addresses.
address() {{ scontrol show node -o "$1" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2; }}

source "$run/{ENVIRONMENT}"
rm -f "$run/{EXIT_MARKER}" "$run/{STOP_FILE}"
finished && leave false
trap 'stopping=yes; touch "$run/{STOP_FILE}"' USR1  # the time limit is near: save
trap : TERM  # live on to tell how the program ended
while kill -0 $$ 2>/dev/null; do beat; sleep {BEAT_SECONDS:.0f}; done &  # as long as this script
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
master=$(address "${{nodes[0]}}")
port=$((20000 + SLURM_JOB_ID % 10000 * 2))
"""

_WAIT = """
while kill -0 "$program" 2>/dev/null; do wait "$program"; done  # a signal interrupts wait
wait "$program"
status=$?
"""

_WAIT_FOR_BOTH = f"""
while kill -0 "$program" 2>/dev/null && kill -0 "$service" 2>/dev/null; do
    wait -n "$program" "$service"
done
if kill -0 "$program" 2>/dev/null; then
    echo "the service has ended before the program" >&2
    touch "$run/{STOP_FILE}"
    sleep 10
    kill "$program"
fi
wait "$program"
status=$?
touch "$service_run/{STOP_FILE}"
for _ in $(seq {SERVICE_GRACE}); do kill -0 "$service" 2>/dev/null || break; sleep 1; done
kill "$service" 2>/dev/null
wait "$service"
"""

_EPILOGUE = f"""\
finished && status=0
if [ -n "$stopping" ] && ! finished; then
    requeues=$(cat "$run/{REQUEUES}" 2>/dev/null || echo 0)
    if [ "$requeues" -lt "$max_requeues" ]; then
        echo $((requeues + 1)) > "$run/{REQUEUES}"
        beat
        if scontrol requeue "$SLURM_JOB_ID"; then
            sleep 3600  # Slurm ends it, and this script, which may outlive it for a moment
            exit 1
        fi
        echo "$requeues" > "$run/{REQUEUES}"
    fi
    leave true
fi
leave false
"""
