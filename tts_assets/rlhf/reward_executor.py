"""Computes all rewards of a recipe for a batch of completions, and combines them.

The batch is split into tasks: one reward and a few completions each. Tasks run side by side in
threads of this process (the models release Python's lock), or in worker processes, each with its
own device. The split depends on the completions alone, so any number of threads or workers returns
the same scores. Completions without an end token and silent ones score 0 in all rewards.

A worker that dies or exceeds the time limit is replaced, and its task is repeated. After two deaths
a task is split into single completions. A single completion with two more deaths ends the run, and
the error names it.

Run as a program, this module is a worker. It reads from a pipe that only the trainer holds, so it
ends when the trainer ends for any reason. First come the configurations and the device, then tasks:
the name of a reward and its completions. It answers with a list of scores, or with the text of an
error. Both sides exchange pickles; a worker reads only from the process that started it. Workers
ignore SIGTERM and SIGINT: these ask the trainer to stop, which first finishes its step and then
closes the pipe.
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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from tts_assets.core.processes import reap
from tts_assets.rlhf.reward_config import RewardConfig, SimilarityReward, WerReward
from tts_assets.rlhf.rewards import (
    DecodedCompletion,
    RewardError,
    RewardFunction,
    RewardResult,
    Score,
    ScoringTask,
    build_reward,
)

if TYPE_CHECKING:
    from tts_assets.rlhf.config import Combine, RlhfRecipe
    from tts_assets.serving.config import Voice
    from tts_assets.serving.served_model import ServedModel

PROGRAM = "tts_assets.rlhf.reward_executor"
MAX_DEATHS = 2  # of workers with the same completions, before the task is split or fails
TASK_SECONDS = 600.0  # time limit of a task; the first task of a reward includes loading its model
GRACE_SECONDS = 5.0  # between closing the pipe and SIGKILL
PARENT_SECONDS = 1.0  # between two checks that the trainer is alive


class WorkerRunner:
    """Runs scoring tasks in one worker process for each device.

    A worker loads the models of a reward with its first task.
    """

    def __init__(
        self,
        rewards: Sequence[RewardConfig],
        devices: Sequence[str],
        seconds: float = TASK_SECONDS,
    ) -> None:
        """``seconds``: time limit of a task."""
        self.rewards, self.seconds = rewards, seconds
        self.workers = [RewardWorker(rewards, device) for device in devices]
        self.restarted = 0

    def score(self, tasks: Sequence[ScoringTask]) -> list[list[Score]]:
        """Returns the scores of each task's completions.

        Raises :class:`RewardError` if a reward function fails, or if two workers died with the same
        completion. All workers are closed then.
        """
        scores: list[list[Score | None]] = [[None] * len(task.completions) for task in tasks]
        chunks = [TaskChunk(i, 0, task.reward, task.completions) for i, task in enumerate(tasks)]
        queue = deque(chunks)
        try:
            while queue or any(worker.chunk for worker in self.workers):
                for index, worker in enumerate(self.workers):
                    if queue and worker.chunk is None:
                        self._assign(index, queue)
                for index in self._ready():
                    self._receive(index, queue, scores)
        except BaseException:
            self.close()
            raise
        return cast(list[list[Score]], scores)

    def close(self) -> None:
        """Ends all workers."""
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            worker.end()

    def _assign(self, index: int, queue: deque[TaskChunk]) -> None:
        chunk = queue.popleft()
        try:
            self.workers[index].assign(chunk)
        except OSError:
            self._replace(index, queue)

    def _ready(self) -> list[int]:
        """Waits for workers that have an answer or are dead. Kills those over the time limit."""
        busy = {w.connection: index for index, w in enumerate(self.workers) if w.chunk}
        if not busy:
            return []
        ends = {index: self.workers[index].started + self.seconds for index in busy.values()}
        ready = wait(list(busy), max(0.0, min(ends.values()) - time.monotonic()))
        if ready:
            return [busy[cast(Connection, one)] for one in ready]
        late = [index for index, end in ends.items() if end <= time.monotonic()]
        for index in late:
            print(f"a reward worker exceeded {self.seconds:g} s", file=sys.stderr, flush=True)
            self.workers[index].process.kill()
            self.workers[index].process.wait()
        return late

    def _receive(
        self, index: int, queue: deque[TaskChunk], scores: Sequence[list[Score | None]]
    ) -> None:
        worker = self.workers[index]
        try:
            answer: Any = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(index, queue)
            return
        chunk, worker.chunk = worker.chunk, None
        assert chunk is not None
        if isinstance(answer, str):  # the text of an error
            raise RewardError(f"reward {chunk.reward}: {answer}")
        scores[chunk.task][chunk.first : chunk.first + len(answer)] = answer

    def _replace(self, index: int, queue: deque[TaskChunk]) -> None:
        """Starts a worker in place of a dead one, and puts its chunk back into the queue."""
        worker = self.workers[index]
        chunk = worker.chunk
        worker.end()
        status = worker.process.returncode
        assert chunk is not None
        chunk.deaths += 1
        print(
            f"a reward worker ended with status {status} at {chunk.reward}; it is replaced",
            file=sys.stderr,
            flush=True,
        )
        if chunk.deaths < MAX_DEATHS:
            queue.appendleft(chunk)
        elif len(chunk.completions) > 1:
            queue.extendleft(reversed(chunk.singles()))
        else:
            one = chunk.completions[0]
            raise RewardError(
                f"reward {chunk.reward}: workers ended {MAX_DEATHS} times (status {status}) while "
                f"scoring the completion of {one.text!r} ({one.seconds:.1f} s of audio). If memory "
                "was short, use fewer reward_workers or a smaller model. A worker may take "
                f"{self.seconds:g} s for a task. Materialize again to resume"
            )
        self.workers[index] = RewardWorker(self.rewards, worker.device)
        self.restarted += 1


@dataclass
class TaskChunk:
    """Completions of a task that are not scored yet.

    ``first`` is the index of the first one in the task, ``deaths`` the number of workers that died
    with this chunk.
    """

    task: int
    first: int
    reward: str
    completions: Sequence[DecodedCompletion]
    deaths: int = 0

    def singles(self) -> list[TaskChunk]:
        """Returns a chunk for each completion."""
        return [
            TaskChunk(self.task, self.first + i, self.reward, [one])
            for i, one in enumerate(self.completions)
        ]


class RewardWorker:
    """A worker process, the trainer's end of its pipe, and its current chunk."""

    def __init__(self, rewards: Sequence[RewardConfig], device: str) -> None:
        self.device = device
        self.chunk: TaskChunk | None = None
        self.started = 0.0  # time.monotonic() when the chunk was assigned
        self.connection, remote = Pipe()
        with remote:
            self.process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, str(remote.fileno()), str(os.getpid())],
                pass_fds=[remote.fileno()],
                stdin=subprocess.DEVNULL,
                # The worker finds the user's functions on the trainer's path.
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )
        self.setup: tuple[tuple[RewardConfig, ...], str] | None = (tuple(rewards), device)

    def assign(self, chunk: TaskChunk) -> None:
        """Sends a chunk to the process. Raises OSError if the process is dead."""
        self.chunk, self.started = chunk, time.monotonic()
        if self.setup is not None:
            self.connection.send(self.setup)
            self.setup = None
        self.connection.send((chunk.reward, list(chunk.completions)))

    def end(self) -> None:
        """Closes the pipe, which ends the process; kills it after a grace period."""
        self.connection.close()
        reap(self.process, GRACE_SECONDS)


