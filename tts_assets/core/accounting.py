"""Records of items that are set aside: excluded from a result, with a reason.

A stage that cannot use an item writes a record to ``set_aside.jsonl`` and continues. Checks compare
the number of items read with the numbers kept and set aside.
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
    """One excluded item.

    ``what`` identifies it: a path relative to the corpus, a file and line, or an utterance id.
    ``reason`` is short and has no variable part, so that reasons can be counted. ``detail`` has the
    particulars and the remedy.
    """

    what: str
    reason: str
    detail: str = ""


def write_set_aside(path: Path, records: Iterable[SetAside]) -> None:
    """Write one JSON object per line, sorted: the bytes do not depend on the order of
    processing."""
    lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in sorted(records)]
    path.write_text("".join(lines), encoding="utf-8")


def read_set_aside(path: Path) -> list[SetAside]:
    """Read the records that :func:`write_set_aside` wrote."""
    with path.open(encoding="utf-8") as lines:  # str.splitlines would also split at U+2028
        return [SetAside(**json.loads(line)) for line in lines]


def count_reasons(records: Iterable[SetAside]) -> dict[str, int]:
    """The number of records by reason, in descending order."""
    return dict(Counter(record.reason for record in records).most_common())


class NothingUsableError(ValueError):
    """A stage has no usable item; the message counts the reasons and has an example of each."""


def raise_nothing_usable(what: str, records: Iterable[SetAside]) -> None:
    """Raise :class:`NothingUsableError` for ``what``, with the reasons in ``records``."""
    examples: dict[str, SetAside] = {}
    counts: Counter[str] = Counter()
    for record in records:
        counts[record.reason] += 1
        examples.setdefault(record.reason, record)
    lines = [
        f"{reason}: {count}, for example {examples[reason].what} ({examples[reason].detail})"
        for reason, count in counts.most_common()
    ]
    raise NothingUsableError("\n".join([what, *lines]))
