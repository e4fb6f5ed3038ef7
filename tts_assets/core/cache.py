"""Small facts that are slow to find, kept by the digest of what they were found from.

A cache decides nothing: deleted, it is filled again, and results have the same bytes. What is
kept is JSON, in one SQLite file a kind of fact, which several processes may use at once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

BATCH = 500  # keys of one query; SQLite allows at least 999 parameters
WAIT = 60.0  # seconds for another process' transaction


class RecordCache:
    """JSON values by string key. A value, once there, is never changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that are known."""
        found: dict[str, Any] = {}
        left = iter(keys)
        with self._open() as connection:
            while some := list(islice(left, BATCH)):
                marks = ",".join("?" * len(some))
                rows = connection.execute(
                    f"SELECT key, value FROM records WHERE key IN ({marks})", some
                )
                found.update((key, json.loads(value)) for key, value in rows)
        return found

    def put(self, records: Mapping[str, Any]) -> None:
        """Keep the records in one transaction; a key that is known keeps its value."""
        rows = [(key, json.dumps(value, sort_keys=True)) for key, value in records.items()]
        with self._open() as connection:
            connection.executemany("INSERT OR IGNORE INTO records VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=WAIT)
        try:
            with connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value TEXT) "
                    "WITHOUT ROWID"
                )
                yield connection
        finally:
            connection.close()
