"""What this project asks of the programs of this folder, and how they answer.

Read and written on both sides, so only the standard library is imported here. A program is told a
job, a JSON file, and appends objects to the job's ``events``: ``{"done", "total"}``,
``{"step", "metrics"}``, ``{"note"}``. SIGTERM asks it to save and leave with :data:`STOPPED`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

STOPPED = 75  # as the project's own programs: run again to go on
REFUSED = 2  # the job cannot be; the last event says why
MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
VOCABULARY_FILE = "vocab.json"
VOICES_FOLDER = "voices"


@dataclass(frozen=True)
class TrainJob:
    """Train one model. ``dataset``: a folder with ``train.jsonl`` and ``val.jsonl``, an object a
    clip: ``audio_file`` (16-bit mono WAV), ``text``, ``language``, ``speaker_name``,
    ``root_path`` and ``audio_unique_name``; ``start``: a folder with coqui's published weights,
    None: random ones; ``config``: keys of coqui's own configuration, laid over what is set here."""

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
    export: str
    seed: int
    config: dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A text, and the file to say it to. ``voice``: clips to imitate, where the family can; empty:
    those of the model's folder."""

    text: str
    language: str
    seed: int
    file: str
    voice: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SpeakJob:
    """Say ``lines`` with the model in ``model``; files that are there already are left. Beside each
    lies a ``.json`` with ``samples`` and ``ended``."""

    family: str
    model: str
    events: str
    lines: list[Line]


class Events:
    """Appends to the file that the project reads."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def tell(self, **event: Any) -> None:
        with self.path.open("a") as stream:
            stream.write(json.dumps(event) + "\n")

    def refuse(self, reason: str) -> NoReturn:
        self.tell(note=reason)
        sys.exit(REFUSED)


def write_job(path: Path, job: TrainJob | SpeakJob) -> None:
    path.write_text(json.dumps(asdict(job), indent=1))


def read_train_job(path: str) -> TrainJob:
    return TrainJob(**json.loads(Path(path).read_text()))


def read_speak_job(path: str) -> SpeakJob:
    values: Mapping[str, Any] = json.loads(Path(path).read_text())
    return SpeakJob(**{**values, "lines": [Line(**line) for line in values["lines"]]})
