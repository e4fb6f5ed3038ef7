"""Options of a single run in Dagster's launchpad.

Resources are not part of a fingerprint. Other steps or another seed give another fingerprint, and
therefore another artifact: the artifact of the recipe is kept, and the next run without options
selects it again.
"""

from __future__ import annotations

from typing import TypeVar

import dagster
from pydantic import Field

from tts_assets.core import config
from tts_assets.core.compute import Shape

Recipe = TypeVar("Recipe", bound=config.Config)
SOURCE = "the launchpad"


class Machines(dagster.Config):
    """Resources of the programs of this run, instead of ``[compute]``."""

    gpus: int | None = Field(
        None,
        ge=0,
        description="GPUs per node, if the program uses any; 0: none. Unset: [compute]",
    )
    processes: int | None = Field(
        None,
        ge=1,
        description="Ranks per node, at most one per GPU; ignored by programs of one process. "
        "Unset: [compute]",
    )
    cpus: int | None = Field(None, ge=1, description="Cores per node. Unset: [compute]")
    memory_gb: float | None = Field(
        None, gt=0, description="Memory per node, for a job that ran out of it. Unset: [compute]"
    )
    hours: float | None = Field(
        None, gt=0, description="Time limit of a batch job. Unset: [compute]"
    )

    def of(self, shape: Shape) -> Shape:
        """``shape`` with these options. Raises :class:`ConfigError` if they are invalid."""
        asked = self.model_dump(include=set(Machines.model_fields), exclude_none=True)
        if not asked:
            return shape
        return Shape.parse({**shape.model_dump(exclude_unset=True), **asked}, SOURCE)


class Training(Machines):
    """Resources, and options that change the result."""

    steps: int | None = Field(
        None,
        gt=0,
        description="Optimizer steps instead of the recipe's, such as 50 for a test. Gives another "
        "result; that of the recipe is kept",
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="Seed instead of the recipe's, to measure its influence. Gives another result; "
        "that of the recipe is kept",
    )

    def of_recipe(self, recipe: Recipe) -> Recipe:
        """``recipe`` with these options. Raises :class:`ConfigError` if they are invalid."""
        asked = self.model_dump(include={"steps", "seed"}, exclude_none=True)
        if not asked:
            return recipe
        if "steps" in asked and "epochs" in type(recipe).model_fields:
            asked["epochs"] = None
        return type(recipe).parse({**recipe.model_dump(exclude_unset=True), **asked}, SOURCE)
