"""What every launcher does: run one program to its end and give back what it made.

Dagster's view of the run folder in which a program works: its log and its Pipes messages.
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

from tts_assets.core.artifacts import written_aside
from tts_assets.core.compute import Shape
from tts_assets.core.ledger import Ledger, OverBudget
from tts_assets.core.program import STOP_FILE, ProgramConfig
from tts_assets.core.tracking import WandbConfig, write_card

LOG = "log.txt"
MESSAGES = "pipes.jsonl"
FOLLOWED = "followed.json"
READ_SECONDS = 0.5
MOST_BYTES = 1 << 20  # a read: what a program printed while nobody followed may be long


class Lines:
    """The complete lines that a growing file has gained since they were last asked for.

    It is opened anew each time: on NFS only an open sees what another machine wrote.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset = path, offset

    def read(self) -> list[bytes]:
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
    """Reads ``pipes.jsonl``, and copies ``log.txt`` to Dagster's compute log, as they grow.

    It goes on where the last reader of this folder stopped, which ``followed.json`` tells: a
    Dagster process that takes over from a killed one shows each line once. A program that is
    requeued opens and closes Pipes several times; Dagster hears of the first and the last.
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
        return f"Messages are read from {self.messages.path}."

    def _reopen(self, handler: PipesMessageHandler) -> None:
        """Of the messages that an earlier reader has seen, only that Pipes was opened matters."""
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
            last = self._ended.is_set()  # after the end, all that is there is read
            if not more:
                self._ended.wait(READ_SECONDS)

    def _copy(self, handler: PipesMessageHandler) -> bool:
        lines, messages = self.log.read(), self.messages.read()
        for line in lines:
            sys.stderr.write(line.decode(errors="replace"))
        for message in messages:
            self._handle(handler, message)
        if lines or messages:
            with written_aside(self.followed) as aside:
                offsets = {"log": self.log.offset, "messages": self.messages.offset}
                aside.write_text(json.dumps(offsets))
        return bool(lines or messages)

    def _handle(self, handler: PipesMessageHandler, line: bytes) -> None:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:  # the program was killed while it wrote
            print(f"{self.messages.path}: not a message: {line!r}", file=sys.stderr)
            return
        if message["method"] == "closed":
            self._closed = message
        elif message["method"] != "opened" or not self._opened:
            self._opened |= message["method"] == "opened"
            handler.handle_message(message)


LAST_LINES = 40  # of the failing rank, in the error: a traceback through torch is about 30
ATTEMPTS = "attempts.json"
LONGEST_BACK_OFF = 3600.0
DEFAULTS = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline"}
ONE_PROCESS = Shape(processes=1)


class LaunchError(Failure):
    """A launched program failed: the message has the failing rank's last words and the log.

    ``permanent``: running it again would end the same.
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

    ``service`` is a second role that runs as long as the program: one process of its own shape
    (one node), such as a server of the model that is trained. Both find its address in the
    variables ``TTS_SERVICE_HOST`` and ``TTS_SERVICE_PORT``. One that ``shares_gpu`` has the
    program's first GPU instead of its own, on the same machine.
    """

    module: str
    config: ProgramConfig
    shape: Shape = ONE_PROCESS
    service: Program | None = None
    shares_gpu: bool = False

    @property
    def run_dir(self) -> Path:
        return self.config.run_dir

    def write_config(self) -> Path:
        """``run.json``: the program runs by hand from it, too."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / "run.json"
        with written_aside(path) as aside:  # a job that is starting may read it
            aside.write_text(self.config.to_json())
        return path

    def facts(self) -> dict[str, Any] | None:
        """What the program declared when it finished; None if it has not."""
        path = self.run_dir / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def forget_failures(self) -> None:
        """Before an attempt: what earlier ones left, but for their checkpoints."""
        old = ("failure-*.txt", "refused-*.txt", "memory/*.json", STOP_FILE)
        for path in (path for pattern in old for path in self.run_dir.glob(pattern)):
            path.unlink()

    def roles(self) -> list[Program]:
        """This program, and its service if it has one."""
        return [self, self.service] if self.service else [self]

    def record_attempt(self, name: str, seconds: float, gpus: int) -> None:
        """Remember that the attempt ``name`` has run for ``seconds``, or for longer if that is
        known already, on ``gpus`` in all."""
        path = self.run_dir / ATTEMPTS
        attempts = json.loads(path.read_text()) if path.is_file() else {}
        seconds = max(seconds, attempts.get(name, {}).get("seconds", 0.0))
        attempts[name] = {"seconds": round(seconds, 1), "gpus": gpus}
        with written_aside(path) as aside:
            aside.write_text(json.dumps(attempts, indent=2) + "\n")

    def common_environment(self) -> dict[str, str]:
        """What a program finds in its environment, whoever launches it."""
        kept = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
        return {**kept, **self.shape.environment}


