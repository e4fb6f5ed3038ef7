"""Sample files in which a line is no sample, or has no id: they are written anew without it.

Other files are never read this way: polars refuses a bad line, and only then is it worth the time
of Python to look at each. An id that is missing becomes the digest of audio path and transcript.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tts_assets.config import ConfigError
from tts_assets.corpora.samples import SCHEMA, Sample

SHOWN = 200  # characters of a bad line
ID_DIGITS = 16


class BadLine(ValueError):
    """A line that is no sample; ``reason`` is short and countable."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def separate(paths: Sequence[Path], good: Path) -> Iterator[dict[str, Any]]:
    """Write the samples of all files to ``good``; yield where each bad line stands and why."""
    with good.open("w", encoding="utf-8") as kept:
        for path in paths:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
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
    """The fields of the schema that a line has. Raises :class:`BadLine`."""
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
    return hashlib.sha256(f"{sample.wav_path}\0{sample.transcript}".encode()).hexdigest()[
        :ID_DIGITS
    ]


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
