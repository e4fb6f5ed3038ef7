"""What a GRPO run reports: metrics of each step, saved completions, and the asset's metadata.

TRL gets one reward function, which returns the combination of all rewards: the advantages of a
group are those of the combination. The single rewards and other statistics are logged as means over
the completions of a step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tts_assets.core.accounting import SET_ASIDE_FILE
from tts_assets.core.artifacts import ArtifactStore, Checkpoint, Preferences, atomic_write
from tts_assets.core.audio import write_speech
from tts_assets.core.metadata import (
    NOTEBOOK_FILE,
    CheckResult,
    Markdown,
    Metadata,
    NotebookClip,
    Section,
    curves,
    existing,
    image,
    set_aside_reasons,
    write_notebook,
)
from tts_assets.core.program import METRICS_FILE, Run, publish_metrics, read_metrics
from tts_assets.rlhf.alarms import AlarmConfig, first_alarms, repeated_share
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.dpo_config import PREFERENCES_FILE, DpoRecipe

if TYPE_CHECKING:
    from tts_assets.rlhf.rollouts import Rollout
    from tts_assets.serving.config import ServingCard
    from tts_assets.speechlm.model import SpeechLM

MARGIN = "rewards/margins"  # of DPO: implicit reward of the chosen one of a pair minus rejected
# Of samples at evaluations of DPO. The first one is of the base: one is enough for a comparison.
SAMPLE_ALARMS = AlarmConfig(window=1)
FOLDER = "rollouts"  # of saved completions in the result folder
# Metrics of speed and of lost engines: they are not part of the published result.
MACHINE_METRICS = frozenset(
    {"step_time", "engine_push_seconds", "engine_rollout_seconds", "engine_lost"}
)
LAST_PART = 0.1  # of the steps: the published reward and loss are their means
NOTEBOOK_STEPS = 6  # steps in the notebook, with the first and the last
HEALTH_PANELS = (
    {"kl": "KL divergence to the base", "entropy": "entropy"},
    {"seconds": "mean", "seconds_p10": "10th percentile", "seconds_p90": "90th percentile"},
    {
        "ended": "completions that end",
        "repetition": "repeated n-grams",
        "clip_ratio/region_mean": "clipped tokens",
    },
)
METADATA_NAMES = {"reward": "reward", "wer": "rollout_wer", "seconds": "seconds"}  # by metric


def rollout_record(rollout: Rollout) -> dict[str, Any]:
    """Returns the values of a rollout from which its metrics are computed.

    TRL passes the record from the rollout to the reward function.
    """
    decoded, result = rollout.decoded, rollout.result
    return {
        "total": result.total,
        "rewards": result.rewards,
        "wer": result.wer,
        "ended": rollout.completion.ended,
        "seconds": decoded.seconds,
        "characters": len(decoded.text),
        "repetition": repeated_share(rollout.completion.codes),
    }


def combined(
    rollout_records: Sequence[dict[str, Any]],
    log_metric: Callable[[str, float], None],
    **_: Any,
) -> list[float | None]:
    """TRL's reward function: returns the combined reward of each rollout and logs metrics.

    TRL uses the function's name in ``metrics.jsonl``, so it must not change.
    """
    for name, value in step_metrics(rollout_records).items():
        log_metric(name, value)
    return [one["total"] for one in rollout_records]


def step_metrics(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns means over the completions; durations over those that end."""
    metrics = {
        f"rewards/{name}/mean": float(np.mean([one["rewards"][name] for one in records]))
        for name in records[0]["rewards"]
    }
    wer = [min(1.0, one["wer"]) for one in records if one["wer"] is not None]
    if wer:
        metrics["wer"] = float(np.mean(wer))
    metrics["ended"] = float(np.mean([one["ended"] for one in records]))
    metrics["repetition"] = float(np.mean([one["repetition"] for one in records]))
    decoded = [one for one in records if one["seconds"]]
    seconds = [one["seconds"] for one in decoded] or [0.0]
    metrics["seconds"] = float(np.mean(seconds))
    for percent in (10, 90):
        metrics[f"seconds_p{percent}"] = float(np.percentile(seconds, percent))
    characters = sum(one["characters"] for one in decoded)
    metrics["characters_per_second"] = characters / max(sum(seconds), 1e-9)
    return metrics


def training_records(folder: Path, metric: str = "reward") -> list[dict[str, float]]:
    """Returns the records with ``metric``, which each training step has, of ``metrics.jsonl``.

    Empty without such a file.
    """
    path = folder / METRICS_FILE
    return [one for one in read_metrics(path) if metric in one] if path.is_file() else []


def held_out_records(folder: Path) -> list[dict[str, float]]:
    """Returns the records of evaluations on held-out prompts."""
    return [one for one in read_metrics(folder / METRICS_FILE) if "reward_heldout" in one]


def describe_checkpoint(checkpoint: Checkpoint, recipe: RlhfRecipe) -> Metadata:
    """Returns metadata: rewards and WER, plots, alarms, and the notebook with completions."""
    folder = checkpoint.path
    rewards = [reward.name for reward in recipe.rewards]
    return {
        **summary(folder, rewards),
        **plots(folder, rewards),
        **alarms_and_audio(folder, recipe),
    }


