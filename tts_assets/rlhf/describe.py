"""What a GRPO run has to show: its numbers and its curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tts_assets.metrics import read_metrics
from tts_assets.plots import curves
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.metrics import training_records

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
