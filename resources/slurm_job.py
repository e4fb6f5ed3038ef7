"""The batch script of a program on a Slurm cluster.

The script is written to the run folder, and may be submitted by hand. It starts one task per node,
each a torchrun with its rendezvous at the first node; a program of one process needs no torchrun.
The script asks the program to save before the time limit, and requeues the job. It writes
``exit.json`` at its end, for a controller that has removed the job from its memory. While it runs,
it writes the cost of each start to ``starts/``: a node may die, and Dagster may not run.

A program and its service that need other nodes than each other are the two components of a
heterogeneous job, so that no GPU is allotted in vain.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from resources.launcher import LOG, LaunchError, Program
from tts_assets.core.compute import BEAT_SECONDS, CONTROL, Shape, SlurmOptions
from tts_assets.core.program import STOP_FILE

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
    """The GPUs of the job."""
    return sum(role.shape.nodes * (role.shape.gpus or 0) for role in program.roles())


def components(program: Program) -> list[Program]:
    """The roles whose nodes Slurm allots separately; one, if all nodes are equal."""

    def node(role: Program) -> tuple[float | None, ...]:
        return role.shape.cpus, role.shape.gpus or 0, role.shape.memory_gb

    roles = list(program.roles())
    return roles if len({node(role) for role in roles}) > 1 else roles[:1]


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
        *(f"#SBATCH {option}" for option in component_options(program, options)),
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


def _het_group(program: Program, index: int) -> str:
    return f"--het-group={index}" if len(components(program)) == 2 else ""


def sbatch_options(program: Program, options: SlurmOptions) -> list[str]:
    """The options of sbatch for a program; those of the first component of a heterogeneous job."""
    together = program.roles() if len(components(program)) == 1 else [program]
    given = {
        "job-name": job_name(program),
        "output": program.run_dir / LOG,
        "open-mode": "append",
        "chdir": PROJECT,
        **_node_options(program, sum(role.shape.nodes for role in together), options),
        "signal": f"B:USR1@{options.save_seconds}",
        "dependency": "singleton",  # two jobs of one name never run at the same time
    }
    return [*_flags(given), "--requeue", *options.options]


def component_options(program: Program, options: SlurmOptions) -> list[str]:
    """``hetjob`` and the options of the second component, if there is one."""
    if len(components(program)) == 1 or program.service is None:
        return []
    given = {
        "job-name": f"{job_name(program)}.service",
        **_node_options(program.service, program.service.shape.nodes, options),
        "time": _node_options(program, 1, options)["time"],  # as long as the program
    }
    return ["hetjob", *_flags(given), "--requeue", *options.options]


def _node_options(role: Program, nodes: int, options: SlurmOptions) -> dict[str, object]:
    shape = role.shape
    return {
        "nodes": nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": shape.cpus,
        "gpus-per-node": shape.gpus or None,
        "mem": None if shape.memory_gb is None else f"{round(shape.memory_gb * 1000)}M",
        "time": None if shape.hours is None else max(1, round(shape.hours * 60)),  # minutes
        "partition": options.partition,
    }


def _flags(given: Mapping[str, object]) -> list[str]:
    return [f"--{name}={shlex.quote(str(v))}" for name, v in given.items() if v is not None]


def _trainer(program: Program, options: SlurmOptions, nodes: str) -> str:
    shape = program.shape
    srun = _srun(shape, options, nodes, _het_group(program, 0))
    what = shlex.join(["-m", program.module, str(program.run_dir / "run.json")])
    if shape.nodes == shape.processes == 1:
        python = shlex.join([*shape.prefix, shape.python or sys.executable])
        return f"{srun} {python} {what} &\nprogram=$!"
    torchrun = [
        *(*shape.prefix, shape.python or sys.executable, "-m", "torch.distributed.run"),
        f"--nnodes={shape.nodes}",
        f"--nproc-per-node={shape.processes}",
        f"--log-dir={program.run_dir / 'ranks'}",
        *("--redirects=0", "--tee=3"),
    ]
    meeting = '--node-rank="$SLURM_PROCID" --master-addr="$master" --master-port="$port"'
    command = f"exec {shlex.join(torchrun)} {meeting} {what}"
    return f"{srun} bash -c {shlex.quote(command)} &\nprogram=$!"


def _service(program: Program, options: SlurmOptions) -> str:
    service = program.service
    assert service is not None
    shape, count = service.shape, program.shape.nodes
    srun = _srun(shape, options, "${nodes[-1]}", _het_group(program, 1))
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
            f"{srun} {shlex.join(command)} &",
            "service=$!",
            f'first_nodes=$(IFS=,; echo "${{nodes[*]:0:{count}}}")',
            _trainer(program, options, "$first_nodes"),
        ]
    )


def _srun(shape: Shape, options: SlurmOptions, nodes: str, component: str) -> str:
    words = [
        "srun",
        *filter(None, [component]),
        f"--nodes={shape.nodes}",
        f"--ntasks={shape.nodes}",
        "--ntasks-per-node=1",
    ]
    words += [f"--cpus-per-task={shape.cpus}"] if shape.cpus else []  # not taken from sbatch's
    words += ["--kill-on-bad-exit=1", *(shlex.quote(option) for option in options.srun_options)]
    words += [f'--nodelist="{nodes}"'] if nodes else []
    return " ".join(words)


def _threads(shape: Shape) -> str:
    """The default, which ``environment.sh`` may replace."""
    share = f"SLURM_CPUS_ON_NODE / {shape.processes}"
    return f"export OMP_NUM_THREADS=$(({share} > 0 ? {share} : 1))"


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
trap : TERM  # this script records how the program ended
while kill -0 $$ 2>/dev/null; do beat; sleep {BEAT_SECONDS:.0f}; done &  # as long as this script
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ -z "$SLURM_JOB_NODELIST_HET_GROUP_1" ] || mapfile -t -O "${{#nodes[@]}}" nodes \\
    < <(scontrol show hostnames "$SLURM_JOB_NODELIST_HET_GROUP_1")
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
