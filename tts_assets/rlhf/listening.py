"""Completions as one hears them: saved during the run, played in the checkpoint's notebook."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tts_assets.core.artifacts import written_aside
from tts_assets.core.audio import write_speech
from tts_assets.core.notebook import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.rlhf.rewards import DecodedCompletion, RewardResult

FOLDER = "rollouts"
SHOWN = 6  # moments of a run in the notebook, the first and the last among them


def spread(count: int, kept: int) -> list[int]:
    """``kept`` of ``count`` places: from as many prompts as there are, not one prompt's all."""
    return [int(place) for place in np.linspace(0, count - 1, min(kept, count)).round()]


def save_audio(
    folder: Path, step: int, heard: Sequence[tuple[DecodedCompletion, RewardResult]], comment: str
) -> None:
    """``step-NNNNNN-I.flac`` for each, and one JSON with texts, transcripts and rewards."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (one, verdict) in enumerate(heard):
        name = f"step-{step:06d}-{number}.flac"
        if len(one.wave):
            wave = np.clip(one.wave, -1.0, 1.0)
            write_speech(folder / name, wave, one.rate, comment, "FLAC")
        records.append(
            {
                "audio": name if len(one.wave) else None,
                "step": step,
                "text": one.text,
                "heard": verdict.heard,
                "wer": None if verdict.wer is None else round(verdict.wer, 4),
                "ended": one.ended,
                "seconds": round(one.seconds, 3),
                "reward": round(verdict.total, 4),
                "rewards": {name: round(value, 4) for name, value in verdict.rewards.items()},
            }
        )
    with written_aside(folder / f"step-{step:06d}.json") as aside:
        aside.write_text(json.dumps(records, indent=1) + "\n")


def write_listening(result: Path, name: str) -> None:
    """Write ``listening.ipynb`` beside the folder of saved completions, if there are any."""
    found = list(sections(result / FOLDER))
    if found:
        write_notebook(result / NOTEBOOK_FILE, name, found)


def sections(folder: Path) -> Iterator[Section]:
    """A section a moment of the run: what was said, what was heard, and what it was worth."""
    moments = sorted(folder.glob("step-*.json"))
    for place in spread(len(moments), SHOWN):
        records = json.loads(moments[place].read_text())
        clips = [clip(record, folder) for record in records if record["audio"]]
        mute = len(records) - len(clips)
        mean = np.mean([record["reward"] for record in records])
        title = f"step {records[0]['step']}: mean reward {mean:.2f} of these {len(records)}"
        yield Section(title + (f", {mute} never ended" if mute else ""), clips)


def clip(record: dict[str, Any], folder: Path) -> NotebookClip:
    rewards = [f"{name} {value:.2f}" for name, value in record["rewards"].items()]
    facts = [f"reward {record['reward']:.2f}", *rewards, f"{record['seconds']:.1f} s"]
    if record["wer"] is not None:
        facts.insert(0, f"heard: {record['heard'] or '(nothing)'}")
    return NotebookClip(record["text"], " \u00b7 ".join(facts), folder / record["audio"])