def devices_of(rank: int, workers: int, devices: Sequence[str]) -> list[str]:
    """Returns the device of each worker of ``rank``.

    The workers of all ranks take turns over ``devices``; without devices they use the CPU.
    """
    available = devices or ["cpu"]
    return [available[(rank * workers + number) % len(available)] for number in range(workers)]


def main() -> None:
    """Runs a worker. Arguments: the pipe's file descriptor and the trainer's process id."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    pipe, trainer = map(int, sys.argv[1:])
    threading.Thread(target=exit_with_parent, args=(trainer,), daemon=True).start()
    try:
        serve(Connection(pipe))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the trainer has closed the pipe


def serve(connection: Connection) -> NoReturn:
    """Scores tasks until the pipe is closed, which raises EOFError."""
    rewards, device = connection.recv()
    configs = {config.name: config for config in rewards}
    loaded: dict[str, RewardFunction] = {}
    while True:
        name, completions = connection.recv()
        try:
            if name not in loaded:
                loaded[name] = build_reward(configs[name], device)
            answer: object = loaded[name](completions)
        except RewardError as error:
            answer = str(error)
        except Exception:  # noqa: BLE001 - the trainer raises it
            answer = traceback.format_exc()
        connection.send(answer)


def exit_with_parent(trainer: int) -> NoReturn:
    """Ends this process as soon as the trainer is gone, even inside an endless loop."""
    while os.getppid() == trainer:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


EMPTY_WER = 5.0  # WER of unusable completions, as in the reference trainer
TASK_COMPLETIONS = 8  # some seconds of work; it is repeated if a worker dies
References = Callable[["Voice | None"], NDArray[np.float32]]  # voice prompt -> waveform (samples,)


class TaskRunner(Protocol):
    """Runs scoring tasks, in threads or in processes."""

    def score(self, tasks: Sequence[ScoringTask]) -> list[list[Score]]:
        """Returns the scores of each task. Raises :class:`RewardError`."""
        ...

    def close(self) -> None:
        """Releases threads or processes."""
        ...


class ThreadRunner:
    """Runs tasks in ``threads`` threads of this process, with one model for each reward."""

    def __init__(self, rewards: Sequence[RewardConfig], threads: int) -> None:
        self.rewards: dict[str, RewardFunction] = {
            config.name: build_reward(config, parallel=threads) for config in rewards
        }
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="reward")

    def score(self, tasks: Sequence[ScoringTask]) -> list[list[Score]]:
        """Returns the scores of each task's completions. Raises :class:`RewardError`."""
        return list(self.threads.map(self._score, tasks))

    def close(self) -> None:
        """Ends the threads; tasks that have not started are cancelled."""
        self.threads.shutdown(cancel_futures=True)

    def _score(self, task: ScoringTask) -> list[Score]:
        try:
            return self.rewards[task.reward](task.completions)
        except RewardError as error:
            raise RewardError(f"reward {task.reward}: {error}") from error
        except Exception as error:  # the trainer saves a checkpoint and ends with this error
            raise RewardError(f"reward {task.reward}: {traceback.format_exc()}") from error


