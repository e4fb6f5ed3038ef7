"""Launchers run one program to its end; the common part of all launchers.

A launched program writes its log and its Dagster Pipes messages to files of its run folder.
:class:`RunFolderReader` copies both to Dagster while they grow.

Failed programs are retried with ``RetryRequested``. Dagster's ``RetryPolicy`` is not used: it
retries every exception of an asset, also errors in data and settings. Here only failures of
launched programs are retried, with the number of retries of the launcher's configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dagster import (
    AssetExecutionContext,
    ConfigurableResource,
    Failure,
    MetadataValue,
    PipesEnvContextInjector,
    PipesMessageHandler,
    PipesMessageReader,
    RetryRequested,
    open_pipes_session,
)

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.compute import Ledger, OverBudget, Shape
from tts_assets.core.program import RESULT_FILE, STOP_FILE, ProgramConfig
from tts_assets.core.tracking import WandbConfig, write_card

LOG = "log.txt"
MESSAGES = "pipes.jsonl"
FOLLOWED = "followed.json"
READ_SECONDS = 0.5
MOST_BYTES = 1 << 20  # per read: the output of a program without a follower may be long


class Lines:
    """Reads the new complete lines of a growing file.

    Each read opens the file again, because NFS shows writes of other machines only after an open.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset = path, offset

    def read(self) -> list[bytes]:
        """The complete lines since the last call, at most :data:`MOST_BYTES`."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                block = stream.read(MOST_BYTES)
        except FileNotFoundError:
            return []
        end = len(block) if len(block) == MOST_BYTES else block.rfind(b"\n") + 1
        self.offset += end
        return block[:end].splitlines(keepends=True)


class RunFolderReader(PipesMessageReader):
    """Reads ``pipes.jsonl``, and copies ``log.txt`` to Dagster's compute log, while they grow.

    It starts where the last reader of this folder stopped, according to ``followed.json``. A
    process that takes over from a killed one therefore shows each line once. A program that is
    requeued opens and closes Pipes several times; only the first opening and the last closing are
    passed on.
    """

    def __init__(self, run_dir: Path) -> None:
        self.followed = run_dir / FOLLOWED
        try:
            offsets = json.loads(self.followed.read_text())
        except FileNotFoundError:
            offsets = {}
        self.log = Lines(run_dir / LOG, offsets.get("log", 0))
        self.messages = Lines(run_dir / MESSAGES, offsets.get("messages", 0))
        self._ended = threading.Event()
        self._opened = False
        self._closed: Any = None

    @contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[dict[str, Any]]:
        """Read in a thread while the block lasts, and all remaining lines at its end."""
        thread = threading.Thread(target=self._follow, args=(handler,), daemon=True)
        self._reopen(handler)
        thread.start()
        try:
            yield {"path": str(self.messages.path)}
        finally:
            self._ended.set()
            thread.join()
            if self._closed is not None:
                handler.handle_message(self._closed)

    def no_messages_debug_text(self) -> str:
        """Part of Dagster's warning if no message arrives."""
        return f"Messages are read from {self.messages.path}."

    def _reopen(self, handler: PipesMessageHandler) -> None:
        """Repeat the opening message that an earlier reader has passed on."""
        seen = Lines(self.messages.path)
        while seen.offset < self.messages.offset and (lines := seen.read()):
            for line in lines:
                if b'"opened"' in line:
                    self._handle(handler, line)

    def _follow(self, handler: PipesMessageHandler) -> None:
        last = False
        while True:
            more = self._copy(handler)
            if last and not more:
                return
            last = self._ended.is_set()  # after the end, read all that is left
            if not more:
                self._ended.wait(READ_SECONDS)

    def _copy(self, handler: PipesMessageHandler) -> bool:
        lines, messages = self.log.read(), self.messages.read()
        for line in lines:
            sys.stderr.write(line.decode(errors="replace"))
        for message in messages:
            self._handle(handler, message)
        if lines or messages:
            with atomic_write(self.followed) as aside:
                offsets = {"log": self.log.offset, "messages": self.messages.offset}
                aside.write_text(json.dumps(offsets))
        return bool(lines or messages)

    def _handle(self, handler: PipesMessageHandler, line: bytes) -> None:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:  # the program was killed while writing
            print(f"{self.messages.path}: not a message: {line!r}", file=sys.stderr)
            return
        if message["method"] == "closed":
            self._closed = message
        elif message["method"] != "opened" or not self._opened:
            self._opened |= message["method"] == "opened"
            handler.handle_message(message)


