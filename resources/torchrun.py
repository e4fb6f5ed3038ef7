"""Programs on this machine, through torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from dagster import AssetExecutionContext

from resources.launcher import Launcher, LaunchError, Program, launch_error
from resources.leases import lease, locked, visible_devices
from resources.processes import MARKER, end_processes, watchdog
from resources.run_folder import LOG

POLL_SECONDS = 0.5


class TorchrunLauncher(Launcher):
    """One torchrun a program. Cancelling the Dagster run ends the whole process tree.

    The program gets SIGTERM and ``grace_seconds`` to save; then SIGKILL. Nothing survives, also
    when Dagster itself is killed. The GPUs are leased: a program waits until there are enough.
    """

    devices: list[str] | None = None  # as CUDA_VISIBLE_DEVICES names them; None: all that it shows
    lease_folder: str | None = None  # None: one a user of this machine

    def launch(
        self, context: AssetExecutionContext, program: Program, pipes: Mapping[str, str]
    ) -> None:
        count = self.gpus(program)
        with (
            # A watchdog of an earlier launch holds it while it ends what that left.
            locked(
                program.run_dir / "launch.lock",
                lambda: context.log.info(f"waiting: {program.run_dir} is in use"),
            ) as folder,
            lease(count, self._devices(), context.log.info, self._lease_folder()) as held,
        ):
            program.forget_failures()
            devices = {"CUDA_VISIBLE_DEVICES": ",".join(held.devices)} if count else {}
            environment = self.environment(program, {**pipes, **devices})
            context.log.info(f"launching {' '.join(self.command(program))}")
            started = time.monotonic()
            status = None
            try:
                status = self._supervise(program, environment, [folder, *held.files])
            finally:
                seconds = time.monotonic() - started
                program.record_attempt(f"{context.run_id}.{context.retry_number}", seconds, count)
        if status is None:
            raise LaunchError(time_limit_message(program), program, permanent=True)
        if status != 0 or program.facts() is None:
            how = "ended without a result" if status == 0 else f"failed with exit status {status}"
            raise launch_error(program, how)

    def command(self, program: Program) -> list[str]:
        shape = program.shape
        return [
            *(*shape.prefix, shape.python or sys.executable),
            *("-m", "torch.distributed.run", "--standalone"),
            f"--nproc-per-node={shape.processes}",
            f"--log-dir={program.run_dir / 'ranks'}",
            *("--redirects=0", "--tee=3"),
            *("-m", program.module, str(program.run_dir / "run.json")),
        ]

    def environment(self, program: Program, more: Mapping[str, str]) -> dict[str, str]:
        cores = program.shape.cpus or len(os.sched_getaffinity(0))
        threads = program.shape.threads or max(1, cores // program.shape.processes)
        return {
            "OMP_NUM_THREADS": str(threads),
            **program.common_environment(),
            **os.environ,
            **program.shape.environment,
            **more,
            MARKER: uuid.uuid4().hex,
        }

    def gpus(self, program: Program) -> int:
        """GPUs the program holds: as asked for, or one a process where this machine has any."""
        present = len(self._devices())
        asked = program.shape.gpus
        if asked is not None and asked > present:
            raise LaunchError(
                f"{program.module} asks for {asked} GPUs, and this machine has {present}: "
                f"set compute.gpus to at most that",
                program,
                permanent=True,
            )
        return min(present, program.shape.processes) if asked is None else asked

    def _supervise(
        self, program: Program, environment: dict[str, str], files: Sequence[int]
    ) -> int | None:
        """Run to the end; the exit status, or None if the time limit ended it."""
        launch_id = environment[MARKER]
        hours = program.shape.hours
        deadline = time.monotonic() + hours * 3600 if hours else float("inf")
        process = None
        with (
            watchdog(launch_id, self.grace_seconds, files),
            (program.run_dir / LOG).open("ab") as log,
        ):
            try:
                process = subprocess.Popen(
                    self.command(program),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                while process.poll() is None and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                status = process.poll()
            finally:  # a cancelled Dagster run raises here; after a normal end nothing is left
                end_processes(launch_id, self.grace_seconds, process.pid if process else None)
                if process is not None:
                    process.wait()
        return status

    def _devices(self) -> list[str]:
        return visible_devices() if self.devices is None else self.devices

    def _lease_folder(self) -> Path | None:
        return Path(self.lease_folder) if self.lease_folder else None


def time_limit_message(program: Program) -> str:
    return (
        f"{program.module} reached its time limit of {program.shape.hours} hours. What it saved is "
        f"in {program.run_dir}: run it again to go on, or raise compute.hours"
    )
