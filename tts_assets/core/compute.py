"""``[compute]``: the launcher of programs, and the resources of each program."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

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
    threads: int = Field(
        default=0, ge=0, description="CPU threads per rank; 0: OMP_NUM_THREADS, or cores / ranks"
    )
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
        configured = self.environment.get(THREADS) or (str(self.threads) if self.threads else "")
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
        "qos": None,
        "constraint": None,
        "poll_seconds": 15.0,
        "command_seconds": 60.0,
    }
    replaced_keys: ClassVar[Mapping[str, str]] = {
        name: f"write options = ['--{name}=…'] in [compute.slurm]" for name in ("qos", "constraint")
    }

    account: Line | None = None
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
    remedy = f"threads = {cores // ranks}" if ranks <= cores else f"processes = {cores}"
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
