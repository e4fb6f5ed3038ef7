"""All rewards of a recipe at once: a rollout in, a verdict each out.

The rollout is cut into tasks, a reward and some completions each, which run beside each other in
threads of this process (the models leave Python's lock) or in worker processes
(``reward_workers.py``). Cuts depend on nothing but the rollout, so that the same scores come out of
any number of threads or workers. What is silent, empty or never ended scores zero in all.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tts_assets.rlhf.reward_config import RewardConfig, SimilarityReward, WerReward
from tts_assets.rlhf.reward_workers import WorkerRunner, devices_of
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

EMPTY_WER = 5.0  # the reference trainer's, for audio in which there is nothing to recognize
CHUNK = 8  # completions a task: some seconds of work, and what a death of a worker costs
References = Callable[["Voice | None"], NDArray[np.float32]]


class TaskRunner(Protocol):
    """Who does the tasks."""

    def score(self, tasks: Sequence[ScoringTask]) -> list[list[Score]]: ...

    def close(self) -> None: ...


class ThreadRunner:
    """Tasks in ``threads`` threads of this process, with one model a reward for all of them."""

    def __init__(self, rewards: Sequence[RewardConfig], threads: int) -> None:
        self.rewards: dict[str, RewardFunction] = {
            config.name: build_reward(config, parallel=threads) for config in rewards
        }
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="reward")

    def score(self, tasks: Sequence[ScoringTask]) -> list[list[Score]]:
        """Scores of each task's completions. Raises :class:`RewardError`, as the workers do."""
        return list(self.pool.map(self._done, tasks))

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def _done(self, task: ScoringTask) -> list[Score]:
        try:
            return self.rewards[task.reward](task.spoken)
        except RewardError as error:
            raise RewardError(f"reward {task.reward}: {error}") from error
        except Exception as error:  # the trainer saves what it has, and ends with it
            raise RewardError(f"reward {task.reward}: {traceback.format_exc()}") from error


class RewardExecutor:
    """All rewards of a recipe, and how they are combined."""

    def __init__(
        self,
        rewards: Sequence[RewardConfig],
        judges: TaskRunner,
        references: References | None = None,
        combine: Combine = "sum",
    ) -> None:
        """``references`` gives the wave of a voice prompt; the similarity reward needs it."""
        self.rewards, self.judges, self.combine = rewards, judges, combine
        compares = any(isinstance(reward, SimilarityReward) for reward in rewards)
        self.references = references if compares else None

    @classmethod
    def open(cls, recipe: RlhfRecipe, model: ServedModel, rank: int = 0) -> Self:
        """The panel of a recipe for one rank of the trainer; close it in the end."""
        import torch

        judges: TaskRunner
        if recipe.reward_workers:
            devices = devices_of(rank, recipe.reward_workers, recipe.reward_devices)
            judges = WorkerRunner(recipe.rewards, devices, recipe.reward_seconds)
        else:
            judges = ThreadRunner(recipe.rewards, torch.get_num_threads())
        return cls(recipe.rewards, judges, prompt_waves(model), recipe.combine)

    def judge(self, spoken: Sequence[DecodedCompletion]) -> list[RewardResult]:
        """One verdict a completion."""
        usable = [i for i, one in enumerate(spoken) if one.usable]
        heard = [self._with_reference(spoken[i]) for i in usable]
        tasks = [
            ScoringTask(reward.name, heard[start : start + size])
            for reward in self.rewards
            for size in [chunk_of(reward)]
            for start in range(0, len(heard), size)
        ]
        scores: dict[str, list[Score]] = {reward.name: [] for reward in self.rewards}
        for task, found in zip(tasks, self.judges.score(tasks), strict=True):
            scores[task.reward] += found
        place = {i: number for number, i in enumerate(usable)}
        return [
            self._verdict({name: own[place[i]] for name, own in scores.items()})
            if i in place
            else self._nothing()
            for i in range(len(spoken))
        ]

    def close(self) -> None:
        self.judges.close()

    def _with_reference(self, spoken: DecodedCompletion) -> DecodedCompletion:
        if self.references is None:
            return spoken
        return replace(spoken, reference=self.references(spoken.voice))

    def _verdict(self, scores: Mapping[str, Score]) -> RewardResult:
        recognized = next((s for s in scores.values() if s.error is not None), None)
        rewards = {name: score.value for name, score in scores.items()}
        return RewardResult(
            rewards,
            combined(rewards, self._weights, self.combine),
            recognized.error if recognized else None,
            recognized.heard if recognized else "",
        )

    def _nothing(self) -> RewardResult:
        recognizes = any(isinstance(reward, WerReward) for reward in self.rewards)
        zeros = {reward.name: 0.0 for reward in self.rewards}
        return RewardResult(zeros, 0.0, EMPTY_WER if recognizes else None, "")

    @property
    def _weights(self) -> dict[str, float]:
        return {reward.name: reward.weight for reward in self.rewards}


def combined(rewards: Mapping[str, float], weights: Mapping[str, float], combine: Combine) -> float:
    """The weighted sum, or the weighted harmonic mean: zero as soon as one of them is zero.

    What has weight 0 takes no part.
    """
    counted = [(weights[name], value) for name, value in rewards.items() if weights[name]]
    if combine == "sum":
        return sum(weight * value for weight, value in counted)
    if min(value for _, value in counted) <= 0:
        return 0.0
    return sum(weight for weight, _ in counted) / sum(weight / value for weight, value in counted)


def chunk_of(reward: RewardConfig) -> int:
    return reward.batch_size if isinstance(reward, WerReward) else CHUNK


def prompt_waves(model: ServedModel) -> References:
    """Decodes voice prompts, each once; none stands for the model's first voice."""

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
