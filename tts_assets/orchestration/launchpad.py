"""What a person may ask of one run in Dagster's launchpad, typed and with help texts.

Machines are no part of a result, nor of its fingerprint. What a training is told otherwise makes
another result, with a fingerprint of its own: nothing of the recipe's result is overwritten, and
the next run that asks for nothing takes that up again.
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
    """What the programs of this run are given instead of ``[compute]``."""

    gpus: int | None = Field(
        None,
        ge=0,
        description="GPUs of a node, for a program that uses any; 0: none. Unset: [compute]",
    )
    processes: int | None = Field(
        None,
        ge=1,
        description="Ranks of a node, at most one a GPU; a program that is one stays one. Unset: "
        "[compute]",
    )
    cpus: int | None = Field(None, ge=1, description="Cores of a node. Unset: [compute]")
    memory_gb: float | None = Field(
        None, gt=0, description="Memory of a node, for a job that ran out of it. Unset: [compute]"
    )
    hours: float | None = Field(
        None, gt=0, description="Time limit of a batch job, which saves before it. Unset: [compute]"
    )

    def of(self, shape: Shape) -> Shape:
        """``shape`` with what is asked for; raises ConfigError where that cannot be."""
        asked = self.model_dump(include=set(Machines.model_fields), exclude_none=True)
        if not asked:
            return shape
        return Shape.parse({**shape.model_dump(exclude_unset=True), **asked}, SOURCE)


class Training(Machines):
    """Machines, and what makes this run another than the recipe's."""

    steps: int | None = Field(
        None,
        gt=0,
        description="Optimizer steps instead of the recipe's: 50 for a first look. Another result "
        "than the recipe's, which stays as it is",
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="Instead of the recipe's: does the result depend on luck? Another result than "
        "the recipe's, which stays as it is",
    )

    def of_recipe(self, recipe: Recipe) -> Recipe:
        """``recipe`` with what is asked for; raises ConfigError where that cannot be."""
        asked = self.model_dump(include={"steps", "seed"}, exclude_none=True)
        if not asked:
            return recipe
        if "steps" in asked and "epochs" in type(recipe).model_fields:
            asked["epochs"] = None
        return type(recipe).parse({**recipe.model_dump(exclude_unset=True), **asked}, SOURCE)
