"""The sample schema of the reference trainer, one JSON object per line, and where its audio lies.

:class:`Sample` is one line. Many lines are rows of polars with the columns of SCHEMA, in which
``original_data`` is the text of a JSON object. :func:`separate_bad_lines` checks a file line by
line: polars refuses a whole file for one bad line, so this slow way follows only a failure.

Artifacts name audio relative to the folder of its corpus, or to the audio pool as ``pool:<name>``,
so that their digests stay the same when the corpus, the storage or the checkout is moved.
:class:`AudioFolders` looks the folders up when audio is read: that of the corpus in the current
``raw_corpus``, the pool in the storage that holds the artifact.

``python -m tts_assets.corpora.samples kept.jsonl`` prints a sample list with absolute paths, for
other programs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NoReturn, Self

import polars as pl
from pydantic import Field

from tts_assets.core.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    RawCorpus,
    open_artifact,
    store_of,
)
from tts_assets.core.config import Config, ConfigError

SCHEMA = {
    "id": pl.String,
    "wav_path": pl.String,
    "transcript": pl.String,
    "language": pl.String,
    "duration": pl.Float64,
    "sample_rate": pl.Int64,
    "speaker_id": pl.String,
    "emotion": pl.String,
    "style": pl.String,
    "voice_description": pl.String,
    "sound_effect": pl.String,
    "dnsmos_mos_ovr": pl.Float64,
    "dataset_name": pl.String,
    "original_data": pl.String,
}
FIELDS = {**SCHEMA, "original_data": pl.Object}  # types in a line of JSON
ABOUT_SAMPLES = {
    "wav_path": "audio file: below the corpus folder, pool:… in the audio pool, or absolute",
    "transcript": "normalized text",
    "duration": "seconds; -1: unknown",
    "sample_rate": "Hz, of the file; -1: unknown",
    "voice_description": "in words, of the speaker",
    "dnsmos_mos_ovr": "DNSMOS, overall quality from 1 to 5; 0: unknown",
    "dataset_name": "the corpus",
    "original_data": "the raw text, the audio's SHA-256, the licence, and what else was known",
}
HEAD = tuple(SCHEMA)[:-1]  # the fields before original_data
DEFAULTS = {"language": "unknown", "duration": -1.0, "sample_rate": -1, "dnsmos_mos_ovr": 0.0}
SHOWN = 200  # characters of a bad line that a rejection quotes
ID_DIGITS = 16  # hexadecimal
LONGEST_LINE = 1 << 20  # bytes; a sample has some hundred


class Sample(Config):
    """One utterance for training.

    ``transcript`` is normalized. ``original_data`` has the raw text, the SHA-256 of the audio and
    the licence. The duration is in seconds, the sample rate in Hz.
    """

    id: str
    wav_path: str
    transcript: str
    language: str = "unknown"
    duration: float = -1.0
    sample_rate: int = -1
    speaker_id: str = ""
    emotion: str = ""
    style: str = ""
    voice_description: str = ""
    sound_effect: str = ""
    dnsmos_mos_ovr: float = 0.0
    dataset_name: str = ""
    original_data: dict[str, Any] = Field(default_factory=dict)

    def to_line(self) -> str:
        """The sample as a line of JSON."""
        return json.dumps(self.model_dump(), ensure_ascii=False) + "\n"


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write a sample file."""
    path.write_text("".join(sample.to_line() for sample in samples), encoding="utf-8")


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a published file. Raises ConfigError at a bad line."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            yield Sample.parse(json.loads(line), f"{path}:{number}")


def scan_samples(paths: Sequence[Path]) -> pl.LazyFrame:
    """The samples of files as rows with the columns of SCHEMA and defaults; other keys are dropped.

    Collecting raises ``polars.exceptions.ComputeError`` at a bad line.
    """
    lines = pl.scan_lines(list(paths), name="line").filter(pl.col("line").str.strip_chars() != "")
    rows = pl.concat([pl.scan_ndjson(list(paths), schema=SCHEMA), lines], how="horizontal")
    # polars 2.1 does not escape the text of an object
    escaped = pl.when(pl.col("line").str.contains("\\", literal=True)).then("line")
    own = pl.coalesce(escaped.str.json_path_match("$.original_data"), "original_data")
    defaults = [pl.col(name).fill_null(DEFAULTS.get(name, "")) for name in HEAD]
    return rows.select(*defaults, original_data=own.fill_null("{}"))


