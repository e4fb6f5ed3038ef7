"""The sample schema of the reference trainer, one JSON object per line.

:class:`Sample` is one line. Many lines are rows of polars with the columns of SCHEMA, in which
``original_data`` is the text of a JSON object. :func:`separate_bad_lines` checks a file line by
line: polars refuses a whole file for one bad line, so this slow way follows only a failure.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import polars as pl
from pydantic import Field

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
