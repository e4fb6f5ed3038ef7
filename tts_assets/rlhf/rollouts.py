"""Rollouts: the policy completes prompts, the codec decodes them, reward functions score them.

The seed of a completion follows from the recipe's seed, the step, and the index in the global
batch. It does not depend on the number of ranks.

Held-out prompts are chosen by a hash of their text: neither the order of the prompts nor other
prompts change the choice. Each evaluation uses the same texts and seeds, so that only the policy
differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from tts_assets.audio_models.wer import normalize_for_match
from tts_assets.core.accounting import HashSplit, is_validation
from tts_assets.core.program import METRICS_FILE, Run, read_metrics
from tts_assets.rlhf.config import HeldOutConfig
from tts_assets.rlhf.prompts import PromptError, RolloutPrompt
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.rewards import DecodedCompletion, RewardResult
from tts_assets.rlhf.rollout_engine import RolloutEngine
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer, decode
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request

HELD_OUT_STEP = -1  # in the seeds of held-out completions: not a step of training
HELD_OUT_SALT = "1"  # of the hash that chooses held-out texts
SUFFIX = "_heldout"  # of the metrics of held-out prompts


@dataclass(frozen=True)
class Rollout:
    """One completion: its request, its tokens, its waveform, and its rewards."""

    request: Request
    completion: Completion
    decoded: DecodedCompletion
    result: RewardResult


def completion_seed(seed: int, step: int, index: int) -> int:
    """Returns a seed of 63 bits that depends on all three arguments."""
    digest = hashlib.blake2b(f"{seed}:{step}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class RolloutWorker:
    """Generates and scores the completions of one rank."""

    def __init__(
        self,
        synthesizer: Synthesizer,
        engine: RolloutEngine,
        rewards: RewardExecutor,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self.synthesizer = synthesizer
        self.engine = engine
        self.rewards = rewards
        self.sampling = sampling
        self.seed = seed

    def run(self, prompts: Sequence[RolloutPrompt], step: int, first_index: int) -> list[Rollout]:
        """Completes and scores prompts, in their order.

        All ranks call it together, even those without prompts: they may share an engine.

        Args:
            prompts: the prompts of this rank.
            step: part of the completions' seeds.
            first_index: index of the first prompt in the global batch.
        """
        requests = [
            self.synthesizer.request(
                SynthesisLine(
                    prompt.text,
                    prompt.voice,
                    completion_seed(self.seed, step, index),
                    language=prompt.language,
                ),
                self.sampling.seed,
            )
            for index, prompt in enumerate(prompts, start=first_index)
        ]
        completions = self.engine.complete(requests, self.sampling)
        decoded = self.decode(prompts, completions)
        results = self.rewards.score(decoded)
        return [
            Rollout(*parts) for parts in zip(requests, completions, decoded, results, strict=True)
        ]

    def decode(
        self, prompts: Sequence[RolloutPrompt], completions: Sequence[Completion]
    ) -> list[DecodedCompletion]:
        """Decodes the completions in one batch.

        A completion without an end token scores 0 in all rewards, so it is not decoded: its
        waveform is empty.
        """
        empty = np.zeros(0, dtype=np.int64)
        codes: list[NDArray[np.int64]] = [c.codes if c.ended else empty for c in completions]
        waves = decode(self.synthesizer.codec, codes, [prompt.voice for prompt in prompts])
        rate = self.synthesizer.sample_rate
        return [
            DecodedCompletion(
                prompt.text, wave, rate, completion.ended, prompt.voice, prompt.language
            )
            for prompt, wave, completion in zip(prompts, waves, completions, strict=True)
        ]


def hold_out(
    prompts: Sequence[RolloutPrompt], config: HeldOutConfig
) -> tuple[list[RolloutPrompt], list[RolloutPrompt]]:
    """Splits prompts into training prompts and held-out prompts.

    Prompts with the same words are on the same side. Each held-out text occurs once.

    Raises :class:`PromptError` if no prompt is left for training.
    """
    split = HashSplit(fraction=config.fraction, salt=HELD_OUT_SALT)
    by_text: dict[str, RolloutPrompt] = {}
    for prompt in prompts:
        by_text.setdefault(text_key(prompt), prompt)
    ordered = sorted(by_text, key=_text_order)
    held_out = [text for text in ordered if is_validation(text, split)][: config.prompts]
    excluded = set(held_out)
    training = [prompt for prompt in prompts if text_key(prompt) not in excluded]
    if not training:
        raise PromptError(
            f"all {len(by_text)} prompts are held out: give more, or a smaller heldout.fraction"
        )
    return training, [by_text[text] for text in held_out]


def text_key(prompt: RolloutPrompt) -> str:
    """Returns the language and the normalized words: equal for prompts of the same text."""
    return f"{prompt.language}:{normalize_for_match(prompt.text, prompt.language)}"


def _text_order(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


class HeldOutEvaluation:
    """Evaluates the policy on held-out prompts. All ranks call it at the same steps."""

    def __init__(
        self,
        run: Run,
        worker: RolloutWorker,
        prompts: Sequence[RolloutPrompt],
        samples: int,
        every: int,
    ) -> None:
        """Prepares the evaluation.

        Args:
            run: receives the metrics.
            worker: completes and scores the prompts of this rank.
            prompts: all held-out prompts.
            samples: completions of each prompt.
            every: optimizer updates between two evaluations.
        """
        self.run, self.worker, self.every = run, worker, every
        self.prompts = [prompt for prompt in prompts for _ in range(samples)]

    def due(self, update: int) -> bool:
        """Whether the policy is evaluated before this update."""
        return update % self.every == 0

    def measure(self, update: int) -> None:
        """Logs the mean reward and WER after ``update`` updates."""
        if not self.prompts:
            return
        size = -(-len(self.prompts) // self.run.world_size)
        first = self.run.rank * size
        rollouts = self.worker.run(self.prompts[first : first + size], HELD_OUT_STEP, first)
        values = held_out_means([one.result for one in rollouts], self.run.device)
        if self.run.is_main and not self._logged(update):
            self.run.metrics(update, values)

    def _logged(self, update: int) -> bool:
        """Whether the run logged this evaluation before it was interrupted."""
        path = self.run.run_dir / METRICS_FILE
        records = read_metrics(path) if path.is_file() else []
        return any(r["step"] == update and f"reward{SUFFIX}" in r for r in records)


def held_out_means(results: Sequence[RewardResult], device: torch.device) -> dict[str, float]:
    """Returns the mean reward and WER over all ranks. All ranks call it together."""
    columns: dict[str, list[float]] = {"reward": [one.total for one in results]}
    columns["wer"] = [min(1.0, one.wer) for one in results if one.wer is not None]
    sums = torch.tensor(
        [part for values in columns.values() for part in (sum(values), len(values))],
        dtype=torch.float64 if device.type == "cpu" else torch.float32,
        device=device,
    )
    if dist.is_initialized():
        dist.all_reduce(sums)
    pairs = zip(columns, sums.view(-1, 2).tolist(), strict=True)
    return {f"{name}{SUFFIX}": round(total / n, 6) for name, (total, n) in pairs if n}
