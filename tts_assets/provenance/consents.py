"""Consent that was withdrawn before its end.

The file ``withdrawn.jsonl`` of a storage lists the corpora whose speakers no longer agree. It is
read whenever a model is published, promoted or opened, and by a server for each request. A serving
model outside of a storage has no such list: delete copies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from tts_assets.core.artifacts import ArtifactStore, atomic_write, readable, store_of
from tts_assets.core.config import Config, ConfigError
from tts_assets.corpora.config import ONE_LINE, ConsentError, VoiceConsent, check_consents

WITHDRAWN_FILE = "withdrawn.jsonl"


class Withdrawal(Config):
    """One line of the file: from the day ``on``, no model of the corpus is used."""

    corpus: str = Field(pattern=ONE_LINE)
    on: date
    because: str = Field("", pattern=r"^[^\x00-\x1f]*$")


def withdrawals(root: Path) -> dict[str, date]:
    """The day of the withdrawal by corpus, for the storage at ``root``.

    Raises :class:`ConfigError` for a damaged file.
    """
    path = root / WITHDRAWN_FILE
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = Withdrawal.parse(json.loads(line), f"{path}:{number}")
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{number}: not JSON ({error})") from None
        found[row.corpus] = row.on
    return found


def withdraw(store: ArtifactStore, corpus: str, because: str, today: date) -> None:
    """Add a corpus to the list. Raises :class:`ConfigError` if it is on it already."""
    known = withdrawals(store.root)
    if corpus in known:
        raise ConfigError(f"the consent for {corpus} was already withdrawn on {known[corpus]}")
    row = Withdrawal.parse({"corpus": corpus, "on": today, "because": because}, "withdrawal")
    path = store.root / WITHDRAWN_FILE
    before = path.read_text() if path.is_file() else ""
    store.root.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        aside.write_text(f"{before}{json.dumps(row.model_dump(mode='json'), sort_keys=True)}\n")


@lru_cache
def storage_of(folder: Path) -> ArtifactStore | None:
    """The storage that holds a published model; None for any other folder."""
    handle = readable(folder.resolve())
    return None if handle is None else store_of(handle)


def check_use(
    consents: Mapping[str, VoiceConsent | None], refused: str, store: ArtifactStore | None
) -> dict[str, VoiceConsent]:
    """The consents by corpus, if all of them are valid today.

    ``store``: the storage, None without one. Adapters name their corpora ``adapter/corpus``. Raises
    :class:`ConsentError`, whose message begins with ``refused``, if a consent is missing, has ended
    or was withdrawn.
    """
    withdrawn = withdrawals(store.root) if store is not None else {}
    for name in consents:
        if (day := withdrawn.get(name.rpartition("/")[2])) is not None:
            raise ConsentError(
                f"{refused}: the consent for corpora.{name} was withdrawn on {day}. Train without "
                f"this corpus; if there is a new consent, delete its line in {WITHDRAWN_FILE}"
            )
    return check_consents(consents, refused, date.today())
