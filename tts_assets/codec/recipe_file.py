"""``recipe.json``: how published weights were made."""

from __future__ import annotations

import json
from pathlib import Path

from tts_assets.artifacts import sha256_file, written_aside
from tts_assets.codec.config import TrainingRecipe


def write_recipe(recipe: TrainingRecipe, folder: Path, base: Path | None) -> None:
    """``base``: the weights it began with. They are named by their digest: a path would mean
    nothing elsewhere, and would make equal results differ. The architecture is theirs."""
    values = recipe.model_dump(mode="json")
    if base is not None:
        values.pop("architecture", None)
        values["start" if "start" in values else "base"] = sha256_file(base)
    with written_aside(folder / "recipe.json") as aside:
        aside.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
