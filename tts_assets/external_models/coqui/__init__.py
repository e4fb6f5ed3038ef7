"""Programs for the environment of coqui-tts, and the protocol between this project and them.

The programs import coqui-tts, numpy and torch, and nothing of this project outside of this folder.
Both sides import this file, so it uses the standard library only. A program reads a job, a JSON
file, and appends events to the job's file ``events``: ``{"done", "total"}``, ``{"step",
"metrics"}`` or ``{"note"}``. SIGTERM asks it to save and to exit with :data:`STOPPED`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = "tts_assets.external_models.coqui"
STOPPED = 75  # exit status, as of the project's programs: run again to resume
REFUSED = 2  # exit status: the job is invalid; the last event says why
MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
VOCABULARY_FILE = "vocab.json"
VOICES_FOLDER = "voices"


@dataclass(frozen=True)
class TrainJob:
    """Train one model.

    ``dataset``: folder with ``train.jsonl`` and ``val.jsonl``, which have an object for each clip:
    ``audio_file`` (16-bit mono WAV), ``text``, ``language``, ``speaker_name``, ``root_path`` and
    ``audio_unique_name``. ``start``: folder with coqui's published weights, None for random
    weights. ``sample_rate`` in Hz. ``config``: keys of coqui's configuration, which override these.
    """

    family: str
    dataset: str
    work: str
    result: str
    events: str
    start: str | None
    sample_rate: int
    epochs: int
    batch_size: int
    learning_rate: float
    save_steps: int
    log_steps: int
    seed: int
    config: dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A text, and the file of its synthesis.

    ``voice``: clips to imitate, if the model can; empty for the clips in the model's folder.
    """

    text: str
    language: str
    seed: int
    file: str
    voice: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SynthesisJob:
    """Synthesize ``lines`` with the model in the folder ``model``; existing files are kept.

    Beside each file is a ``.json`` with ``samples`` and ``ended``.
    """

    family: str
    model: str
    events: str
    lines: list[Line]


class Events:
    """Appends events to the file that the project reads."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def write(self, **event: Any) -> None:
        """Append one event."""
        with self.path.open("a") as stream:
            stream.write(json.dumps(event) + "\n")

    def refuse(self, reason: str) -> NoReturn:
        """Exit because the job is invalid."""
        self.write(note=reason)
        sys.exit(REFUSED)


def write_job(path: Path, job: TrainJob | SynthesisJob) -> None:
    """Write a job as JSON."""
    path.write_text(json.dumps(asdict(job), indent=1))


def read_train_job(path: str) -> TrainJob:
    """Read a training job."""
    return TrainJob(**json.loads(Path(path).read_text()))


def read_synthesis_job(path: str) -> SynthesisJob:
    """Read a synthesis job."""
    values: Mapping[str, Any] = json.loads(Path(path).read_text())
    return SynthesisJob(**{**values, "lines": [Line(**line) for line in values["lines"]]})