LAST_LINES = 40  # of the failed rank, in the error; a traceback through torch has about 30
ATTEMPTS = "attempts.json"
LONGEST_BACK_OFF = 3600.0
DEFAULTS = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline"}
ONE_PROCESS = Shape(processes=1)


class LaunchError(Failure):
    """A launched program failed. The message has the last lines and the log of the failed rank.

    ``permanent``: a retry would fail in the same way.
    """

    def __init__(self, message: str, program: Program, permanent: bool = False) -> None:
        self.message, self.permanent = message, permanent
        log = MetadataValue.path(str(program.run_dir / LOG))
        super().__init__(message, metadata={"log": log}, allow_retries=False)

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Program:
    """A module, its typed configuration and its shape.

    ``service`` is a second program that runs as long as the first, such as a server of the model in
    training. It has one process and its own shape. Both programs get its address in
    ``TTS_SERVICE_HOST`` and ``TTS_SERVICE_PORT``. With ``shares_gpu`` it uses the first GPU of the
    program, on the same machine.
    """

    module: str
    config: ProgramConfig
    shape: Shape = ONE_PROCESS
    service: Program | None = None
    shares_gpu: bool = False

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.config.run_dir

    def write_config(self) -> Path:
        """Write ``run.json``, from which the program may also be run by hand."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / "run.json"
        with atomic_write(path) as aside:  # a starting job may read it
            aside.write_text(self.config.to_json())
        return path

    def facts(self) -> dict[str, Any] | None:
        """The facts in ``result.json``; None if the program has not finished."""
        path = self.run_dir / RESULT_FILE
        return json.loads(path.read_text()) if path.is_file() else None

    def forget_failures(self) -> None:
        """Remove the failure files and stop requests of earlier attempts."""
        old = ("failure-*.txt", "refused-*.txt", "memory/*.json", STOP_FILE)
        for path in (path for pattern in old for path in self.run_dir.glob(pattern)):
            path.unlink()

    def roles(self) -> list[Program]:
        """This program and its service, if any."""
        return [self, self.service] if self.service else [self]

    def record_attempt(self, name: str, seconds: float, gpus: int) -> None:
        """Record in ``attempts.json`` that an attempt has run for ``seconds`` on ``gpus`` in all.

        The recorded seconds never decrease.
        """
        path = self.run_dir / ATTEMPTS
        attempts = json.loads(path.read_text()) if path.is_file() else {}
        seconds = max(seconds, attempts.get(name, {}).get("seconds", 0.0))
        attempts[name] = {"seconds": round(seconds, 1), "gpus": gpus}
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(attempts, indent=2) + "\n")

    def common_environment(self) -> dict[str, str]:
        """Environment variables of a program, for all launchers."""
        kept = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
        return {**kept, **self.shape.environment}


@dataclass(frozen=True)
class Outcome:
    """The facts of a finished program, and the cost of all its attempts.

    ``peak_memory_gb`` is the sum over the ranks, ``peak_gpu_memory_gb`` the maximum over the GPUs
    (0 without GPUs).
    """

    facts: dict[str, Any]
    seconds: float
    gpu_hours: float
    attempts: int
    peak_memory_gb: float
    peak_gpu_memory_gb: float

    @classmethod
    def of(cls, program: Program, facts: dict[str, Any]) -> Outcome:
        """Add up ``attempts.json`` and ``memory/`` of the run folder."""
        path = program.run_dir / ATTEMPTS
        attempts = json.loads(path.read_text()).values() if path.is_file() else ()
        memory = [json.loads(p.read_text()) for p in program.run_dir.glob("memory/rank*.json")]
        return cls(
            facts,
            seconds=sum(attempt["seconds"] for attempt in attempts),
            gpu_hours=sum(attempt["seconds"] * attempt["gpus"] for attempt in attempts) / 3600,
            attempts=len(attempts),
            peak_memory_gb=round(sum(rank["host"] for rank in memory), 3),
            peak_gpu_memory_gb=round(max((rank["gpu"] for rank in memory), default=0.0), 3),
        )

    def metadata(self) -> dict[str, float | int]:
        """The cost as metadata of a materialization."""
        return {
            "compute_seconds": self.seconds,
            "gpu_hours": self.gpu_hours,
            "attempts": self.attempts,
            "peak_memory_gb": self.peak_memory_gb,
            "peak_gpu_memory_gb": self.peak_gpu_memory_gb,
        }


class Launcher(ConfigurableResource, ABC):
    """Runs programs on this machine (``TorchrunLauncher``) or on a cluster (``SlurmLauncher``)."""

    is_local: ClassVar[bool] = False  # whether programs run on the machine of Dagster
    grace_seconds: float = 30.0  # between SIGTERM and SIGKILL
    retries: int = 0
    retry_seconds: float = 30.0
    wandb: dict[str, Any] | None = None  # as [wandb] of the project file; None: off
    ledger: str | None = None  # folder of the records of GPU-hours; None: no records
    gpu_hours_a_week: float | None = None  # None: no limit

    def run(self, context: AssetExecutionContext, program: Program) -> Outcome:
        """Run ``program`` to its end. It resumes from its run folder.

        The cost is added to the metadata of the materialization. Raises :class:`LaunchError`, or
        ``RetryRequested`` if retries are left.
        """
        self.record_missed_starts(program, context.asset_key.to_user_string())
        facts = program.facts()
        if facts is not None:
            context.log.info(
                f"{program.module} has finished in {program.run_dir} before: reusing its result"
            )
        else:
            facts = self._run(context, program)
        outcome = Outcome.of(program, facts)
        context.add_output_metadata(outcome.metadata())
        return outcome

    def _run(self, context: AssetExecutionContext, program: Program) -> dict[str, Any]:
        for role in program.roles():
            role.write_config()
        wandb = None if self.wandb is None else WandbConfig.model_validate(self.wandb)
        write_card(program.run_dir, wandb, context.asset_key.to_user_string())
        try:
            with open_pipes_session(
                context=context,
                context_injector=PipesEnvContextInjector(),
                message_reader=RunFolderReader(program.run_dir),
            ) as session:
                self.launch(context, program, session.get_bootstrap_env_vars())
        except LaunchError as error:
            if error.permanent or context.retry_number >= self.retries:
                raise
            wait = min(self.retry_seconds * 2**context.retry_number, LONGEST_BACK_OFF)
            raise RetryRequested(max_retries=self.retries, seconds_to_wait=wait) from error
        facts = program.facts()
        assert facts is not None, "launch() returns only when there is a result"
        return facts

    def refuse_over_budget(self, program: Program, gpus: int) -> None:
        """Raise :class:`LaunchError` if the GPU-hours of the week are used up."""
        if self.ledger is None:
            return
        try:
            Ledger(Path(self.ledger), self.gpu_hours_a_week).check(gpus)
        except OverBudget as error:
            raise LaunchError(
                f"{program.module} is not launched: {error}", program, permanent=True
            ) from None

    def record_missed_starts(self, program: Program, asset: str) -> None:
        """Record the cost of jobs that ran without a launcher. Local programs cannot."""

    def record(
        self,
        program: Program,
        asset: str,
        name: str,
        seconds: float,
        gpus: int,
        started: float | None = None,
    ) -> None:
        """Record the cost of an attempt in the run folder, and in the ledger of GPU-hours."""
        program.record_attempt(name, seconds, gpus)
        if self.ledger is not None:
            # A Dagster run may launch several programs for one asset, and for several partitions.
            where = hashlib.sha256(str(program.run_dir).encode()).hexdigest()[:8]
            unique = f"{asset.replace('/', '-')}.{where}.{name}"
            Ledger(Path(self.ledger)).record(unique, asset, gpus, seconds, started)

    @abstractmethod
    def launch(
        self, context: AssetExecutionContext, program: Program, pipes: Mapping[str, str]
    ) -> None:
        """Run ``program`` until there is a ``result.json``. Raises :class:`LaunchError`.

        ``pipes`` are further environment variables of the program. The caller follows ``log.txt``.
        """


def launch_error(program: Program, how: str) -> LaunchError:
    """The error of a failed program, with the traceback of the rank that failed first.

    The other ranks fail within the same second because it is gone. Neither torchrun's "root cause"
    nor the order of lines in the log identifies the first rank, but the names of the failure files
    do. Without failure files (a killed program), the message has the end of the log.
    """
    log = program.run_dir / LOG
    refused = [path for role in program.roles() for path in role.run_dir.glob("refused-*.txt")]
    failures = [path for role in program.roles() for path in role.run_dir.glob("failure-*.txt")]
    first = sorted(refused or failures, key=lambda path: path.name)[:1]
    shown = first[0] if first else log
    text = shown.read_text(errors="replace") if shown.is_file() else ""
    tail = "\n".join(text.splitlines()[-LAST_LINES:])
    rank = f" in {shown.stem.rpartition('-')[2]}" if first else ""
    message = f"{program.module} {how}{rank}; its log is {log}; the last lines:\n{tail}"
    return LaunchError(message, program, permanent=bool(refused))
