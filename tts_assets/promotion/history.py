"""The promotions of a voice: the artifact ``promoted/<voice>``, its history and its rollback.

Each promotion is an artifact that names the one before it. ``current`` names the promoted model.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter

from tts_assets.core.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    Build,
    Promoted,
    PromotionEvent,
    Report,
    ServingModel,
    readable,
    verify,
)
from tts_assets.core.config import canonical_json
from tts_assets.core.metadata import table_row
from tts_assets.corpora.config import VoiceConsent
from tts_assets.provenance import check_model
from tts_assets.serving.config import SERVING_FILE

CODE_VERSION = "1"
CARD_FILE = "promotion.json"
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)


def asset_name(voice: str) -> str:
    """The asset of a voice's promoted model."""
    return f"promoted/{voice}"


@contextmanager
def locked(store: ArtifactStore, voice: str) -> Iterator[None]:
    """Holds the lock of a voice: an asset and a command may want to change it at the same time."""
    folder = store.folder(asset_name(voice))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def promoted_now(store: ArtifactStore, voice: str) -> Promoted | None:
    """The promoted model; None before the first promotion.

    If its folder was deleted because it was damaged, the latest promotion that is left counts.
    """
    if (store.folder(asset_name(voice)) / "current").exists():
        handle = store.current(asset_name(voice))
        assert isinstance(handle, Promoted)
        return handle
    left = [readable(folder) for folder in store.published(asset_name(voice))]
    kept = [handle for handle in left if isinstance(handle, Promoted)]
    followed = {handle.facts.previous for handle in kept}
    last = [handle for handle in kept if handle.manifest.fingerprint not in followed]
    return max(last, key=lambda handle: handle.facts.when, default=None)


def history(store: ArtifactStore, voice: str) -> list[Promoted]:
    """All changes, oldest first; it starts after the last change that was deleted."""
    chain: list[Promoted] = []
    handle = promoted_now(store, voice)
    while handle is not None:
        chain.append(handle)
        previous = handle.facts.previous
        before = readable(store.folder(asset_name(voice)) / previous) if previous else None
        handle = before if isinstance(before, Promoted) else None
    return chain[::-1]


def is_cut(chain: list[Promoted]) -> bool:
    """Whether changes before the history were deleted."""
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
    """Make ``model`` the promoted model. The caller holds :func:`locked`.

    Raises :class:`ArtifactError` if its files are damaged, and :class:`ConsentError` if a consent
    for its voices has ended.
    """
    verify(store, model)
    check_consents_of(model)
    before = promoted_now(store, voice)
    content = model.facts.model if isinstance(model, Promoted) else model.content
    previous = before.manifest.fingerprint if before else None
    inputs = {"serving": model, **({"report": report} if report else {})}
    config = {"voice": voice, "event": event, "previous": previous}
    build = Build(asset_name(voice), inputs, config, CODE_VERSION)
    work = store.work_folder(build)
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)  # left by a killed process
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


def check_consents_of(model: ServingModel | Promoted) -> None:
    """Raise :class:`ConsentError` if a consent for the voices of ``model`` is no longer valid."""
    card = json.loads((model.path / SERVING_FILE).read_text())
    consents = TypeAdapter(dict[str, VoiceConsent]).validate_python(card.get("consents", {}))
    check_model(model.path, consents, f"{model.facts.recipe} is not promoted")


def link_tree(source: Path, target: Path) -> None:
    """Hard links to the files of an artifact, or copies if the file system has no links."""
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
    """The promoted models without those that were rolled back; the last one is promoted now.

    A rollback stands for the model that it restores if that model is not below it in the stack.
    """
    kept: list[Promoted] = []
    for handle in chain:
        if handle.facts.event == "rolled back":
            del kept[-1:]
        if not kept or kept[-1].facts.model != handle.facts.model:
            kept.append(handle)
    return kept


def refused_models(chain: list[Promoted]) -> set[str]:
    """Contents of models that were rolled back and not promoted by hand afterwards."""
    found: set[str] = set()
    for handle in chain:
        if handle.facts.left is not None:
            found.add(handle.facts.left)
        else:
            found.discard(handle.facts.model)
    return found


def rollback(store: ArtifactStore, voice: str, why: str) -> Promoted:
    """Promote the previous model again. Raises :class:`ArtifactError` if there is none."""
    with locked(store, voice):
        chain = history(store, voice)
        kept = stack(chain)
        if len(kept) < 2:
            if is_cut(chain):
                raise ArtifactError(
                    f"the previous model of {voice} is no longer stored: promote a recipe by hand"
                )
            raise ArtifactError(
                f"no other model was promoted for {voice} before; see: "
                f"python -m tts_assets.promotion history {voice}"
            )
        before = kept[-2]
        return switch(store, voice, before, before.facts.recipe, "rolled back", why)


def describe_history(chain: list[Promoted]) -> str:
    """The history as a Markdown table, newest change first."""
    lines = ["| promoted at | recipe | model | why |", "|---|---|---|---|"]
    for handle in reversed(chain):
        f = handle.facts
        lines.append(table_row([f.when, f"{f.recipe} ({f.event})", f.model[:12], f.why]))
    if is_cut(chain):
        lines.append("| | earlier changes are no longer stored | | |")
    return "\n".join(lines)
