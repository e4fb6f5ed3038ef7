"""Common Voice: a TSV of one language's release, and its clips in ``clips/`` beside it.

``path`` is the TSV (``train.tsv``, ``other.tsv``, …), or the release's folder for
``validated.tsv``. The speaker is the release's anonymous ``client_id``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry, inside

DEFAULT_LIST = "validated.tsv"
COLUMNS = ("client_id", "path", "sentence")
KEPT = ("age", "gender", "accents", "up_votes", "down_votes")


def read_common_voice(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    path = root / DEFAULT_LIST if root.is_dir() else root
    with path.open(encoding="utf-8-sig", newline="") as lines:
        # Sentences contain plain quotation marks: nothing is quoted in these files.
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise FileNotFoundError(f"{path} has no columns {', '.join(missing)}")
        for number, row in enumerate(rows, start=2):
            where = f"{path.name}:{number}"
            if not row["path"] or row["sentence"] is None:
                yield SetAside(where, "columns are missing", f"a row has {', '.join(COLUMNS)}")
                continue
            audio = inside(path.parent, f"clips/{row['path']}", where)
            facts = {name: row[name] for name in KEPT if row.get(name)}
            fields = {"original_data": facts} if facts else {}
            yield entry(
                config,
                audio,
                where,
                row["sentence"],
                speaker=row["client_id"],
                language=row.get("locale") or "",
                **fields,
            )
