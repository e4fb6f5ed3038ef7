"""Computes all rewards of a recipe for a batch of completions, and combines them.

The batch is split into tasks: one reward and a few completions each. Tasks run side by side in
threads of this process (the models release Python's lock), or in worker processes
(``reward_workers.py``). The split depends on the completions alone, so any number of threads or
workers returns the same scores. Completions without an end token and silent ones score 0 in all
rewards.
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