def describe_dpo(checkpoint: Checkpoint, recipe: DpoRecipe) -> Metadata:
    """Returns metadata: margins, plots, alarms, and the notebook with samples."""
    folder = checkpoint.path
    records = read_metrics(folder / METRICS_FILE)
    names = ("margin_heldout", "accuracy_heldout", "seconds", "ended")
    panels = (
        {MARGIN: "margin", "margin_heldout": "held-out pairs"},
        {"rewards/accuracies": "accuracy", "accuracy_heldout": "held-out pairs"},
        {"chosen_change": "preferred completions, nats a token"},
    )
    return {
        **first_and_last(training_records(folder, MARGIN), {MARGIN: "margin"}),
        **first_and_last(training_records(folder, "margin_heldout"), {key: key for key in names}),
        "curves": image("margins", curves(records, panels, x_label="step")),
        "health": image("health", curves(records, HEALTH_PANELS[1:], x_label="step")),
        **alarms_and_audio(folder, recipe),
    }


def alarms_and_audio(folder: Path, recipe: RlhfRecipe | DpoRecipe) -> Metadata:
    """Returns the alarms of a run, and the notebook with its completions."""
    alarms = {
        name: {"update": update, "seen": text}
        for name, (update, text) in alarms_of(folder, recipe).items()
    }
    return {"alarms": alarms, **existing("listening", folder / NOTEBOOK_FILE)}


def alarms_of(folder: Path, recipe: RlhfRecipe | DpoRecipe) -> dict[str, tuple[int, str]]:
    """Returns the first step and the message of each alarm of a run, by the alarm's name."""
    if isinstance(recipe, RlhfRecipe):
        return first_alarms(training_records(folder), recipe.alarms)
    samples = first_alarms(training_records(folder, "margin_heldout"), SAMPLE_ALARMS)
    return samples | first_alarms(training_records(folder, MARGIN), recipe.alarms)


def find_collapse(
    _: ArtifactStore, checkpoint: Checkpoint, recipe: RlhfRecipe | DpoRecipe
) -> CheckResult:
    """Fails if there is an alarm; the metadata has the first update of each."""
    found = alarms_of(checkpoint.path, recipe)
    seen = {name: f"from update {update} on: {text}" for name, (update, text) in found.items()}
    return CheckResult(not found, seen)


def describe_preferences(preferences: Preferences) -> Metadata:
    """Returns metadata: the number of prompts or trials without a pair for each reason."""
    reasons = set_aside_reasons(preferences.path)
    return {f"set_aside/{name}": count for name, count in reasons.items()}


def count_all_pairs(_: ArtifactStore, preferences: Preferences) -> CheckResult:
    """Compares the prompts or trials with the pairs and those set aside."""
    files = {"pairs": PREFERENCES_FILE, "set_aside": SET_ASIDE_FILE}
    counts = {
        name: (preferences.path / file).read_bytes().count(b"\n") for name, file in files.items()
    }
    asked = preferences.facts.asked
    return CheckResult(asked == sum(counts.values()), {"asked": asked, **counts})


def summary(folder: Path, rewards: Sequence[str]) -> dict[str, float]:
    """Returns rewards, WER and duration at the first and the last step, and final statistics.

    Args:
        folder: the result of a run.
        rewards: the names of its rewards.
    """
    training = training_records(folder)
    components = {f"rewards/{name}/mean": f"reward_{name}" for name in rewards}
    last = training[-1]
    return {
        **first_and_last(training, METADATA_NAMES | components),
        **first_and_last(
            held_out_records(folder), {key: key for key in ("reward_heldout", "wer_heldout")}
        ),
        **{name: last[name] for name in ("kl", "entropy", "ended") if name in last},
    }


