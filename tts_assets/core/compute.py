"""``[compute]``: the launcher of programs, and the resources of each program; their GPU-hours.

GPU-hours of launched programs are counted per week; ``python -m tts_assets.doctor gpu-hours`` shows
them. ``storage/.ledger/`` has one small JSON file per attempt of a program. The launcher replaces
it atomically when the program starts, every :data:`BEAT_SECONDS` while it runs, and when it ends. A
killed launcher therefore loses at most that interval. A Slurm job that no launcher follows writes
such files itself; they are counted when its asset is materialized again. Weeks begin on Monday,
0:00 UTC.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import Config

Stage = Literal[
    "corpora",
    "codec",
    "speechlm",
    "sft",
    "serving",
    "rlhf",
    "evaluation",
    "speakers",
    "external_models",
]
STAGES: tuple[Stage, ...] = get_args(Stage)
# Control characters and the line and paragraph separators of Unicode.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
LEDGER_FOLDER = ".ledger"
BEAT_SECONDS = 30.0  # between two updates of the record of an attempt


def _one_line(value: str) -> str:
    """``value``, which becomes part of a line of a batch script. Raises ValueError."""
    if found := CONTROL.search(value):
        raise ValueError(f"{value!r} has the control character {found[0]!r}: remove it")
    return value


def _variables(values: dict[str, str]) -> dict[str, str]:
    """Environment variables. Raises ValueError for names and values that no shell can set."""
    for name, value in values.items():
        if not VARIABLE.fullmatch(name):
            raise ValueError(
                f"{name!r} is not a valid name of an environment variable: use letters a to z, "
                "digits and '_', no digit first"
            )
        if "\0" in value:
            raise ValueError(f"the value of {name} has the character '\\x00': remove it")
    return values


THREADS = "OMP_NUM_THREADS"
Line = Annotated[str, AfterValidator(_one_line)]
Variables = Annotated[dict[str, str], AfterValidator(_variables)]


class Shape(Config):
    """Resources of one program. Processes, GPUs, CPUs and memory are per node."""

    nodes: int = Field(default=1, ge=1)
    gpus: int | None = Field(
        default=None, ge=0, description="per node; unset: one per process if the machine has any"
    )
    processes: int = Field(
        default_factory=lambda known: _ranks(known.get("gpus")),
        ge=1,
        description="ranks per node; unset: one per GPU, two without GPUs",
    )
    cpus: int | None = Field(
        default=None, ge=1, description="per node; unset: all, or the default of the cluster"
    )
    memory_gb: float | None = Field(default=None, gt=0, description="per node; ignored by torchrun")
    hours: float | None = Field(default=None, gt=0, description="time limit")
    environment: Variables = Field(default_factory=dict)
    prefix: tuple[Line, ...] = Field(
        default=(),
        description="command before the interpreter: ['apptainer', 'exec', '--nv', 'tts.sif']",
    )
    python: Line | None = Field(default=None, description="interpreter; unset: that of Dagster")

    def alone(self) -> Shape:
        """This shape for a program of one process without a GPU."""
        return self.one_process().model_copy(update={"gpus": 0})

    def one_process(self) -> Shape:
        """This shape for a program of one process, with one GPU if there are any."""
        gpus = self.gpus and 1
        return self.model_copy(update={"nodes": 1, "processes": 1, "gpus": gpus})

    def rank_threads(self, cores: int, exported: str = "") -> str:
        """The value of :data:`THREADS` for each rank on a node with ``cores``.

        Configured values win over ``exported``, that of Dagster's environment.
        """
        configured = self.environment.get(THREADS, "")
        if not configured and self.cpus is None:
            configured = exported
        return configured or str(max(1, (self.cpus or cores) // self.processes))

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.gpus and self.gpus < self.processes:
            raise ValueError(
                f"{self.processes} processes cannot share {self.gpus} GPUs; "
                f"set processes = {self.gpus}, or gpus = 0 to run without"
            )
        return self


class SlurmOptions(Config):
    """``[compute.slurm]``: options of batch jobs. Unset: the default of the cluster."""

    removed_keys: ClassVar[Mapping[str, Any]] = {
        "account": None,
        "qos": None,
        "constraint": None,
        "poll_seconds": 15.0,
        "command_seconds": 60.0,
    }
    replaced_keys: ClassVar[Mapping[str, str]] = {
        name: f"write options = ['--{name}=…'] in [compute.slurm]"
        for name in ("account", "qos", "constraint")
    }

    partition: Line | None = None
    modules: tuple[Line, ...] = Field(default=(), description="arguments of module load")
    options: tuple[Line, ...] = Field(
        default=(), description="further options of sbatch: ['--qos=long', '--constraint=h100']"
    )
    srun_options: tuple[Line, ...] = Field(
        default=(), description="further options of srun: ['--container-image=/images/tts.sqsh']"
    )
    login: tuple[Line, ...] = Field(
        default=(),
        description="command prefix that reaches Slurm: ['ssh', '-oBatchMode=yes', 'login1']",
    )
    save_seconds: int = Field(
        default=300, ge=1, le=65535, description="signal before the time limit, for a checkpoint"
    )
    max_requeues: int = Field(default=10, ge=0, description="time limits that one build may reach")


class Compute(Shape):
    """``[compute]``: the launcher, the shape of all programs, and changes for single stages.

    The first retry of a failed program comes after 30 s, each further one after twice as long.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"retry_seconds": 30.0}

    launcher: Literal["torchrun", "slurm"] = "torchrun"
    grace_seconds: float = Field(default=30.0, gt=0, description="between SIGTERM and SIGKILL")
    retries: int = Field(
        default=0, ge=0, description="retries of a failed program; invalid settings are not retried"
    )
    slurm: SlurmOptions = SlurmOptions()
    stages: dict[Stage, dict[str, Any]] = Field(
        default_factory=dict, description="[compute.stages.sft] nodes = 4"
    )

    def shape(self, stage: Stage) -> Shape:
        """The shape of the programs of a stage."""
        values = {
            name: getattr(self, name) for name in Shape.model_fields.keys() & self.model_fields_set
        }
        return Shape.model_validate({**values, **self.stages.get(stage, {})})

    @model_validator(mode="after")
    def _check_launcher(self) -> Self:
        for stage in STAGES:
            shape = self.shape(stage)
            if self.launcher == "torchrun" and shape.nodes > 1:
                raise ValueError(
                    f"{shape.nodes} nodes ({stage}) need launcher = 'slurm'; "
                    f"torchrun runs on this machine: nodes = 1"
                )
            if self.launcher == "slurm" and shape.gpus is None:
                raise ValueError("launcher = 'slurm' needs gpus: the number per node (0: none)")
        return self


