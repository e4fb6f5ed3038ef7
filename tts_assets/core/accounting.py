"""What was set aside and why: nothing is lost silently.

A stage that cannot use an item records it here and goes on; in = kept + set aside is checked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

SET_ASIDE_FILE = "set_aside.jsonl"


@dataclass(frozen=True, order=True)
class SetAside:
    """One item that was left out.

    ``what`` names it (a path relative to the corpus, a file and line, an utterance id);
    ``reason`` is short and the same for all of a kind, so that it can be counted; ``detail`` says
    the rest, and what would help.
    """

    what: str
    reason: str
    detail: str = ""


def write_set_aside(path: Path, records: Iterable[SetAside]) -> None:
    """One JSON object a line, sorted, so that the bytes do not depend on the order of the work."""
    lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in sorted(records)]
    path.write_text("".join(lines), encoding="utf-8")


def read_set_aside(path: Path) -> list[SetAside]:
    with path.open(encoding="utf-8") as lines:  # splitlines would split at U+2028, too
        return [SetAside(**json.loads(line)) for line in lines]


def count_reasons(records: Iterable[SetAside]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first."""
    return dict(Counter(record.reason for record in records).most_common())