def first_and_last(records: list[dict[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    """Returns ``<name>_first`` and ``<name>_last`` of each metric in ``names`` that exists."""
    ends = (("first", records[:1]), ("last", records[-1:]))
    return {
        f"{name}_{end}": record[key]
        for key, name in names.items()
        for end, one in ends
        for record in one
        if key in record
    }


def plots(folder: Path, rewards: Sequence[str]) -> dict[str, Markdown]:
    """Returns plots: ``curves`` of the rewards, ``health`` of the policy."""
    records = read_metrics(folder / METRICS_FILE)
    panels = (
        {"reward": "reward", "reward_heldout": "held-out prompts"},
        {f"rewards/{name}/mean": name for name in rewards},
        {"wer": "WER", "wer_heldout": "held-out prompts"},
    )
    return {
        "curves": image("rewards", curves(records, panels, x_label="update")),
        "health": image("health", curves(records, HEALTH_PANELS, x_label="update")),
    }


def evenly_spaced(count: int, kept: int) -> list[int]:
    """Returns up to ``kept`` indices below ``count``, with the first and the last."""
    return [int(index) for index in np.linspace(0, count - 1, min(kept, count)).round()]


def save_completions(
    folder: Path, step: int, rollouts: Sequence[Rollout], kept: int, comment: str
) -> None:
    """Saves ``kept`` completions, spread over the prompts of a step.

    Writes ``step-NNNNNN-I.flac`` for each completion that ends, and ``step-NNNNNN.json`` with
    texts, transcripts and rewards. ``comment`` is written into the audio files, which carry the
    watermark; the rewards are of the audio without it.
    """
    from tts_assets.audio_models.watermark import mark  # imports torch

    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, index in enumerate(evenly_spaced(len(rollouts), kept)):
        decoded, result = rollouts[index].decoded, rollouts[index].result
        name = f"step-{step:06d}-{number}.flac"
        if len(decoded.wave):
            wave = np.clip(mark(decoded.wave, decoded.rate), -1.0, 1.0)
            write_speech(folder / name, wave, decoded.rate, comment, "FLAC")
        records.append(
            {
                "audio": name if len(decoded.wave) else None,
                "step": step,
                "text": decoded.text,
                "heard": result.transcript,
                "wer": None if result.wer is None else round(result.wer, 4),
                "ended": decoded.ended,
                "seconds": round(decoded.seconds, 3),
                "reward": round(result.total, 4),
                "rewards": {name: round(value, 4) for name, value in result.rewards.items()},
            }
        )
    with atomic_write(folder / f"step-{step:06d}.json") as aside:
        aside.write_text(json.dumps(records, indent=1) + "\n")


def write_audio_notebook(result: Path, title: str) -> None:
    """Writes ``listening.ipynb`` with the saved completions, if there are any."""
    sections = list(notebook_sections(result / FOLDER))
    if sections:
        write_notebook(result / NOTEBOOK_FILE, title, sections)


def notebook_sections(folder: Path) -> Iterator[Section]:
    """Yields a section for each of up to six saved steps: texts, transcripts, rewards, audio."""
    steps = sorted(folder.glob("step-*.json"))
    for index in evenly_spaced(len(steps), NOTEBOOK_STEPS):
        records = json.loads(steps[index].read_text())
        clips = [notebook_clip(record, folder) for record in records if record["audio"]]
        without_end = len(records) - len(clips)
        title = f"step {records[0]['step']}"
        if records[0]["rewards"]:  # DPO has no reward functions
            mean = np.mean([record["reward"] for record in records])
            title += f": mean reward {mean:.2f} of these {len(records)}"
        yield Section(title + (f", {without_end} without an end" if without_end else ""), clips)


def notebook_clip(record: dict[str, Any], folder: Path) -> NotebookClip:
    """Returns the notebook's entry of a saved completion."""
    rewards = [f"{name} {value:.2f}" for name, value in record["rewards"].items()]
    total = [f"reward {record['reward']:.2f}"] if rewards else []
    facts = [*total, *rewards, f"{record['seconds']:.1f} s"]
    if record["wer"] is not None:
        facts.insert(0, f"transcript: {record['heard'] or '(empty)'}")
    return NotebookClip(record["text"], " \u00b7 ".join(facts), folder / record["audio"])


def export(
    run: Run,
    name: str,
    lm: SpeechLM,
    card: ServingCard,
    steps: int,
    updates: int,
    tokens: int,
    stage: str = "rlhf",
    metric: str = "reward",
) -> None:
    """Writes the policy, its metrics and its audio notebook, and declares the facts.

    Args:
        run: receives the result.
        name: the recipe.
        lm: the trained policy.
        card: card of the serving model with which the policy started.
        steps: steps of the policy.
        updates: optimizer updates of the policy; metrics after them belong to a collapsed policy.
        tokens: tokens of all completions.
        stage: the stage in the facts.
        metric: the metric of training steps whose last mean is the reward in the facts.
    """
    lm.model.eval()
    lm.model.config.eos_token_id = lm.vocabulary.speech_end  # TRL had set the tokenizer's
    lm.model.config.use_cache = True  # TRL had unset it for gradient checkpointing
    lm.save(run.result_dir, card.sampling)
    publish_metrics(run.run_dir, run.result_dir, without=MACHINE_METRICS)
    write_audio_notebook(run.result_dir, name)
    records = [one for one in training_records(run.run_dir, metric) if one["step"] <= updates]
    last = records[-max(1, round(LAST_PART * len(records))) :]
    run.finish(
        {
            "stage": stage,
            "recipe": name,
            "steps": steps,
            "tokens": tokens,
            "train_loss": mean_of(last, "loss"),
            "val_loss": None,
            "reward": mean_of(last, metric),
            "parameters": lm.parameters,
            "vocabulary": lm.vocabulary.digest,
            "codec": card.codec,
            "sample_rate": card.sample_rate,
            "token_rate": card.token_rate,
            "codebook_size": card.codebook_size,
        }
    )


def mean_of(records: Sequence[dict[str, float]], key: str) -> float:
    """Returns the mean of ``key`` over the records that have it."""
    return float(np.mean([record[key] for record in records if key in record]))
