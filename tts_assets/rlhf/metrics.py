"""What a step of GRPO reports beside TRL's own numbers, and the one reward that TRL is given.

TRL sees the combination of all rewards, so that a group's advantages are those of the combination.
The components and what explains them go to the metrics: means over the completions of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tts_assets.metrics import read_metrics
from tts_assets.rlhf.alarms import repeated_share

if TYPE_CHECKING:  # Dagster reads metrics, without torch
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
