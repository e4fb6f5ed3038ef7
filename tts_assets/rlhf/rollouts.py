"""Rollouts: the policy speaks, the panel judges. Token ids in, token ids and log-probabilities out.

The engine is the policy itself in this process, or a vLLM engine that is given the policy's weights
before each rollout (``engines.py``). A completion's seed follows from (recipe seed, step,
place in the global batch): the same whatever the number of processes.

Prompts that are kept out of training, and what the policy makes of them.

A text is held out by its hash, so neither the order of the prompts nor what else is among them
decides. Each measurement says the same texts with the same seeds: what differs is the policy.
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
from tts_assets.core.program import Run, read_metrics
from tts_assets.core.split import ValidationSplit, is_validation
from tts_assets.rlhf.config import HeldOutConfig, RlhfRecipe
from tts_assets.rlhf.engines import RolloutEngine
from tts_assets.rlhf.prompts import PromptError, RolloutPrompt
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.rewards import DecodedCompletion, RewardResult
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer, decode
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request


@dataclass(frozen=True)
class Rollout:
    """One completion: prompt, tokens, sound, verdict."""

    request: Request
    completion: Completion
    spoken: DecodedCompletion
    verdict: RewardResult


def completion_seed(seed: int, step: int, place: int) -> int:
    """63 bits that depend on all three."""
    digest = hashlib.blake2b(f"{seed}:{step}:{place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class RolloutWorker:
    """Makes and judges completions on one process."""

    def __init__(
        self,
        synthesizer: Synthesizer,
        engine: RolloutEngine,
        panel: RewardExecutor,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self.synthesizer = synthesizer
        self.engine = engine
        self.panel = panel
        self.sampling = sampling
        self.seed = seed

    def run(self, prompts: Sequence[RolloutPrompt], step: int, first_place: int) -> list[Rollout]:
        """Complete and judge ``prompts``, the first of which is at ``first_place`` globally.

        Every rank calls it at once, also one that has no prompts: they may share an engine.
        """
        requests = [
            self.synthesizer.request(
                SynthesisLine(prompt.text, prompt.voice, completion_seed(self.seed, step, place)),
                self.sampling.seed,
                prompt.language,
            )
            for place, prompt in enumerate(prompts, start=first_place)
        ]
        completions = self.engine.complete(requests, self.sampling)
        spoken = self.listen(prompts, [completion.codes for completion in completions], completions)
        verdicts = self.panel.judge(spoken)
        return [
            Rollout(*parts) for parts in zip(requests, completions, spoken, verdicts, strict=True)
        ]

    def listen(
        self,
        prompts: Sequence[RolloutPrompt],
        codes: Sequence[NDArray[np.int64]],
        completions: Sequence[Completion],
    ) -> list[DecodedCompletion]:
        """One decode for all rewards; what never ended is not decoded, it scores zero anyway."""
        ended = [own if c.ended else own[:0] for own, c in zip(codes, completions, strict=True)]
        waves = decode(self.synthesizer.codec, ended, [prompt.voice for prompt in prompts])
        rate = self.synthesizer.sample_rate
        return [
            DecodedCompletion(
                prompt.text, wave, rate, completion.ended, prompt.voice, prompt.language
            )
            for prompt, wave, completion in zip(prompts, waves, completions, strict=True)
        ]


STEP = -1  # in the seeds of its completions: no step of training
SUFFIX = "_heldout"


def hold_out(
    prompts: Sequence[RolloutPrompt], config: HeldOutConfig
) -> tuple[list[RolloutPrompt], list[RolloutPrompt]]:
    """The prompts to train on, and those held out: one a text, in an order of its own.

    Raises :class:`PromptError` if none are left to train on.
    """
    split = ValidationSplit(fraction=config.fraction, salt=config.salt)
    texts: dict[str, RolloutPrompt] = {}
    for prompt in prompts:
        texts.setdefault(identity(prompt), prompt)
    chosen = [text for text in sorted(texts, key=_rank) if is_validation(text, split)]
    held = chosen[: config.prompts]
    trained = [prompt for prompt in prompts if identity(prompt) not in set(held)]
    if not trained:
        raise PromptError(
            f"all {len(texts)} prompts are held out: give more, or a smaller heldout.fraction"
        )
    return trained, [texts[text] for text in held]


class HeldOut:
    """Measures the policy on the held-out prompts; every rank has one and calls it at the same
    step, for its share of them."""

    def __init__(
        self, run: Run, recipe: RlhfRecipe, worker: RolloutWorker, prompts: Sequence[RolloutPrompt]
    ) -> None:
        self.run, self.worker = run, worker
        self.every = recipe.heldout.every * recipe.iterations
        self.prompts = [prompt for prompt in prompts for _ in range(recipe.heldout.samples)]

    def due(self, step: int) -> bool:
        """Whether the policy is measured before this update."""
        return step % self.every == 0

    def measure(self, step: int) -> None:
        """Report the means after ``step`` updates."""
        if not self.prompts:
            return
        share = -(-len(self.prompts) // self.run.world_size)
        first = self.run.rank * share
        own = self.prompts[first : first + share]
        rollouts = self.worker.run(own, STEP, first)
        values = summary([one.verdict for one in rollouts], self.run.device)
        if self.run.is_main and not self._reported(step):
            self.run.metrics(step, values)

    def _reported(self, step: int) -> bool:
        """Whether this run has reported it before it was broken off."""
        path = self.run.run_dir / "metrics.jsonl"
        records = read_metrics(path) if path.is_file() else []
        return any(r["step"] == step and f"reward{SUFFIX}" in r for r in records)


def identity(prompt: RolloutPrompt) -> str:
    """What makes two prompts the same: their language and their words."""
    return f"{prompt.language}:{normalize_for_match(prompt.text, prompt.language)}"


def summary(verdicts: Sequence[RewardResult], device: torch.device) -> dict[str, float]:
    """Means over the verdicts of all ranks; every rank calls it, also one that has none."""
    columns: dict[str, list[float]] = {"reward": [v.total for v in verdicts]}
    columns["wer"] = [min(1.0, v.wer) for v in verdicts if v.wer is not None]
    sums = torch.tensor(
        [part for own in columns.values() for part in (sum(own), len(own))],
        dtype=torch.float64 if device.type == "cpu" else torch.float32,
        device=device,
    )
    if dist.is_initialized():
        dist.all_reduce(sums)
    found = zip(columns, sums.view(-1, 2).tolist(), strict=True)
    return {f"{name}{SUFFIX}": round(total / n, 6) for name, (total, n) in found if n}


def _rank(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
