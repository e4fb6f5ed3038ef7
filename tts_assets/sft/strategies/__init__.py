"""How ranks share the work of one model: ``open_strategy`` gives a run its :class:`Strategy`."""

from __future__ import annotations

from tts_assets.program import Run
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.model import SpeechLoss
from tts_assets.sft.strategies.base import Strategy


def open_strategy(run: Run, recipe: SftRecipe, loss: SpeechLoss) -> Strategy:
    """The strategy of the recipe; one rank alone holds the whole model under any name.

    Each library is imported where it is used: DeepSpeed alone takes seconds.
    """
    name = recipe.strategy.name
    if name == "ddp" or run.world_size == 1:
        from tts_assets.sft.strategies.ddp import Ddp

        return Ddp(run, loss, recipe.optimizer)
    if name == "fsdp":
        from tts_assets.sft.strategies.fsdp import Fsdp

        return Fsdp(run, loss, recipe.optimizer)
    from tts_assets.sft.strategies.zero import Zero

    return Zero(run, loss, recipe.optimizer, recipe.strategy.zero_stage or 2)