def as_line(more: pl.Expr | None = None) -> pl.Expr:
    """A row as a line of JSON with the keys in the order of SCHEMA, without spaces.

    ``original_data`` and the additional keys ``more`` are JSON text. NaN becomes null.
    """
    head = pl.struct(HEAD).struct.json_encode().str.strip_suffix("}")
    end = [] if more is None else [pl.lit(","), more]
    return pl.concat_str(head, pl.lit(',"original_data":'), "original_data", *end, pl.lit("}"))


class BadLine(ValueError):
    """A line that is not a sample; ``reason`` is short and countable."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def bounded_lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines of a stream; None for a line of more than LONGEST_LINE bytes."""
    while raw := stream.readline(LONGEST_LINE + 1):
        if len(raw) <= LONGEST_LINE:
            yield raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = stream.readline(LONGEST_LINE)
        yield None


def has_long_lines(path: Path) -> bool:
    """Whether a line of a file has more than LONGEST_LINE bytes."""
    left = 0  # bytes of the line so far
    with path.open("rb") as stream:
        while block := stream.read(LONGEST_LINE):
            end = block.find(b"\n")
            if left + (len(block) if end < 0 else end) > LONGEST_LINE:
                return True
            left = left + len(block) if end < 0 else len(block) - block.rfind(b"\n") - 1
    return False


def separate_bad_lines(paths: Sequence[Path], good: Path) -> Iterator[dict[str, Any]]:
    """Write the samples of all files to ``good``; yield the place and reason of each bad line.

    Samples without an id get the digest of audio path and transcript.
    """
    with good.open("w", encoding="utf-8") as kept:
        for path in paths:
            with path.open("rb") as stream:
                for number, line in enumerate(bounded_lines(stream), start=1):
                    if line is None:
                        yield {
                            "reason": "line too long",
                            "where": f"{path}:{number}",
                            "detail": f"more than {LONGEST_LINE:,} bytes",
                            "line": "",
                        }
                        continue
                    text = line.removeprefix(b"\xef\xbb\xbf").strip()
                    if not text:
                        continue
                    try:
                        kept.write(json.dumps(check_line(text), ensure_ascii=False) + "\n")
                    except BadLine as bad:
                        yield {
                            "reason": bad.reason,
                            "where": f"{path}:{number}",
                            "detail": bad.detail,
                            "line": text.decode("utf-8", "replace")[:SHOWN],
                        }


def check_line(line: bytes) -> dict[str, Any]:
    """The fields of a line that are in the schema. Raises :class:`BadLine`."""
    try:
        sample = json.loads(
            line.decode(), parse_constant=_no_number, parse_int=_int, parse_float=_float
        )
    except UnicodeDecodeError as error:
        raise BadLine("not UTF-8", str(error)) from None
    except ValueError as error:
        raise BadLine("not JSON", str(error)) from None
    if not isinstance(sample, dict):
        raise BadLine("not a JSON object", f"a {type(sample).__name__}")
    fields = {key: sample[key] for key in SCHEMA if sample.get(key) is not None}
    if not fields.get("wav_path"):
        raise BadLine("no wav_path", "every sample needs the path of its audio")
    try:
        checked = Sample.parse({"id": "", "transcript": "", **fields}, "sample")
    except ConfigError as error:
        raise BadLine("a field of another type", str(error)) from None
    sample = checked.model_dump(include=set(fields) - {"id"})
    return {"id": checked.id or identify(checked), **sample}


