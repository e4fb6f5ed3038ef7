"""What a step of GRPO reports beside TRL's own numbers, and the one reward that TRL is given.

TRL sees the combination of all rewards, so that a group's advantages are those of the combination.
The components and what explains them go to the metrics: means over the completions of a step.

What a GRPO run has to show: its numbers and its curves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tts_assets.core.plots import curves
from tts_assets.core.program import read_metrics
from tts_assets.rlhf.alarms import repeated_share
from tts_assets.rlhf.config import RlhfRecipe

if TYPE_CHECKING:
    from tts_assets.rlhf.rollouts import Rollout

Values = dict[str, Any]


def record_of(rollout: Rollout) -> Values:
    """What of a rollout the metrics are made of: TRL carries it from there to the reward."""
    spoken, verdict = rollout.spoken, rollout.verdict
    return {
        "total": verdict.total,
        "rewards": verdict.rewards,
        "wer": verdict.wer,
        "ended": rollout.completion.ended,
        "seconds": spoken.seconds,
        "characters": len(spoken.text),
        "repetition": repeated_share(rollout.completion.codes),
    }


def combined(
    verdict: Sequence[Values], log_metric: Callable[[str, float], None], **_: Any
) -> list[float | None]:
    """TRL's reward function, called once a step: the combination that the rollouts found."""
    for name, value in step_metrics(verdict).items():
        log_metric(name, value)
    return [one["total"] for one in verdict]


def step_metrics(records: Sequence[Values]) -> dict[str, float]:
    """Means over the completions; of what never ended there are no seconds."""
    metrics = {
        f"rewards/{name}/mean": float(np.mean([one["rewards"][name] for one in records]))
        for name in records[0]["rewards"]
    }
    errors = [min(1.0, one["wer"]) for one in records if one["wer"] is not None]
    if errors:
        metrics["wer"] = float(np.mean(errors))
    metrics["ended"] = float(np.mean([one["ended"] for one in records]))
    metrics["repetition"] = float(np.mean([one["repetition"] for one in records]))
    heard = [one for one in records if one["seconds"]]
    seconds = [one["seconds"] for one in heard] or [0.0]
    metrics["seconds"] = float(np.mean(seconds))
    for percent in (10, 90):
        metrics[f"seconds_p{percent}"] = float(np.percentile(seconds, percent))
    characters = sum(one["characters"] for one in heard)
    metrics["characters_per_second"] = characters / max(sum(seconds), 1e-9)
    return metrics


def training_records(folder: Path) -> list[dict[str, float]]:
    """The lines of training steps in a folder's ``metrics.jsonl``, not those of held-out prompts;
    none where there is no file yet."""
    path = folder / "metrics.jsonl"
    return [one for one in read_metrics(path) if "reward" in one] if path.is_file() else []


HEALTH = (
    {"kl": "KL to the base", "entropy": "entropy"},
    {"seconds": "seconds", "seconds_p10": "shortest tenth", "seconds_p90": "longest tenth"},
    {
        "ended": "share that ended",
        "repetition": "share repeated",
        "clip_ratio/region_mean": "share clipped",
    },
)
# Names in the records and in the metadata.
SHOWN = {"reward": "reward", "wer": "rollout_wer", "seconds": "seconds"}


def numbers(folder: Path, recipe: RlhfRecipe) -> dict[str, float]:
    """Rewards, WER and length at the first and the last step, and on the held-out prompts."""
    trained, held_out = training_records(folder), held_out_records(folder)
    components = {key: f"reward_{name}" for key, name in component_keys(recipe).items()}
    last = trained[-1]
    return {
        **first_and_last(trained, SHOWN | components),
        **first_and_last(held_out, {key: key for key in ("reward_heldout", "wer_heldout")}),
        **{name: last[name] for name in ("kl", "entropy", "ended") if name in last},
    }


def pictures(folder: Path, recipe: RlhfRecipe) -> dict[str, str]:
    """Curves as Markdown: of the rewards, and of what tells whether the policy is well."""
    records = read_metrics(folder / "metrics.jsonl")
    rewards = (
        {"reward": "reward", "reward_heldout": "held-out prompts"},
        component_keys(recipe),
        {"wer": "WER", "wer_heldout": "held-out prompts"},
    )
    return {
        "curves": f"![rewards]({curves(records, rewards, x_label='update')})",
        "health": f"![health]({curves(records, HEALTH, x_label='update')})",
    }


def component_keys(recipe: RlhfRecipe) -> dict[str, str]:
    """The metric of each reward, and its name."""
    return {f"rewards/{reward.name}/mean": reward.name for reward in recipe.rewards}


def held_out_records(folder: Path) -> list[dict[str, float]]:
    records = read_metrics(folder / "metrics.jsonl")
    return [record for record in records if "reward_heldout" in record]


def first_and_last(records: list[dict[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    """``<name>_first`` and ``<name>_last`` of each key that the records have."""
    ends = (("first", records[:1]), ("last", records[-1:]))
    return {
        f"{name}_{which}": record[key]
        for key, name in names.items()
        for which, one in ends
        for record in one
        if key in record
    }
