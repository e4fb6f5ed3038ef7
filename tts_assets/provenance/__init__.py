"""Consents that have ended or were withdrawn, and what was made from a corpus.

The file ``withdrawn.jsonl`` of a storage lists the corpora whose speakers no longer agree. It is
read with the project file, and whenever a model is published, promoted or opened; a server reads it
for each request. A serving model outside of a storage has no such list: delete copies.

Recipes leave out corpora whose consent has ended or was withdrawn. What was made from such a corpus
in any way, as the manifests of artifacts say, is refused until it is made again without it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from tts_assets.core.artifacts import ArtifactStore, Handle, atomic_write, readable, store_of
from tts_assets.core.artifacts.pruning import key_of
from tts_assets.core.artifacts.store import (
    WITHDRAWN_FILE,
    Withdrawal,
    corpora_of,
    withdrawals,
)
from tts_assets.core.artifacts.verification import artifact_folders
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import (
    Consent,
    ConsentError,
    VoiceConsent,
    check_consents,
)

log = logging.getLogger(__name__)
NAMED_BY = ("corpora", "reference_corpora")  # keys of the project file whose values name corpora
STARTS = ("hub", "checkpoint", "base", "start")  # those whose values may be folders of models


def withdraw(store: ArtifactStore, corpus: str, because: str, today: date) -> None:
    """Add a corpus to the list. Raises :class:`ConfigError` if it is on it already."""
    row = Withdrawal.parse({"corpus": corpus, "on": today, "because": because}, "withdrawal")
    path = store.root / WITHDRAWN_FILE
    store.root.mkdir(parents=True, exist_ok=True)
    with FileLock(store.root / f".{WITHDRAWN_FILE}.lock"):  # another process may withdraw, too
        known = withdrawals(store.root)
        if corpus in known:
            raise ConfigError(f"the consent for {corpus} was already withdrawn on {known[corpus]}")
        lines = path.read_text().splitlines() if path.is_file() else []
        lines.append(json.dumps(row.model_dump(mode="json"), sort_keys=True))
        with atomic_write(path) as aside:
            aside.write_text("".join(f"{line}\n" for line in lines))


def invalid(consents: Mapping[str, VoiceConsent | None], storage: Path) -> dict[str, str]:
    """By corpus, why its consent is no longer valid. A corpus without consent is not among them."""
    today = date.today()
    ended = {
        name: f"ended on {one.until}"
        for name, one in consents.items()
        if isinstance(one, Consent) and one.ended(today)
    }
    return ended | {name: f"was withdrawn on {day}" for name, day in withdrawals(storage).items()}


def check_use(
    consents: Mapping[str, VoiceConsent | None],
    refused: str,
    store: ArtifactStore | None,
    used: Collection[str] = (),
) -> dict[str, VoiceConsent]:
    """The consents by corpus, if all of them are valid today.

    ``store``: the storage, None without one. ``used``: the corpora that the model was made from,
    beside those of ``consents``. Adapters name their corpora ``adapter/corpus``. Raises
    :class:`ConsentError`, whose message begins with ``refused``, if a consent is missing, has ended
    or was withdrawn.
    """
    withdrawn = withdrawals(store.root) if store is not None else {}
    for name in sorted({*consents, *used}):
        if (day := withdrawn.get(name.rpartition("/")[2])) is not None:
            raise ConsentError(
                f"{refused}: the consent for corpora.{name} was withdrawn on {day}. Train without "
                f"this corpus; if there is a new consent, delete its line in {WITHDRAWN_FILE}"
            )
    return check_consents(consents, refused, date.today())


def corpora_behind(store: ArtifactStore, *handles: Handle | None) -> frozenset[str]:
    """The corpora that artifacts were made from in any way; None stands for no artifact."""
    return corpora_of(store, [one.reference() for one in handles if one is not None])


def check_model(folder: Path, consents: Mapping[str, VoiceConsent], refused: str) -> None:
    """:func:`check_use` of the serving model in ``folder``, whose card has ``consents``.

    A folder outside of a storage has no list of withdrawals and no inputs.
    """
    found = _published(folder.resolve())
    store, used = (None, frozenset[str]()) if found is None else found
    check_use(consents, refused, store, used)


@lru_cache
def _published(folder: Path) -> tuple[ArtifactStore, frozenset[str]] | None:
    """The storage of a published artifact and the corpora it was made from; None for others."""
    handle = readable(folder)
    if handle is None:
        return None
    store = store_of(handle)
    return store, corpora_of(store, [handle.reference()])


def without_corpora(values: Mapping[str, Any], ended: Mapping[str, str]) -> dict[str, Any]:
    """The values of a project file whose tables do not name the corpora ``ended``.

    ``ended`` has the reason for each corpus, for the warnings. A table that names no other corpus
    keeps them: what it describes is refused when it is made.
    """
    found: set[str] = set()
    kept = {key: _without(value, ended, key, found) for key, value in values.items()}
    for name in sorted(found):
        log.warning("the consent for corpora.%s %s: recipes leave it out", name, ended[name])
    return kept


def _without(value: Any, ended: Mapping[str, str], where: str, found: set[str]) -> Any:
    """``value``, at the dotted key ``where``, without the corpora that are then in ``found``."""
    if where.count(".") and where.rpartition(".")[2] in NAMED_BY and _names_corpora(value):
        others = [name for name in value if name not in ended]
        if value and not others:
            reasons = ", ".join(f"corpora.{name} {ended[name]}" for name in value)
            log.warning("%s names only corpora whose consent ended: %s", where, reasons)
            return value
        found |= set(value) & set(ended)
        return {name: value[name] for name in others} if isinstance(value, Mapping) else others
    if isinstance(value, Mapping):
        return {key: _without(one, ended, f"{where}.{key}", found) for key, one in value.items()}
    return value


def _names_corpora(value: Any) -> bool:
    """Whether it is a list, or a table of weights: not a recipe or corpus named "corpora"."""
    if isinstance(value, Mapping):
        return all(isinstance(one, int | float) for one in value.values())
    return not isinstance(value, str)


def check_starts(
    values: Mapping[str, Any], root: Path, storage: Path, ended: Mapping[str, str], where: str = ""
) -> None:
    """Raise :class:`ConfigError` where a training starts, by its path, from a model of a corpus
    whose consent ``ended``.

    ``values``: the table ``where`` of a project file in ``root``. No manifest records such a start.
    A base of a SpeechLM has a name, so that a path into the storage is always refused.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            check_starts(value, root, storage, ended, f"{where}{key}.")
        elif key in STARTS and isinstance(value, str) and value:
            folder = (root / value).resolve()
            found = readable(folder) if folder.is_relative_to(storage) else None
            if found is None:
                continue
            gone = sorted(corpora_behind(store_of(found), found) & ended.keys())
            if key == "hub":
                raise ConfigError(f"{where}hub is a model of this storage: name its recipe instead")
            if gone:
                raise ConfigError(
                    f"{where}{key} was made from corpora.{gone[0]}, whose consent "
                    f"{ended[gone[0]]}: start from another model"
                )


def artifacts(store: ArtifactStore) -> list[Handle]:
    """All published artifacts of a storage that can be read, sorted by path."""
    folders = sorted(artifact_folders(store.root, store.root))
    return [handle for folder in folders if (handle := readable(folder)) is not None]


def made_from(handles: Iterable[Handle], corpus: str) -> list[Handle]:
    """All artifacts that depend on a corpus: its own, and what was made from them in any way.

    ``corpus`` is the partition of the corpus' data assets. The result is sorted by path.
    """
    by_reference = {key_of(one.reference()): one for one in handles}
    inputs = {
        key: {key_of(reference) for reference in one.manifest.inputs.values()}
        for key, one in by_reference.items()
    }
    affected = {key for key, one in by_reference.items() if one.partition == corpus}
    affected |= {key for keys in inputs.values() for key in keys if key[1] == corpus}  # deleted
    while more := {key for key, keys in inputs.items() if keys & affected} - affected:
        affected |= more
    found = (by_reference[key] for key in affected & by_reference.keys())
    return sorted(found, key=lambda one: one.path)
