"""The runtime of launched programs: ranks, progress, metrics, stop requests and results.

A program is ``python -m tts_assets.<stage>.<program> run.json``, started by hand or by torchrun. It
writes everything to files of its run folder first. The terminal, Dagster Pipes and W&B show copies.

    run.json        configuration of the program
    progress.jsonl  one line every few seconds: what, done, total, time left, newest metrics
    metrics.jsonl   one line per step and one per validation: step and numbers
    wandb.json      if present, metrics also go to W&B (tracking.py)
    checkpoints/    state from which a restart resumes
    result/         the files to publish
    memory/         peak memory of each rank
    failure-*.txt   traceback of each rank that failed, the earliest first
    refused-*.txt   error in the configuration: a retry would fail again
    result.json     facts of the result, written last: it exists only if the program has finished

Only rank 0 writes, draws the progress bar and uses Pipes. SIGTERM, SIGUSR1 or a file ``stop`` in
the run folder request a stop: the program saves, exits with :data:`STOPPED`, and resumes when it is
started again. The file also reaches programs below torchrun and on other nodes, where signals do
not arrive.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from dagster_pipes import PipesContext, PipesEnvVarParamsLoader, open_dagster_pipes
from tqdm import tqdm

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import Config, ConfigError
from tts_assets.core.tracking import Tracker

if TYPE_CHECKING:
    import torch

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: no failure, start again to resume
REFUSED = 2  # as argparse: invalid configuration, do not retry
STOP_FILE = "stop"
RESULT_FILE = "result.json"  # exists only if the program has finished
STOP_SECONDS = 2.0  # between two checks for the file: network file systems are slow
REPORT_SECONDS = 5.0  # between two progress lines: an hour of work is 720 lines, not 100,000
PIPES_SECONDS = 30.0  # between two Dagster events: many events a run make the UI slow
SHOWN = {  # metrics that progress lines show, and their labels
    "loss": "loss",
    "val_loss": "validation loss",
    "mel": "mel distance",
    "val_mel": "validation mel distance",
    "reward": "reward",
    "rewards/margins": "margin",
    "reward_heldout": "held-out reward",
    "wer_heldout": "held-out WER",
    "tokens_per_second": "tokens/s",
}


T = TypeVar("T")
C = TypeVar("C", bound="ProgramConfig")


class ProgramConfig(Config):
    """Base of the configurations of all programs."""

    run_dir: Path


def load_config(kind: type[C], argv: list[str] | None = None) -> C:
    """Read the configuration from the JSON file on the command line. Exits with :data:`REFUSED`."""
    parser = argparse.ArgumentParser(description=kind.__doc__)
    parser.add_argument("config", type=Path, help=f"JSON file of {kind.__name__}")
    path = parser.parse_args(argv).config
    try:
        return kind.from_json(path)
    except ConfigError as error:
        if path.parent.is_dir():
            record_failure(path.parent, "refused", f"{error}\n")
        parser.exit(REFUSED, f"{error}\n")


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread of torch on the CPU, so that rounding does not depend on the number of cores.

    The audio that a codec decodes differs by 2e-8 with two threads, which changes about one sample
    of 16 bits in three clips. Programs whose bytes must be the same on any number of ranks use one
    thread in each rank; more ranks make them faster.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Run:
    """The run as one rank sees it; a context manager around the work of a program.

    With several ranks, leaving the block ends the process.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this node
        self._stop_requested = False
        self._pipes: PipesContext | None = None
        self._distributed = False
        self._last_pipes = 0.0
        self._newest: dict[str, float] = {}  # of the metrics in SHOWN
        self._last_look = 0.0
        self._handlers: dict[int, Any] = {}
        self._tracker = Tracker(run_dir, self.note)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def result_dir(self) -> Path:
        """The folder of the files to publish."""
        return self.run_dir / "result"

    @property
    def checkpoint_dir(self) -> Path:
        """The folder of the checkpoints."""
        return self.run_dir / "checkpoints"

    @property
    def device(self) -> torch.device:
        """The GPU of this rank, or the CPU."""
        import torch

        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else _cpu()

    def __enter__(self) -> Self:
        for folder in (self.run_dir, self.result_dir, self.checkpoint_dir):
            folder.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._handlers[number] = signal.signal(number, self._ask_to_stop)
        if self.is_main and PipesEnvVarParamsLoader().is_dagster_pipes_process():
            self._pipes = open_dagster_pipes()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, SystemExit):
            failure = "refused" if isinstance(error, ConfigError) else "failure"
            record_failure(self.run_dir, failure, "".join(traceback.format_exception(error)))
        self._record_memory()
        if self._distributed and kind is None:
            import torch.distributed as dist

            dist.barrier()  # a rank that leaves early would break the last collective of the others
        self._tracker.close(failed=error is not None and not isinstance(error, SystemExit))
        if self._pipes is not None:
            self._pipes.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._distributed:
            _leave(error)

    def _record_memory(self) -> None:
        """Write ``memory/rank<r>.json``: peaks of this process and its largest child, in GB."""
        kilobytes = sum(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        peaks = {"host": kilobytes * 1024 / 1e9, "gpu": _gpu_memory() / 1e9}
        folder = self.run_dir / "memory"
        folder.mkdir(exist_ok=True)
        with atomic_write(folder / f"rank{self.rank}.json") as aside:
            aside.write_text(json.dumps(peaks))

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_requested = True

    def init_distributed(self) -> None:
        """Initialize torch.distributed (nccl or gloo) if torchrun started several ranks."""
        if self.world_size == 1:
            return
        import torch
        import torch.distributed as dist

        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self._distributed = True

    @property
    def stop_requested(self) -> bool:
        """Whether a signal or the file ``stop`` asked this rank to stop."""
        now = time.monotonic()
        if now - self._last_look >= STOP_SECONDS:
            self._last_look = now
            self._stop_requested |= (self.run_dir / STOP_FILE).exists()
        return self._stop_requested

    @stop_requested.setter
    def stop_requested(self, value: bool) -> None:
        self._stop_requested = value

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop. A collective: all ranks get the same answer."""
        if not self._distributed:
            return self.stop_requested
        import torch
        import torch.distributed as dist

        flag = torch.tensor(float(self.stop_requested), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def stopped(self) -> NoReturn:
        """Exit with :data:`STOPPED`. The program has saved, and resumes when it is started
        again."""
        if self.is_main:
            (self.run_dir / STOP_FILE).unlink(missing_ok=True)
        self.note("stopped on request; run again to resume")
        raise SystemExit(STOPPED)

    def note(self, text: str) -> None:
        """Print one line to the terminal and to the log of Dagster (rank 0)."""
        if not self.is_main:
            return
        if self._pipes is not None:
            self._pipes.log.info(text)
        print(text, file=sys.stderr, flush=True)

    def progress(
        self, items: Iterable[T], what: str, *, total: int | None = None, start: int = 0
    ) -> Iterator[T]:
        """Iterate over ``items`` and report progress (rank 0). ``start`` items were done before.

        Lines have the time left, from the mean time of an item since this call, and the newest
        metrics of :data:`SHOWN`.
        """
        if total is None:
            total = start + len(items) if hasattr(items, "__len__") else None  # type: ignore[arg-type]
        if not self.is_main:
            yield from items
            return
        bar = tqdm(total=total, initial=start, desc=what, disable=not sys.stderr.isatty())
        report = self._progress_reporter(what, total, start)
        done = start
        with bar:
            for item in items:
                yield item
                done += 1
                bar.set_postfix_str(", ".join(figures(self._newest)), refresh=False)
                bar.update()
                report(done)
        report(done, True)

    def _progress_reporter(self, what: str, total: int | None, start: int) -> Callable[..., None]:
        started = time.monotonic()
        last = [started]

        def report(done: int, final: bool = False) -> None:
            now = time.monotonic()
            if not final and now - last[0] < REPORT_SECONDS:
                return
            last[0] = now
            record: dict[str, Any] = {"what": what, "done": done, "total": total}
            if total is not None and start < done < total:
                left = (now - started) / (done - start) * (total - done)
                record["seconds_left"] = round(left)
            if self._newest:
                record["metrics"] = dict(self._newest)
            self._append("progress.jsonl", record)
            if self._pipes is not None and (final or now - self._last_pipes >= PIPES_SECONDS):
                self._last_pipes = now
                self._pipes.log.info(f"{what}: {progress_line(record)}")

        return report

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append the numbers of one step to ``metrics.jsonl`` (rank 0)."""
        if self.is_main:
            self._append("metrics.jsonl", {"step": step, **values})
            self._newest |= {name: values[name] for name in SHOWN if name in values}
            self._tracker.log(step, values)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows as a table of W&B, if it is on (rank 0)."""
        if self.is_main:
            self._tracker.table(name, rows)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write ``result.json``: the files in ``result/`` are complete (rank 0)."""
        if not self.is_main:
            return
        with atomic_write(self.run_dir / RESULT_FILE) as aside:
            aside.write_text(json.dumps(dict(facts), indent=2, sort_keys=True) + "\n")

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with (self.run_dir / name).open("a") as stream:
            stream.write(json.dumps(record) + "\n")


def figures(metrics: Mapping[str, float]) -> list[str]:
    """``loss 3.213``, ``1,234 tokens/s``: the metrics of :data:`SHOWN`, in its order."""
    return [
        f"{metrics[name]:,.0f} {label}" if "/" in label else f"{label} {metrics[name]:,.4g}"
        for name, label in SHOWN.items()
        if name in metrics
    ]


def progress_line(record: Mapping[str, Any]) -> str:
    """``300/2400, loss 3.213, 12 min left``: a line of ``progress.jsonl`` without its ``what``."""
    total = record["total"] if record["total"] is not None else "?"
    left = record.get("seconds_left")
    return ", ".join(
        [
            f"{record['done']}/{total}",
            *figures(record.get("metrics", {})),
            *([f"{duration(left)} left"] if left is not None else []),
        ]
    )


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def record_failure(run_dir: Path, kind: str, text: str) -> None:
    """Write ``<kind>-<nanoseconds>-rank<r>.txt``. The first file by name is the first failure."""
    rank = os.environ.get("RANK", "0")
    (run_dir / f"{kind}-{time.time_ns()}-rank{rank}.txt").write_text(text)


def _gpu_memory() -> int:
    """Peak of the bytes reserved by torch on the GPU of this rank; 0 without a GPU."""
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    return int(torch.cuda.max_memory_reserved()) if torch is not None and used else 0


def _leave(error: BaseException | None) -> NoReturn:
    """End this process like the interpreter does, but without destructors.

    The destructor of a gloo group joins its threads while it holds the GIL, for which they may
    wait. This deadlock was seen once: a rank finished after 850 steps and never ended.
    """
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 1
    elif error is not None:
        traceback.print_exception(error)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


METRICS_FILE = "metrics.jsonl"
WINDOW = 1 << 16  # bytes; some 200 lines


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a ``metrics.jsonl``, one per line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def publish_metrics(run_dir: Path, result: Path, without: Collection[str]) -> None:
    """Copy the metrics of a run to ``result``, except the keys in ``without``.

    Those depend on the machine, such as speed. Without them, two runs that give the same weights
    have the same content digest.
    """
    lines = [
        json.dumps({name: value for name, value in record.items() if name not in without}) + "\n"
        for record in read_metrics(run_dir / METRICS_FILE)
    ]
    (result / METRICS_FILE).write_text("".join(lines))


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after ``step``, which a restart writes again.

    An incomplete last line is dropped as well. The file is read from its end, so that the time does
    not depend on its length.
    """
    if not path.is_file():
        return
    window = WINDOW
    with path.open("r+b") as stream:
        size = path.stat().st_size
        while True:
            start = max(0, size - window)
            stream.seek(start)
            tail = stream.read()
            first = tail.find(b"\n") + 1 if start else 0  # the window may start inside a line
            kept = _end_of(tail, first, step)
            if kept > first or not start:
                stream.truncate(start + kept)
                return
            window *= 2


def _end_of(tail: bytes, first: int, step: int) -> int:
    """The end of the last complete line with a step <= ``step``; ``first`` if there is none."""
    end = tail.rfind(b"\n") + 1
    while end > first:
        start = tail.rfind(b"\n", first, end - 1) + 1 or first
        if json.loads(tail[start:end])["step"] <= step:
            return end
        end = start
    return first
