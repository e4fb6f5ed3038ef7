"""The pointer: the artifact ``promoted/<voice>`` whose ``current`` link says what serves.

Each change is an artifact of its own that names the one before it, so that the chain is the
history; switching is the store's one rename. An artifact holds the serving model's files as hard
links (which cost no space): what serves stays whole, whatever becomes of ``serving/<recipe>``.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from tts_assets.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    Build,
    Promoted,
    PromotionEvent,
    Report,
    ServingModel,
    readable,
)
from tts_assets.config import canonical_json

CODE_VERSION = "1"
CARD_FILE = "promotion.json"
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)


def asset_name(voice: str) -> str:
    return f"promoted/{voice}"


@contextmanager
def locked(store: ArtifactStore, voice: str) -> Iterator[None]:
    """One change at a time: an asset and a command may want to switch at once."""
    folder = store.folder(asset_name(voice))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def serving_now(store: ArtifactStore, voice: str) -> Promoted | None:
    """What serves; None before the first promotion."""
    if not (store.folder(asset_name(voice)) / "current").is_symlink():
        return None
    handle = store.current(asset_name(voice))
    assert isinstance(handle, Promoted)
    return handle


def history(store: ArtifactStore, voice: str) -> list[Promoted]:
    """All changes, the first one first; those alone after the last that somebody deleted."""
    chain: list[Promoted] = []
    handle = serving_now(store, voice)
    while handle is not None:
        chain.append(handle)
        previous = handle.facts.previous
        before = readable(store.folder(asset_name(voice)) / previous) if previous else None
        handle = before if isinstance(before, Promoted) else None
    return chain[::-1]


def is_cut(chain: list[Promoted]) -> bool:
    """Whether there were changes before those of the history, which are gone."""
    return bool(chain) and chain[0].facts.previous is not None


def switch(
    store: ArtifactStore,
    voice: str,
    model: ServingModel | Promoted,
    recipe: str,
    event: PromotionEvent,
    why: str,
    report: Report | None = None,
) -> Promoted:
    """Let ``model`` serve from now on. The caller holds :func:`locked`."""
    before = serving_now(store, voice)
    content = model.facts.model if isinstance(model, Promoted) else model.content
    previous = before.manifest.fingerprint if before else None
    inputs = {"serving": model, **({"report": report} if report else {})}
    config = {"voice": voice, "event": event, "previous": previous}
    build = Build(asset_name(voice), inputs, config, CODE_VERSION)
    work = store.work_folder(build)
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)  # of a kill in between
    link_tree(model.path, result)
    card = {"voice": voice, "recipe": recipe, "model": content}
    (result / CARD_FILE).write_text(canonical_json(card) + "\n")
    facts = {
        **card,
        "event": event,
        "why": why,
        "previous": previous,
        "left": before.facts.model if before and event == "rolled back" else None,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    handle = store.publish(Promoted, build, result, facts)
    shutil.rmtree(work)
    assert isinstance(handle, Promoted)
    return handle


def link_tree(source: Path, target: Path) -> None:
    """The files of an artifact as hard links, or copies where the disk has none."""
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source)
        if not file.is_file() or str(name) in (MANIFEST, CARD_FILE):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target / name)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copy2(file, target / name)


def stack(chain: list[Promoted]) -> list[Promoted]:
    """What served and was not rolled back from, without repetitions; the last one serves. A
    rollback stands for what it brought back where that is not below what it left."""
    left: list[Promoted] = []
    for handle in chain:
        if handle.facts.event == "rolled back":
            del left[-1:]
        if not left or left[-1].facts.model != handle.facts.model:
            left.append(handle)
    return left


def refused(chain: list[Promoted]) -> set[str]:
    """Contents of models that were rolled back from, and not brought back by hand since."""
    found: set[str] = set()
    for handle in chain:
        if handle.facts.left is not None:
            found.add(handle.facts.left)
        else:
            found.discard(handle.facts.model)
    return found


def rollback(store: ArtifactStore, voice: str, why: str) -> Promoted:
    """The model that served before this one serves again; raises ArtifactError where none did."""
    with locked(store, voice):
        chain = history(store, voice)
        left = stack(chain)
        if len(left) < 2:
            if is_cut(chain):
                raise ArtifactError(
                    f"what served {voice} before is no longer stored: promote a recipe by hand"
                )
            raise ArtifactError(
                f"no other model served {voice} before what serves now; see: "
                f"python -m tts_assets.promotion history {voice}"
            )
        before = left[-2]
        return switch(store, voice, before, before.facts.recipe, "rolled back", why)


def describe(chain: list[Promoted]) -> str:
    """The history as a table in Markdown, the newest change first."""
    lines = ["| when | what serves since | model | why |", "|---|---|---|---|"]
    for handle in reversed(chain):
        f = handle.facts
        lines.append(f"| {f.when} | {f.recipe} ({f.event}) | {f.model[:12]} | {f.why} |")
    if is_cut(chain):
        lines.append("| | earlier ones are no longer stored | | |")
    return "\n".join(lines)
