"""Prompts that are kept out of training, and what the policy makes of them.

A text is held out by its hash, so neither the order of the prompts nor what else is among them
decides. Each measurement says the same texts with the same seeds: what differs is the policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist

from tts_assets.hearing.text_match import normalize_for_match
from tts_assets.metrics import read_metrics
from tts_assets.program import Run
from tts_assets.rlhf.config import HeldOutConfig, RlhfRecipe
from tts_assets.rlhf.prompts import PromptError, RolloutPrompt
from tts_assets.rlhf.rollouts import RolloutWorker
from tts_assets.rlhf.spoken import Verdict
from tts_assets.split import ValidationSplit, is_validation

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


def summary(verdicts: Sequence[Verdict], device: torch.device) -> dict[str, float]:
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
