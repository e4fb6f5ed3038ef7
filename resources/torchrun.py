"""The launcher of programs on this machine, by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, ClassVar

from dagster import AssetExecutionContext

from resources.launcher import LOG, Launcher, LaunchError, Program, launch_error
from resources.leases import lease, locked
from tts_assets.core.compute import BEAT_SECONDS, THREADS, too_many_threads, visible_devices
from tts_assets.core.processes import (
    KEEP_ENVIRONMENT,
    LOOPBACK,
    MARKER,
    end_processes,
    free_port,
    marked,
    watchdog,
)

POLL_SECONDS = 0.5


class TorchrunLauncher(Launcher):
    """Runs each program by one torchrun. Canceling the Dagster run ends the whole process tree.

    Processes get SIGTERM, ``grace_seconds`` to save, and SIGKILL. They also end if Dagster is
    killed. GPUs are leased: a program waits until enough are free.
    """

    is_local: ClassVar[bool] = True
    devices: list[str] | None = None  # as in CUDA_VISIBLE_DEVICES; None: all visible ones
    lease_folder: str | None = None  # None: one per user of this machine

    def launch(
        self, context: AssetExecutionContext, program: Program, pipes: Mapping[str, str]
    ) -> None:
        """Run ``program`` on leased GPUs. Raises :class:`LaunchError` if it fails."""
        wanted = [self.gpus(role) for role in program.roles()]
        self._check_together(program, wanted)
        asset = context.asset_key.to_user_string()
        with (
            # The watchdog of an earlier launch holds this lock until it has ended all processes.
            locked(
                program.run_dir / "launch.lock",
                lambda: context.log.info(f"waiting: {program.run_dir} is in use"),
            ) as folder,
            lease(sum(wanted), self._devices(), context.log.info, self._lease_folder()) as held,
        ):
            self.refuse_over_budget(program, sum(wanted))  # the budget may be used up after waiting
            for role in program.roles():
                role.forget_failures()
            cores, exported = len(os.sched_getaffinity(0)), os.environ.get(THREADS, "")
            for role in program.roles():
                if warning := too_many_threads(role.shape, cores, exported):
                    context.log.warning(f"{role.module}: {warning}")
            context.log.info(f"launching {' '.join(self.command(program))}")
            name = f"{context.run_id}.{context.retry_number}"
            started = time.monotonic()

            def beat() -> None:
                seconds = time.monotonic() - started
                self.record(program, asset, name, seconds, sum(wanted))

            status = None
            try:
                launch = _Launch(self, program, held.devices, pipes)
                status = launch.run([folder, *held.files], beat)
            finally:
                beat()
        if status is None:
            raise LaunchError(time_limit_message(program), program, permanent=True)
        if status != 0 or program.facts() is None:
            how = "ended without a result" if status == 0 else f"failed with exit status {status}"
            raise launch_error(program, how)

    def plain_command(self, program: Program) -> list[str]:
        """The command line of a program of one process."""
        shape = program.shape
        python = [*shape.prefix, shape.python or sys.executable]
        return [*python, "-m", program.module, str(program.run_dir / "run.json")]

    def command(self, program: Program) -> list[str]:
        """The command line of a program, with torchrun if it has several ranks."""
        shape = program.shape
        if shape.processes == 1:  # torchrun takes seconds to start
            return self.plain_command(program)
        return [
            *(*shape.prefix, shape.python or sys.executable),
            *("-m", "torch.distributed.run", "--standalone"),
            f"--nproc-per-node={shape.processes}",
            f"--log-dir={program.run_dir / 'ranks'}",
            *("--redirects=0", "--tee=3"),
            *("-m", program.module, str(program.run_dir / "run.json")),
        ]

    def gpus(self, program: Program) -> int:
        """The number of GPUs of a program: as configured, or one per process if there are any.

        Raises :class:`LaunchError` if this machine has too few.
        """
        present = len(self._devices())
        asked = program.shape.gpus
        if asked is not None and asked > present:
            raise LaunchError(
                f"{program.module} asks for {asked} GPUs, and this machine has {present}: "
                f"set compute.gpus to at most that",
                program,
                permanent=True,
            )
        if asked is None and 0 < present < program.shape.processes:
            raise LaunchError(
                f"{program.module} starts {program.shape.processes} processes, one per GPU, and "
                f"this machine has {present}: set compute.processes = {present}, "
                "or compute.gpus = 0",
                program,
                permanent=True,
            )
        return min(present, program.shape.processes) if asked is None else asked

    def _check_together(self, program: Program, wanted: Sequence[int]) -> None:
        present = len(self._devices())
        if sum(wanted) > present:
            left = present - wanted[1]
            remedy = (
                f"set compute.gpus for the stage to at most {left}"
                if left > 0
                else 'let the engine of rlhf share a GPU, engine = { kind = "vllm", gpus = 0, '
                "gpu_memory = 0.3 }, or let the policy generate itself, "
                'engine = { kind = "transformers" }'
            )
            raise LaunchError(
                f"{program.module} and its service ask for {wanted[0]} and {wanted[1]} GPUs, and "
                f"this machine has {present}: {remedy}",
                program,
                permanent=True,
            )

    def _devices(self) -> list[str]:
        return visible_devices() if self.devices is None else self.devices

    def _lease_folder(self) -> Path | None:
        return Path(self.lease_folder) if self.lease_folder else None


class _Launch:
    """The processes of one attempt: torchrun, and the service of the program, if any."""

    def __init__(
        self,
        launcher: TorchrunLauncher,
        program: Program,
        devices: Sequence[str],
        pipes: Mapping[str, str],
    ) -> None:
        self.launcher, self.program, self.pipes = launcher, program, pipes
        self.id = uuid.uuid4().hex
        count = launcher.gpus(program)
        self.devices, self.service_devices = devices[:count], devices[count:]
        if program.service is not None and program.service.shares_gpu:
            self.service_devices = devices[:1]
        self.address = {"TTS_SERVICE_HOST": LOOPBACK, "TTS_SERVICE_PORT": str(free_port())}

    def run(self, files: Sequence[int], beat: Callable[[], None]) -> int | None:
        """Run to the end. Returns the exit status, or None after the time limit.

        ``files`` stay open until all processes of the launch have ended. ``beat`` is called every
        :data:`BEAT_SECONDS`.
        """
        hours, grace = self.program.shape.hours, self.launcher.grace_seconds
        deadline = time.monotonic() + hours * 3600 if hours else float("inf")
        main = service = None
        next_beat = 0.0
        with (
            watchdog(self.id, grace, files),
            (self.program.run_dir / LOG).open("ab") as log,
        ):
            try:
                if self.program.service is not None:
                    command = self.launcher.plain_command(self.program.service)
                    service = self._start(
                        command, self.program.service, self.service_devices, {}, log
                    )
                command = self.launcher.command(self.program)
                main = self._start(command, self.program, self.devices, self.pipes, log)
                while main.poll() is None and time.monotonic() < deadline:
                    if service is not None and service.poll() is not None:
                        log.write(b"the service has ended before the program\n")
                        return 1
                    if time.monotonic() >= next_beat:
                        beat()
                        next_beat = time.monotonic() + BEAT_SECONDS
                    time.sleep(POLL_SECONDS)
                return main.poll()
            finally:  # canceling the Dagster run raises here
                end_processes(self.id, grace, main.pid if main else None)
                for process in (main, service):
                    if process is not None:
                        process.wait()

    def _start(
        self,
        command: list[str],
        role: Program,
        devices: Sequence[str],
        more: Mapping[str, str],
        log: IO[bytes],
    ) -> subprocess.Popen[bytes]:
        cores, exported = len(os.sched_getaffinity(0)), os.environ.get(THREADS, "")
        environment = {
            **os.environ,
            THREADS: role.shape.rank_threads(cores, exported),
            **role.common_environment(),
            "CUDA_VISIBLE_DEVICES": ",".join(devices),
            **(self.address if self.program.service else {}),
            **more,
            **KEEP_ENVIRONMENT,
            MARKER: marked(self.id),
        }
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def time_limit_message(program: Program) -> str:
    """The error message of a program that reached its time limit."""
    return (
        f"{program.module} reached its time limit of {program.shape.hours} hours. Its checkpoints "
        f"are in {program.run_dir}: run it again to resume, or raise compute.hours"
    )
