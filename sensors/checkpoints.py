"""Requests serving model and report of a recipe when its checkpoint improves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dagster import (
    AssetKey,
    AssetSelection,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)

from tts_assets.core.artifacts import ArtifactStore, Checkpoint, open_artifact, readable


def build_checkpoint_sensor(recipes: Sequence[str], storage: Path) -> SensorDefinition:
    """The sensor ``best_checkpoint``, off by default.

    Its cursor maps recipes to the content of the checkpoint that was last considered.
    """

    @sensor(
        name="best_checkpoint",
        asset_selection=AssetSelection.key_prefixes("serving", "report"),
        minimum_interval_seconds=60,
        description="Requests serving model and report of a new best checkpoint of sft/<recipe>.",
    )
    def best_checkpoint(context: SensorEvaluationContext) -> SensorResult:
        store = ArtifactStore(storage)
        seen: dict[str, str] = json.loads(context.cursor or "{}")
        requests, notes = [], []
        for recipe in recipes:
            newest = newest_checkpoint(store, recipe)
            if newest is None or newest.content in (seen.get(recipe), served(store, recipe)):
                continue
            seen[recipe] = newest.content
            if better := better_than(store, newest):
                notes.append(f"sft/{recipe} is not requested: {better}")
                continue
            # No run key: a checkpoint that becomes current again must be converted again.
            selection = [AssetKey(["serving", recipe]), AssetKey(["report", recipe])]
            requests.append(RunRequest(asset_selection=selection))
        for note in notes:
            context.log.info(note)
        nothing = "; ".join(["no checkpoint is new", *notes])
        return SensorResult(
            run_requests=requests,
            skip_reason=None if requests else nothing,
            cursor=json.dumps(seen, sort_keys=True),
        )

    return best_checkpoint


def newest_checkpoint(store: ArtifactStore, recipe: str) -> Checkpoint | None:
    """The current checkpoint of a recipe, if there is one."""
    link = store.folder(f"sft/{recipe}") / "current"
    return Checkpoint.open(link.resolve()) if link.exists() else None


def served(store: ArtifactStore, recipe: str) -> str | None:
    """The content digest of the checkpoint that the current serving model was made from."""
    link = store.folder(f"serving/{recipe}") / "current"
    if not link.exists():
        return None
    return open_artifact(link.resolve()).manifest.inputs["checkpoint"].content


def better_than(store: ArtifactStore, newest: Checkpoint) -> str | None:
    """A message if another checkpoint has a validation loss at most that of ``newest``, else None.

    Losses are compared only between checkpoints validated on the same arrays.
    """
    loss = newest.facts.val_loss
    if loss is None:
        return None
    published = store.published(newest.asset)
    earlier = [readable(folder) for folder in published if folder != newest.path]
    comparable = [
        (other.facts.val_loss, other.path.name)
        for other in earlier
        if isinstance(other, Checkpoint)
        and other.facts.val_loss is not None
        and validated_on(other) == validated_on(newest)
    ]
    if not comparable or loss < min(comparable)[0]:
        return None
    best, name = min(comparable)
    return f"its val_loss {loss:.4f} is not below {best:.4f} of {name}"


def validated_on(checkpoint: Checkpoint) -> dict[str, str]:
    """The content digests of the arrays of a checkpoint, by input name."""
    inputs = checkpoint.manifest.inputs
    return {name: ref.content for name, ref in inputs.items() if name.startswith("arrays")}
