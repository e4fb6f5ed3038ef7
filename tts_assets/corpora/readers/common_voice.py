"""Common Voice: a TSV of one language's release, and its clips in ``clips/`` beside it.

``path`` is the TSV (``train.tsv``, ``other.tsv``, …), or the release's folder for
``validated.tsv``. The speaker is the release's anonymous ``client_id``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.config import ConfigError
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry
from tts_assets.corpora.readers.files import inside, lines

DEFAULT_LIST = "validated.tsv"
COLUMNS = ("client_id", "path", "sentence")
KEPT = ("age", "gender", "accents", "up_votes", "down_votes")


def read_common_voice(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    path = root / DEFAULT_LIST if root.is_dir() else root
    rows = lines(path)
    header = _header(path, next(rows, (0, ""))[1])
    for number, line in rows:
        if isinstance(line, SetAside):
            yield line
            continue
        where = f"{path.name}:{number}"
        # Sentences contain plain quotation marks: nothing is quoted in these files.
        row = dict(zip(header, line.split("\t"), strict=False))
        if not row.get("path") or "sentence" not in row:
            yield SetAside(where, "columns are missing", f"a row has {', '.join(COLUMNS)}")
            continue
        facts = {name: row[name] for name in KEPT if row.get(name)}
        fields = {"original_data": facts} if facts else {}
        yield entry(
            config,
            inside(path.parent, f"clips/{row['path']}", where),
            where,
            row["sentence"],
            speaker=row["client_id"],
            language=row.get("locale", ""),
            **fields,
        )


def _header(path: Path, line: str | SetAside) -> list[str]:
    header = [] if isinstance(line, SetAside) else line.split("\t")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ConfigError(f"{path} has no columns {', '.join(missing)}; mend path or reader")
    return header