@dataclass(frozen=True)
class Outcome:
    """The facts of a finished program, and what all its attempts cost.

    ``peak_memory_gb`` is the sum of the ranks' peaks, ``peak_gpu_memory_gb`` that of the fullest
    GPU (0 where none was used).
    """

    facts: dict[str, Any]
    seconds: float
    gpu_hours: float
    attempts: int
    peak_memory_gb: float
    peak_gpu_memory_gb: float

    @classmethod
    def of(cls, program: Program, facts: dict[str, Any]) -> Outcome:
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
        return {
            "compute_seconds": self.seconds,
            "gpu_hours": self.gpu_hours,
            "attempts": self.attempts,
            "peak_memory_gb": self.peak_memory_gb,
            "peak_gpu_memory_gb": self.peak_gpu_memory_gb,
        }


class Launcher(ConfigurableResource, ABC):
    """Runs programs, here (``TorchrunLauncher``) or on a cluster (``SlurmLauncher``)."""

    is_local: ClassVar[bool] = False  # programs run on the machine on which Dagster runs
    grace_seconds: float = 30.0  # between SIGTERM and SIGKILL
    retries: int = 0
    retry_seconds: float = 30.0
    wandb: dict[str, Any] | None = None  # as [wandb] of the project file; None: off
    ledger: str | None = None  # folder in which GPU-hours are written down; None: nowhere
    gpu_hours_a_week: float | None = None  # None: no limit

    def run(self, context: AssetExecutionContext, program: Program) -> Outcome:
        """Run ``program`` to its end, resuming what its run folder holds.

        What it cost is added to the materialization's metadata. A failure raises
        :class:`LaunchError`, or asks Dagster for a retry that resumes.
        """
        self.catch_up(program, context.asset_key.to_user_string())
        facts = program.facts()
        if facts is not None:
            context.log.info(f"{program.module} had finished in {program.run_dir}: taken over")
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
        """Before each launch: raise LaunchError where the week's GPU-hours are used up."""
        if self.ledger is None:
            return
        try:
            Ledger(Path(self.ledger), self.gpu_hours_a_week).check(gpus)
        except OverBudget as error:
            raise LaunchError(
                f"{program.module} is not launched: {error}", program, permanent=True
            ) from None

    def catch_up(self, program: Program, asset: str) -> None:
        """Record what was spent while no launcher looked on; here, nothing outlives Dagster."""

    def record(
        self,
        program: Program,
        asset: str,
        name: str,
        seconds: float,
        gpus: int,
        started: float | None = None,
    ) -> None:
        """The attempt ``name`` has run for ``seconds`` on ``gpus``: in the run folder, where the
        result's cost is added up, and in the ledger, where the week's is."""
        program.record_attempt(name, seconds, gpus)
        if self.ledger is not None:
            # One Dagster run may launch several programs for an asset, and for many partitions.
            where = hashlib.sha256(str(program.run_dir).encode()).hexdigest()[:8]
            unique = f"{asset.replace('/', '-')}.{where}.{name}"
            Ledger(Path(self.ledger)).record(unique, asset, gpus, seconds, started)

    @abstractmethod
    def launch(
        self, context: AssetExecutionContext, program: Program, pipes: Mapping[str, str]
    ) -> None:
        """Run ``program`` until its ``result.json`` is there; raise LaunchError if it fails.

        ``pipes`` belongs into the program's environment. ``log.txt`` of the run folder is shown
        live by the caller.
        """


def launch_error(program: Program, how: str) -> LaunchError:
    """The traceback of the rank that failed first, and where the log lies.

    The others fail of its absence, within the same second: neither what torchrun calls the root
    cause nor the order of lines in the log tells them apart. A program that died without a word
    (killed, or before it ran) is shown by the end of its log.
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
