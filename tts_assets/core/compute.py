"""``[compute]``: where launched programs run, and what each is given there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

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
    "families",
]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Shape(Config):
    """What one program is given; processes, GPUs, CPUs and memory are those of each node."""

    nodes: int = Field(default=1, ge=1)
    gpus: int | None = Field(
        default=None, ge=0, description="a node; unset: one a process where the machine has any"
    )
    processes: int = Field(
        default_factory=lambda known: _ranks(known.get("gpus")),
        ge=1,
        description="ranks a node; unset: one a GPU, two where there is none",
    )
    cpus: int | None = Field(default=None, ge=1, description="a node; unset: all, or the cluster's")
    memory_gb: float | None = Field(default=None, gt=0, description="a node; torchrun: no limit")
    hours: float | None = Field(default=None, gt=0, description="the time limit")
    threads: int = Field(default=0, ge=0, description="CPU threads a rank; 0: share the cores")
    environment: dict[str, str] = Field(default_factory=dict)
    prefix: tuple[str, ...] = Field(
        default=(), description="before the interpreter: ['apptainer', 'exec', '--nv', 'tts.sif']"
    )
    python: str | None = Field(default=None, description="unset: the interpreter Dagster runs in")

    def alone(self) -> Shape:
        """The same for a program that is one process and computes nothing on a GPU."""
        return self.one_process().model_copy(update={"gpus": 0})

    def one_process(self) -> Shape:
        """The same for a program that is one process, on one GPU if it has any."""
        gpus = self.gpus and 1
        return self.model_copy(update={"nodes": 1, "processes": 1, "gpus": gpus})

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.gpus and self.gpus < self.processes:
            raise ValueError(
                f"{self.processes} processes cannot share {self.gpus} GPUs; "
                f"set processes = {self.gpus}, or gpus = 0 to run without"
            )
        return self


class SlurmOptions(Config):
    """``[compute.slurm]``: how jobs reach the cluster. Unset: the cluster's default."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    modules: tuple[str, ...] = Field(default=(), description="for: module load")
    options: tuple[str, ...] = Field(default=(), description="more of sbatch's: ['--exclusive']")
    srun_options: tuple[str, ...] = Field(
        default=(), description="more of srun's: ['--container-image=/images/tts.sqsh']"
    )
    login: tuple[str, ...] = Field(
        default=(),
        description="what runs a command line where Slurm is: ['ssh', '-oBatchMode=yes', 'login1']",
    )
    save_seconds: int = Field(
        default=300, ge=1, le=65535, description="before the time limit, to save a checkpoint"
    )
    max_requeues: int = Field(default=10, ge=0, description="time limits that a build may reach")
    poll_seconds: float = Field(default=15.0, gt=0, description="between two looks at the queue")
    command_seconds: float = Field(default=60.0, gt=0, description="the most a command may take")


class Compute(Shape):
    """``[compute]``: the launcher, the shape of all programs, and what stages change of it."""

    launcher: Literal["torchrun", "slurm"] = "torchrun"
    grace_seconds: float = Field(default=30.0, gt=0, description="between SIGTERM and SIGKILL")
    retries: int = Field(default=0, ge=0, description="of a failed program; never of a bad config")
    retry_seconds: float = Field(default=30.0, gt=0, description="before the first; then doubled")
    slurm: SlurmOptions = SlurmOptions()
    stages: dict[Stage, dict[str, Any]] = Field(
        default_factory=dict, description="[compute.stages.sft] nodes = 4"
    )

    def shape(self, stage: Stage) -> Shape:
        """The shape of a stage's programs."""
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
                raise ValueError("launcher = 'slurm' needs gpus: how many of each node (0: none)")
        return self


def _ranks(gpus: int | None) -> int:
    """Processes of a node with that many GPUs; ``None``: of this machine."""
    return (len(visible_devices()) if gpus is None else gpus) or 2


def visible_devices() -> list[str]:
    """The GPUs of this machine that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Asked without starting CUDA.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