class RewardExecutor:
    """Scores completions with all rewards of a recipe."""

    def __init__(
        self,
        rewards: Sequence[RewardConfig],
        runner: TaskRunner,
        references: References | None = None,
        combine: Combine = "sum",
    ) -> None:
        """``references`` returns the waveform of a voice prompt, for the similarity reward."""
        self.rewards, self.runner, self.combine = rewards, runner, combine
        needs_reference = any(isinstance(reward, SimilarityReward) for reward in rewards)
        self.references = references if needs_reference else None

    @classmethod
    def open(cls, recipe: RlhfRecipe, model: ServedModel, rank: int = 0) -> Self:
        """Opens the rewards of a recipe for one rank of the trainer. The caller closes them."""
        import torch

        runner: TaskRunner
        if recipe.reward_workers:
            devices = devices_of(rank, recipe.reward_workers, recipe.reward_devices)
            runner = WorkerRunner(recipe.rewards, devices)
        else:
            runner = ThreadRunner(recipe.rewards, torch.get_num_threads())
        return cls(recipe.rewards, runner, prompt_waves(model), recipe.combine)

    def score(self, completions: Sequence[DecodedCompletion]) -> list[RewardResult]:
        """Returns one result for each completion, in their order. Raises :class:`RewardError`."""
        usable = [i for i, one in enumerate(completions) if one.usable]
        batch = [self._with_reference(completions[i]) for i in usable]
        tasks = [
            ScoringTask(reward.name, batch[start : start + size])
            for reward in self.rewards
            for size in [task_size(reward)]
            for start in range(0, len(batch), size)
        ]
        scores: dict[str, list[Score]] = {reward.name: [] for reward in self.rewards}
        for task, values in zip(tasks, self.runner.score(tasks), strict=True):
            scores[task.reward] += values
        results = [self._unusable()] * len(completions)
        for number, i in enumerate(usable):
            results[i] = self._result({name: values[number] for name, values in scores.items()})
        return results

    def close(self) -> None:
        """Releases the threads or ends the workers."""
        self.runner.close()

    def _with_reference(self, completion: DecodedCompletion) -> DecodedCompletion:
        if self.references is None:
            return completion
        return replace(completion, reference=self.references(completion.voice))

    def _result(self, scores: Mapping[str, Score]) -> RewardResult:
        recognized = next((s for s in scores.values() if s.error_rate is not None), None)
        rewards = {name: score.value for name, score in scores.items()}
        weights = {reward.name: reward.weight for reward in self.rewards}
        return RewardResult(
            rewards,
            combine_rewards(rewards, weights, self.combine),
            recognized.error_rate if recognized else None,
            recognized.transcript if recognized else "",
        )

    def _unusable(self) -> RewardResult:
        has_wer = any(isinstance(reward, WerReward) for reward in self.rewards)
        zeros = {reward.name: 0.0 for reward in self.rewards}
        return RewardResult(zeros, 0.0, EMPTY_WER if has_wer else None, "")


def combine_rewards(
    rewards: Mapping[str, float], weights: Mapping[str, float], combine: Combine
) -> float:
    """Returns the weighted sum or the weighted harmonic mean of the rewards.

    Rewards of weight 0 are ignored. The harmonic mean is 0 if one reward is 0.
    """
    counted = [(weights[name], value) for name, value in rewards.items() if weights[name]]
    if combine == "sum":
        return sum(weight * value for weight, value in counted)
    if min(value for _, value in counted) <= 0:
        return 0.0
    return sum(weight for weight, _ in counted) / sum(weight / value for weight, value in counted)


def task_size(reward: RewardConfig) -> int:
    """Returns the largest number of completions in a task of ``reward``."""
    return reward.batch_size if isinstance(reward, WerReward) else TASK_COMPLETIONS


def prompt_waves(model: ServedModel) -> References:
    """Returns a function that decodes voice prompts; each is decoded once.

    For None it returns the model's first voice, and raises ValueError if the model has none.
    """

    @lru_cache(maxsize=512)
    def wave_of(voice: Voice | None) -> NDArray[np.float32]:
        if voice is None:
            voices = model.card.voices
            if not voices:
                raise ValueError(
                    "the similarity reward needs a voice: the serving model has none registered, "
                    "set serving.voices, or use prompts with voice_prompts"
                )
            voice = voices[min(voices)]
        return model.codec.decode([np.asarray(voice.codes)])[0]

    return wave_of


if __name__ == "__main__":
    main()