def identify(sample: Sample) -> str:
    """The id of a sample that has none: a digest of its audio path and transcript."""
    digest = hashlib.sha256(f"{sample.wav_path}\0{sample.transcript}".encode())
    return digest.hexdigest()[:ID_DIGITS]


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _int(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{text} has more than 64 bits; write it as a string")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


POOL = "pool:"  # before a name in the audio pool


@dataclass(frozen=True)
class AudioFolders:
    """The folder of a corpus and the audio pool; None where they are unknown."""

    corpus: str = ""
    root: Path | None = None
    pool: Path | None = None

    @classmethod
    def of_corpus(cls, corpus: RawCorpus, pool: Path) -> Self:
        """The folders of an index that was just read."""
        return cls(corpus.partition, Path(corpus.facts.root), pool)

    @classmethod
    def of_store(cls, store: ArtifactStore, corpus: str) -> Self:
        """The folders of a corpus in ``store``."""
        try:
            index = store.current(RawCorpus.kind, corpus)
        except ArtifactError:  # imported arrays have no index
            return cls(corpus, None, store.audio_pool)
        assert isinstance(index, RawCorpus)
        return cls.of_corpus(index, store.audio_pool)

    @classmethod
    def of(cls, path: Path) -> Self:
        """The folders of a file or folder of an artifact.

        Paths in a file that belongs to no artifact are relative to its folder.
        """
        folder = (path if path.is_dir() else path.parent).resolve()
        if not (folder / MANIFEST).is_file():
            return cls(root=folder)
        handle = open_artifact(folder)
        return cls.of_store(store_of(handle), handle.partition)

    @cached_property
    def folder(self) -> Path:
        """The folder of the corpus. Raises FileNotFoundError with the remedy if it is not there."""
        index = f"materialize raw_corpus[{self.corpus}]"
        if self.root is None:
            raise FileNotFoundError(f"the folder of corpus {self.corpus!r} is unknown: {index}")
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"corpus {self.corpus!r} was indexed at {self.root}, which does not exist: restore "
                f"it, or write the present folder to corpora.{self.corpus}.path and {index}"
            )
        return self.root

    def path(self, name: str) -> Path:
        """The path of a ``wav_path``. Raises FileNotFoundError without the corpus folder."""
        if name.startswith("/"):
            return Path(name)
        if not name.startswith(POOL):
            return self.folder / name
        if self.pool is None:
            raise FileNotFoundError(f"{name}: only a list in a storage has an audio pool")
        return self.pool / name.removeprefix(POOL)

    def existing(self, name: str) -> Path:
        """The path of a ``wav_path`` that exists. Raises FileNotFoundError with the remedy."""
        path = self.path(name)
        if path.is_file():
            return path
        where = "the audio pool" if name.startswith(POOL) else "its folder"
        raise FileNotFoundError(
            f"{path}, a clip of corpus {self.corpus!r}, is gone from {where}: restore it, or "
            f"materialize raw_corpus[{self.corpus}] and its downstream assets again"
        )

    def paths(self, column: str) -> pl.Expr:
        """:meth:`path` of a column."""
        name = pl.col(column)
        pooled = pl.concat_str(pl.lit(f"{self.pool}/"), name.str.strip_prefix(POOL))
        below = pl.concat_str(pl.lit(f"{self.root}/"), name)
        own = pl.when(name.str.starts_with("/")).then(name).otherwise(below)
        found = pl.when(name.str.starts_with(POOL)).then(pooled).otherwise(own)
        return found.alias(column)  # polars would name it "literal"


def published_names() -> pl.Expr:
    """The ``wav_path`` of rows of an index, from their columns ``audio`` and ``pooled``."""
    audio = pl.col("audio")
    pooled = pl.concat_str(pl.lit(POOL), audio)
    own = pl.concat_str(pl.lit("./"), audio)  # a file of a corpus that looks like a pooled one
    outside = pl.when(audio.str.starts_with(POOL)).then(own).otherwise(audio)
    return pl.when("pooled").then(pooled).otherwise(outside)


def located_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a published file with absolute paths.

    Raises FileNotFoundError with the remedy if the folder of the corpus is not there.
    """
    folders = AudioFolders.of(path)
    for sample in read_samples(path):
        yield sample.model_copy(update={"wav_path": str(folders.path(sample.wav_path))})


def main(argv: list[str] | None = None) -> None:
    """Print sample lists with absolute paths; all other fields stay as they are."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("samples", type=Path, nargs="+", help="a kept.jsonl or *samples.jsonl")
    for path in parser.parse_args(argv).samples:
        folders = AudioFolders.of(path)
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                sample = json.loads(line)
                sample["wav_path"] = str(folders.path(sample["wav_path"]))
                print(json.dumps(sample, ensure_ascii=False))


if __name__ == "__main__":
    main()
