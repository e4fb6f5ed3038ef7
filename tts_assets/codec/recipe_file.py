"""``recipe.json``: how published weights were made."""

from __future__ import annotations

import json
from pathlib import Path

from tts_assets.artifacts import sha256_file, written_aside
from tts_assets.codec.config import TrainingRecipe


def write_recipe(recipe: TrainingRecipe, folder: Path, key: str, weights: Path | None) -> None:
    """``key`` names what it began with, if there were ``weights``, by their digest: a path would
    mean nothing elsewhere, and would make equal results differ. The architecture is theirs."""
    values = recipe.model_dump(mode="json")
    if weights is not None:
        values.pop("architecture", None)
        values[key] = sha256_file(weights)
    with written_aside(folder / "recipe.json") as aside:
        aside.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
