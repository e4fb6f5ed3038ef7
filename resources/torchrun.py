"""Programs on this machine, through torchrun, with Dagster Pipes over a file of the run folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import IO

from dagster import (
    AssetExecutionContext,
    PipesEnvContextInjector,
    PipesFileMessageReader,
    open_pipes_session,
)

from resources.launcher import Launcher, LaunchError, Outcome, Program
from resources.processes import MARKER, end_processes, tree_memory

LOG = "log.txt"
LAST_LINES = 40  # of the failing rank, in the error: a traceback through torch is about 30
POLL_SECONDS = 0.5


class TorchrunLauncher(Launcher):
    """One torchrun a program. Cancelling the Dagster run ends the whole process tree.

    The program gets SIGTERM and ``grace_seconds`` to save; then SIGKILL. Nothing survives.
    """

    grace_seconds: float = 30.0
    threads: int = 0  # CPU threads a process; 0: the machine's cores shared out evenly

    def run(self, context: AssetExecutionContext, program: Program) -> Outcome:
        facts = program.facts()
        if facts is not None:
            context.log.info(f"{program.module} had finished in {program.run_dir}: taken over")
            return Outcome(facts, 0.0, 0.0, 0.0)
        for old in program.run_dir.glob("failure-*.txt"):
            old.unlink()
        command = self.command(program)
        context.log.info(f"launching {' '.join(command)}")
        started = time.monotonic()
        with open_pipes_session(
            context=context,
            context_injector=PipesEnvContextInjector(),
            message_reader=PipesFileMessageReader(str(program.run_dir / "pipes.jsonl")),
        ) as session:
            environment = self.environment(program, dict(session.get_bootstrap_env_vars()))
            status, peak = self._supervise(command, environment, program.run_dir / LOG)
        seconds = time.monotonic() - started
        facts = program.facts()
        if status != 0 or facts is None:
            raise LaunchError(failure_message(program, status))
        return Outcome(facts, seconds, seconds * _gpus(program) / 3600, peak / 1e9)

    def command(self, program: Program) -> list[str]:
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            f"--nproc-per-node={program.processes}",
            f"--log-dir={program.run_dir / 'ranks'}",
            *("--redirects=0", "--tee=3"),
            *("-m", program.module, str(program.write_config())),
        ]

    def environment(self, program: Program, pipes: dict[str, str]) -> dict[str, str]:
        cores = len(os.sched_getaffinity(0))
        threads = self.threads or max(1, cores // program.processes)
        return {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "WANDB_MODE": "offline",
            **os.environ,
            **pipes,
            MARKER: uuid.uuid4().hex,
        }

    def _supervise(
        self, command: list[str], environment: dict[str, str], log: Path
    ) -> tuple[int, int]:
        """Run to the end; return the exit status and the peak of the tree's memory in bytes."""
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        copier = threading.Thread(target=_copy_log, args=(process.stdout, log), daemon=True)
        copier.start()
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, tree_memory(process.pid))
                time.sleep(POLL_SECONDS)
        finally:  # a cancelled Dagster run raises here; after a normal end nothing is left to end
            end_processes(environment[MARKER], self.grace_seconds)
            process.wait()
            copier.join(timeout=5)
        return process.returncode, peak


def _copy_log(source: IO[bytes], log: Path) -> None:
    """Each line as it comes: to the run folder's log and to Dagster's compute log."""
    with source, log.open("ab") as kept:
        for line in source:
            kept.write(line)
            kept.flush()
            sys.stderr.write(line.decode(errors="replace"))


def failure_message(program: Program, status: int) -> str:
    """The traceback of the rank that failed first, and where the log lies.

    The others fail of its absence, within the same second: neither what torchrun calls the root
    cause nor the order of lines in the log tells them apart. A program that died without a word
    (killed, or before it ran) is shown by the end of its log.
    """
    log = program.run_dir / LOG
    failures = sorted(program.run_dir.glob("failure-*.txt"))
    shown = failures[0] if failures else log
    text = shown.read_text(errors="replace") if shown.is_file() else ""
    tail = "\n".join(text.splitlines()[-LAST_LINES:])
    rank = f" in {shown.stem.rpartition('-')[2]}" if failures else ""
    how = "ended without a result" if status == 0 else f"failed{rank} with exit status {status}"
    return f"{program.module} {how}; its log is {log}; the last lines:\n{tail}"


def _gpus(program: Program) -> int:
    """GPUs the program held: one a process where this machine has any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        present = len([device for device in visible.split(",") if device.strip()])
    else:
        present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return min(present, program.processes)
