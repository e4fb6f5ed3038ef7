"""Whether this machine can run a recipe: asked before any worker starts."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from tts_assets.core.compute import visible_devices
from tts_assets.core.config import ConfigError
from tts_assets.sft.config import SftRecipe


class MachineError(ConfigError):
    """This machine cannot run the recipe: the message says what to change."""


def check(recipe: SftRecipe, processes: int) -> None:
    """Raise :class:`MachineError` where ``processes`` ranks of the recipe cannot run here, on
    this node."""
    gpus = len(visible_devices())
    if 0 < gpus < processes:
        raise MachineError(
            f"{processes} processes need a GPU each, and this machine shows {gpus}: set "
            f"compute.processes to at most {gpus}"
        )
    if recipe.strategy.name == "deepspeed" and find_spec("deepspeed") is None:
        raise MachineError(
            "strategy.name = 'deepspeed' needs the package deepspeed, which is not installed: "
            "install it, or write strategy.name = 'fsdp', which shares out as much"
        )
    if not recipe.compile:
        return
    if gpus and find_spec("triton") is None:
        raise MachineError("compile = true needs the package triton on GPUs; install it")
    compiler = os.environ.get("CXX", "g++")
    if not gpus and shutil.which(compiler) is None:
        raise MachineError(
            f"compile = true needs a C++ compiler, and {compiler} is not found: install one, or "
            "write compile = false"
        )
