"""The real-time factor: seconds of work for a second of speech, below 1 faster than it is heard.

It is of the machine and of its other work as much as of the model: a fact of a report and a number
in Dagster, where it can be watched, and not in the report's files, whose bytes are the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tts_assets.hearing.text_match import rate_interval

NAME = "real_time_factor"


def real_time_factor(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the batches of an evaluation, with its 95 % interval over batches; none of silence.

    A batch is spoken as one: its utterances have no times of their own. What was said elsewhere
    has none at all.
    """
    timed = [record for record in records if record["elapsed"] is not None]
    pairs = [(r["elapsed"], sum(row["seconds"] for row in r["rows"])) for r in timed]
    heard = [(elapsed, seconds) for elapsed, seconds in pairs if seconds > 0]
    if not heard:
        return {}
    elapsed, seconds = zip(*heard, strict=True)
    interval = rate_interval(elapsed, seconds)
    return {
        NAME: sum(elapsed) / sum(seconds),
        f"{NAME}_low": interval.low,
        f"{NAME}_high": interval.high,
    }