def too_many_threads(shape: Shape, cores: int, exported: str = "") -> str:
    """A warning if the ranks of a node have more threads in all than it has ``cores``, or "".

    ``exported`` is :data:`THREADS` of Dagster's environment. Too many threads wait for each other
    at each operation: with 16 instead of 1 for each of two ranks on two cores, training takes ten
    times as long.
    """
    threads, ranks = shape.rank_threads(cores, exported), shape.processes
    first = re.match("[0-9]+", threads)
    if first is None or ranks * int(first[0]) <= cores:
        return ""
    of_environment = f" ({THREADS} is exported)" if threads == exported else ""
    remedy = (
        f"environment.{THREADS} = '{cores // ranks}'" if ranks <= cores else f"processes = {cores}"
    )
    return (
        f"{ranks} ranks with {first[0]} threads each{of_environment} exceed the {cores} cores, "
        f"which can be ten times slower: set compute.{remedy}"
    )


def _ranks(gpus: int | None) -> int:
    """The default number of processes for a node with ``gpus``; None: those of this machine."""
    return (len(visible_devices()) if gpus is None else gpus) or 2


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as in CUDA_VISIBLE_DEVICES. Does not initialize CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


class Attempt(Config):
    """``gpus`` held for ``seconds`` from ``started`` (seconds since 1970)."""

    asset: str
    gpus: int
    started: float
    seconds: float

    def hours_since(self, moment: float) -> float:
        """GPU-hours after ``moment`` (seconds since 1970)."""
        end = self.started + self.seconds
        return max(0.0, end - max(self.started, moment)) * self.gpus / 3600


class OverBudget(RuntimeError):
    """The week's GPU-hours are used up. The message says when the next week begins."""


class Ledger:
    """The attempts recorded in one folder, and the limit of GPU-hours per week (None: no limit)."""

    def __init__(self, folder: Path, limit: float | None = None) -> None:
        self.folder, self.limit = folder, limit

    def record(
        self, name: str, asset: str, gpus: int, seconds: float, started: float | None = None
    ) -> None:
        """Record that the attempt ``name`` has held ``gpus`` for ``seconds``.

        ``started`` is in seconds since 1970; None: ``seconds`` ago. Attempts without GPUs are not
        recorded. The recorded seconds never decrease: of two launchers that follow one job, the
        slower one may report an older value.
        """
        if not gpus:
            return
        path = self.folder / f"{name}.json"
        started = time.time() - seconds if started is None else started
        if path.is_file():
            known = Attempt.from_json(path)
            started, seconds = known.started, max(known.seconds, seconds)
        attempt = Attempt(asset=asset, gpus=gpus, started=started, seconds=round(seconds, 1))
        with atomic_write(path) as aside:
            aside.write_text(attempt.to_json())

    def attempts(self) -> list[Attempt]:
        """All recorded attempts, sorted by file name."""
        return [Attempt.from_json(path) for path in sorted(self.folder.glob("*.json"))]

    def used(self, now: datetime) -> dict[str, float]:
        """GPU-hours by asset since the week of ``now`` began."""
        monday = week_of(now).timestamp()
        hours: dict[str, float] = defaultdict(float)
        for attempt in self.attempts():
            hours[attempt.asset] += attempt.hours_since(monday)
        return {asset: spent for asset, spent in hours.items() if spent > 0}

    def check(self, gpus: int) -> None:
        """Raise :class:`OverBudget` if ``gpus`` > 0 and the limit of this week is reached."""
        if self.limit is None or not gpus:
            return
        now = datetime.now(UTC)
        used = sum(self.used(now).values())
        if used < self.limit:
            return
        monday = week_of(now) + timedelta(weeks=1)
        raise OverBudget(
            f"the budget of {self.limit:g} GPU-hours a week is used up ({used:.2f} since Monday, "
            f"0:00 UTC): no program is launched on GPUs until {monday:%A, %Y-%m-%d} 0:00 UTC. "
            "Raise budget.gpu_hours_a_week to continue now; "
            "python -m tts_assets.doctor gpu-hours lists the GPU-hours by asset"
        )


def week_of(moment: datetime) -> datetime:
    """The start of the week of ``moment``: Monday, 0:00 UTC."""
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=midnight.weekday())
