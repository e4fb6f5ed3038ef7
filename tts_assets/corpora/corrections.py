"""Corrections of a corpus: other texts for clips, and clips to drop, beside its source files.

``corrections/<corpus>.jsonl`` in the folder of the project file has one correction per line, made
in the studio or by hand::

    {"id": "3e01f2df3b7fdd92", "text": "four two", "was": "for two", "at": "2026-11-30T12:00:00Z"}
    {"id": "af3bbae924bdd489", "drop": true, "was": "one", "at": "2026-11-30T12:01:00Z"}
    {"id": "af3bbae924bdd489", "was": "one", "at": "2026-11-30T12:02:00Z"}

Lines are only added: their number is the version of the layer, and the last line of a clip counts.
A line without ``text`` and ``drop`` restores the clip. Keep the file under version control, like
the project file.

A clip is known by the digest of its audio, so that its correction stays when files are moved or
added. ``filtered_samples`` applies the layer: a change of it does not read or cut recordings again,
and codes of audio that stays are reused. Without corrections no fingerprint changes, and taken-back
ones lead to the former artifact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import polars as pl
from pydantic import Field, field_validator, model_validator

from tts_assets.core.artifacts import ArtifactError, ArtifactStore
from tts_assets.core.config import Config, ConfigError, digest_of

FOLDER = "corrections"
LAYER = {"id": pl.String, "corrected": pl.String, "dropped": pl.Boolean}


def now() -> datetime:
    """The time of a new correction, in UTC and whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


class Correction(Config):
    """One line: what changes for the clip ``id``.

    ``text`` replaces the raw text, ``drop`` excludes the clip from training. ``was`` is the text
    that the corrector saw, ``at`` the time.
    """

    id: str = Field(pattern="^[0-9a-f]{16}$", description="the id of the sample")
    text: str | None = None
    drop: bool = False
    was: str = ""
    at: datetime = Field(default_factory=now)

    @field_validator("text", "was")
    @classmethod
    def _one_line(cls, text: str | None) -> str | None:
        return text if text is None else " ".join(text.split())

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.drop and self.text is not None:
            raise ValueError("a dropped clip needs no text: leave text or drop out")
        if self.text == "":
            raise ValueError("the text is empty: write what is said, or drop = true")
        return self

    @property
    def restores(self) -> bool:
        """Whether the clip is as in its source again."""
        return self.text is None and not self.drop


@dataclass(frozen=True)
class Corrections:
    """The corrections of a corpus: all ``lines`` of the file ``path``, in their order."""

    path: Path
    lines: tuple[Correction, ...] = ()

    @classmethod
    def of(cls, project: Path, corpus: str) -> Self:
        """Those of a corpus; ``project`` is the folder of the project file.

        Raises :class:`ConfigError` with the number of a bad line.
        """
        path = project / FOLDER / f"{corpus}.jsonl"
        if not path.is_file():
            return cls(path)
        with path.open(encoding="utf-8") as lines:
            read = (
                Correction.parse(parsed(line, f"{path}:{number}"), f"{path}:{number}")
                for number, line in enumerate(lines, start=1)
                if line.strip()
            )
            return cls(path, tuple(read))

    @property
    def current(self) -> Mapping[str, Correction]:
        """The correction of each clip that is not as in its source."""
        last = {line.id: line for line in self.lines}
        return {name: line for name, line in last.items() if not line.restores}

    def source_text(self, clip: str) -> str | None:
        """The text of a clip before its first correction; None if it has none."""
        return next((line.was for line in self.lines if line.id == clip), None)

    def identity(self) -> dict[str, str]:
        """Their part of a fingerprint; empty without corrections."""
        effect = {name: [line.text, line.drop] for name, line in self.current.items()}
        return {"corrections": digest_of(effect)} if effect else {}

    def pending(self, store: ArtifactStore, corpus: str) -> bool:
        """Whether the current samples of the corpus were made with other corrections.

        Without samples nothing is pending: they will be made with these.
        """
        try:
            made = store.current("filtered_samples", corpus).manifest.config
        except ArtifactError:
            return False
        return made.get("corrections") != self.identity().get("corrections")

    def add(self, correction: Correction) -> Self:
        """Write a correction. Returns the new layer.

        The line is written at once, so that several writers do not mix theirs.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = correction.model_dump(mode="json", exclude_defaults=True)
        line = json.dumps(values | {"at": stamp(correction.at)}, ensure_ascii=False) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode() if ends_line(self.path) else f"\n{line}".encode())
            os.fsync(file.fileno())
        return type(self)(self.path, (*self.lines, correction))

    def apply(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Utterances with corrected ``text``, and the new column ``dropped``.

        ``rows`` have ``id`` and ``text``; their order stays.
        """
        current = self.current
        if not current:
            return rows.with_columns(dropped=pl.lit(False))
        layer = [(name, line.text, line.drop) for name, line in current.items()]
        known = pl.LazyFrame(layer, schema=LAYER, orient="row")
        joined = rows.join(known, on="id", how="left", maintain_order="left")
        return joined.with_columns(
            text=pl.coalesce("corrected", "text"), dropped=pl.col("dropped").fill_null(False)
        ).drop("corrected")


def parsed(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line. Raises :class:`ConfigError`."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: no JSON: {error}; correct or delete the line") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: no JSON object: correct or delete the line")
    return value


def stamp(at: datetime) -> str:
    """A time in UTC as text."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ends_line(path: Path) -> bool:
    """Whether a file is empty or its last line is complete."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
