"""The files that links in the metadata of assets lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from resources.artifact_store import FILES_URL, LOCATION


def linked_file(value: Any, root: Path) -> Path:
    """The file of a link to the viewer of notebooks, or to the files that ``make ui`` serves."""
    url = urlsplit(str(value.value))
    if url.path == "/notebook":
        query = parse_qs(url.query)
        assert query["repoLocName"] == [LOCATION]
        return Path(query["path"][0])
    assert f"{url.scheme}://{url.netloc}" == FILES_URL
    return root / unquote(url.path).removeprefix("/")
