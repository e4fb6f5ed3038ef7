"""Rewards in processes of their own, on devices of their own.

Each worker runs ``reward_worker.py`` and gets a task whenever it has none. One that dies, killed or
out of memory, is started again, and its task is done again; one that takes too long for its task is
killed. A task that ends two workers is cut into single completions; one that ends two more by
itself ends the run, with an error that names it.

Workers read from a pipe that nobody else holds: they end when it closes, however the trainer ended.

A worker that judges: ``reward_workers.py`` gives it a pipe and the trainer's process id.

Reads the configurations of the rewards and its device, then tasks: the name of a reward and its
completions. Answers with their scores, or with the text of an error. The bytes are pickles, of the
process that started this one and of no other.

It does not heed SIGTERM and SIGINT, which ask the trainer to stop: that finishes its step first,
and then closes the pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, cast

from tts_assets.core.processes import reap
from tts_assets.rlhf.reward_config import RewardConfig
from tts_assets.rlhf.rewards import (
    DecodedCompletion,
    RewardError,
    RewardFunction,
    Score,
    ScoringTask,
    build_reward,
)

LOOK_SECONDS = 1.0  # between two looks whether the trainer lives


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    pipe, trainer = map(int, sys.argv[1:])
    threading.Thread(target=end_with, args=(trainer,), daemon=True).start()
    try:
        serve(Connection(pipe))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the trainer has closed the pipe


def serve(connection: Connection) -> NoReturn:
    """Do tasks until the pipe is closed, which raises EOFError."""
    rewards, device = connection.recv()
    configs = {config.name: config for config in rewards}
    known: dict[str, RewardFunction] = {}
    while True:
        name, spoken = connection.recv()
        try:
            if name not in known:
                known[name] = build_reward(configs[name], device)
            answer: object = known[name](spoken)
        except RewardError as error:
            answer = str(error)
        except Exception:  # noqa: BLE001 - told to the trainer, which ends
            answer = traceback.format_exc()
        connection.send(answer)


def end_with(trainer: int) -> NoReturn:
    """End this process as soon as its parent is gone, whatever it is doing."""
    while os.getppid() == trainer:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


PROGRAM = "tts_assets.rlhf.reward_workers"
DEATHS = 2  # of workers at the same completions, before these are cut or given up
GRACE_SECONDS = 5.0


@dataclass
class TaskChunk:
    """Completions of a task that are still to be scored: ``first`` is where they lie in it."""

    task: int
    first: int
    spoken: Sequence[DecodedCompletion]
    deaths: int = 0

    def singles(self) -> list[TaskChunk]:
        return [TaskChunk(self.task, self.first + i, [one]) for i, one in enumerate(self.spoken)]


class RewardWorker:
    """A process, our end of its pipe, and what it is doing."""

    def __init__(self, rewards: Sequence[RewardConfig], device: str) -> None:
        self.device = device
        self.part: TaskChunk | None = None
        self.since = 0.0  # when it got its part
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # the functions of a recipe are found where the trainer finds them
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )
        self.hello = (tuple(rewards), device)
        self.greeted = False

    def give(self, task: ScoringTask, part: TaskChunk) -> None:
        """Hand over a part; raises OSError if the process is gone."""
        self.part, self.since = part, time.monotonic()
        if not self.greeted:
            self.connection.send(self.hello)
            self.greeted = True
        self.connection.send((task.reward, list(part.spoken)))

    def end(self) -> None:
        """Close the pipe, on which the process ends; one that does not is killed."""
        self.connection.close()
        reap(self.process, GRACE_SECONDS)


class WorkerRunner:
    """A worker a device; each loads the models of the rewards that it is asked for, which counts
    among the ``seconds`` that it may take for a task."""

    def __init__(
        self, rewards: Sequence[RewardConfig], devices: Sequence[str], seconds: float = 600.0
    ) -> None:
        self.rewards, self.seconds = rewards, seconds
        self.workers = [RewardWorker(rewards, device) for device in devices]
        self.restarted = 0

    def score(self, tasks: Sequence[ScoringTask]) -> list[list[Score]]:
        """Scores of each task's completions. Raises :class:`RewardError`."""
        scores: list[list[Score | None]] = [[None] * len(task.spoken) for task in tasks]
        todo = deque(TaskChunk(number, 0, task.spoken) for number, task in enumerate(tasks))
        try:
            while todo or any(worker.part for worker in self.workers):
                for place, worker in enumerate(self.workers):
                    if todo and worker.part is None:
                        self._give(place, tasks, todo)
                for place in self._answered():
                    self._take(place, tasks, todo, scores)
        except BaseException:
            self.close()
            raise
        return cast(list[list[Score]], scores)

    def close(self) -> None:
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            worker.end()

    def _give(self, place: int, tasks: Sequence[ScoringTask], todo: deque[TaskChunk]) -> None:
        part = todo.popleft()
        try:
            self.workers[place].give(tasks[part.task], part)
        except OSError:
            self._bury(place, tasks, todo)

    def _answered(self) -> list[int]:
        """Workers that have an answer, or are dead, or have just been killed."""
        busy = {w.connection: place for place, w in enumerate(self.workers) if w.part}
        if not busy:
            return []
        ends = {place: self.workers[place].since + self.seconds for place in busy.values()}
        ready = wait(list(busy), max(0.0, min(ends.values()) - time.monotonic()))
        if ready:
            return [busy[cast(Connection, one)] for one in ready]
        late = [place for place, end in ends.items() if end <= time.monotonic()]
        for place in late:
            print(f"a reward worker took over {self.seconds:g} s", file=sys.stderr, flush=True)
            self.workers[place].process.kill()
            self.workers[place].process.wait()
        return late

    def _take(
        self,
        place: int,
        tasks: Sequence[ScoringTask],
        todo: deque[TaskChunk],
        scores: Sequence[list[Score | None]],
    ) -> None:
        worker = self.workers[place]
        try:
            answer: Any = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(place, tasks, todo)
            return
        part, worker.part = worker.part, None
        assert part is not None
        if isinstance(answer, str):  # the traceback of its error
            raise RewardError(f"reward {tasks[part.task].reward}: {answer}")
        scores[part.task][part.first : part.first + len(answer)] = answer

    def _bury(self, place: int, tasks: Sequence[ScoringTask], todo: deque[TaskChunk]) -> None:
        """Start another worker in the place of a dead one, and have its part done again."""
        worker = self.workers[place]
        part = worker.part
        worker.end()
        status = worker.process.returncode
        assert part is not None
        part.deaths += 1
        reward = tasks[part.task].reward
        print(
            f"a reward worker ended with status {status} at {reward}; another is started",
            file=sys.stderr,
            flush=True,
        )
        if part.deaths < DEATHS:
            todo.appendleft(part)
        elif len(part.spoken) > 1:
            todo.extendleft(reversed(part.singles()))
        else:
            raise RewardError(
                f"reward {reward}: workers ended {DEATHS} times (status {status}) while judging "
                f"{describe(part.spoken[0])}. If they were short of memory, take fewer "
                f"reward_workers or a smaller model; if {self.seconds:g} s are too short, raise "
                "reward_seconds; the run can be started again"
            )
        self.workers[place] = RewardWorker(self.rewards, worker.device)
        self.restarted += 1


def describe(spoken: DecodedCompletion) -> str:
    return f"the completion of {spoken.text!r} ({spoken.seconds:.1f} s of audio)"


def devices_of(rank: int, workers: int, devices: Sequence[str]) -> list[str]:
    """Of the ``workers`` workers of a rank: in turn over ``devices``, all ranks together."""
    among = devices or ["cpu"]
    return [among[(rank * workers + number) % len(among)] for number in range(workers)]


if __name__ == "__main__":
    main()
