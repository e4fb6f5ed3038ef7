"""What the assets of RLHF read, as part of their fingerprints, and the programs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.launcher import Program
from tts_assets.core.artifacts import (
    CodeArrays,
    EvaluationSuite,
    Preferences,
    ServingModel,
    SpeakerEncoderCheckpoint,
)
from tts_assets.core.compute import Shape, visible_devices
from tts_assets.core.config import ConfigError
from tts_assets.rlhf.config import RlhfProgram, RlhfRecipe, located_encoder
from tts_assets.rlhf.dpo_config import PairSource, PreferencesConfig, PreferencesProgram
from tts_assets.rlhf.prompts import PromptSet, recipe_prompts
from tts_assets.rlhf.rewards import function_digests
from tts_assets.rlhf.rollouts import hold_out
from tts_assets.serving.config import VllmConfig

# What of a GRPO recipe determines its completions and their rewards, but not their training.
ROLLOUT_KEYS = ("prompts", "rewards", "combine", "heldout", "sampling", "generations", "seed")


@dataclass(frozen=True)
class RolloutInputs:
    """The prompts and rewards of a GRPO recipe, read from artifacts.

    ``recipe``: with paths and commits for the program; ``identity``: without them. ``known``: what
    is in the fingerprint beside ``artifacts``, the inputs by name.
    """

    recipe: RlhfRecipe
    identity: dict[str, Any]
    base: ServingModel
    prompts: PromptSet
    held_out: int
    functions: dict[str, str]
    artifacts: dict[str, Any]

    @classmethod
    def read(
        cls,
        recipe: RlhfRecipe,
        root: Path,
        caches: Path,
        base: ServingModel,
        suite: EvaluationSuite,
        arrays: Mapping[str, CodeArrays] | None = None,
        encoder: SpeakerEncoderCheckpoint | None = None,
    ) -> RolloutInputs:
        """Reads the inputs of ``recipe``. Relative paths start at ``root``.

        Raises :class:`PromptError` if the prompts cannot be used.
        """
        folders = {corpus: handle.path for corpus, handle in (arrays or {}).items()}
        prompts = recipe_prompts(recipe, root, base.path, suite.path, folders, caches)
        _, held_out = hold_out(prompts.prompts, recipe.heldout)  # raises if all are held out
        located, identity = located_encoder(recipe, encoder, root)
        named = {"base": base, "arrays": arrays, "encoder": encoder}
        return cls(
            recipe=located,
            identity=identity,
            base=base,
            prompts=prompts,
            held_out=len(held_out),
            functions=function_digests(recipe.rewards),
            artifacts={name: handle for name, handle in named.items() if handle is not None},
        )

    @property
    def known(self) -> dict[str, Any]:
        """What determines a training of the recipe beside its artifacts."""
        functions = {"functions": self.functions} if self.functions else {}
        return {"recipe": self.identity, "prompts": self.prompts.digest, **functions}

    @property
    def shown(self) -> dict[str, Any]:
        """Metadata: the number of prompts, and why texts were left out."""
        return {
            "prompts": len(self.prompts.prompts),
            "prompts_held_out": self.held_out,
            "prompts_left_out": dict(self.prompts.left_out),
        }

    def program(self, work: Path, name: str, vllm: VllmConfig) -> RlhfProgram:
        """Writes the prompts to ``work``, and returns the program of the recipe ``name``."""
        return RlhfProgram(
            run_dir=work,
            name=name,
            recipe=self.recipe,
            serving_model=self.base.path,
            prompts=self.prompts.write(work / "prompts.jsonl"),
            vllm=vllm,
        )

    def pairs(self, config: PreferencesConfig, vllm: VllmConfig) -> PairSource:
        """Returns the completions of the base as pairs; the training of the recipe is no matter."""
        rollouts = {key: self.identity[key] for key in ROLLOUT_KEYS}
        rollouts |= self.recipe.engine.identity()

        def program(work: Path) -> PreferencesProgram:
            made = self.program(work, config.rollouts, vllm)
            return PreferencesProgram(run_dir=work, rollouts=made, pairs=config.pairs)

        known = {**self.known, "recipe": rollouts, "pairs": config.pairs}
        return PairSource(known, self.artifacts, program)


def with_engine(module: str, program: RlhfProgram | PreferencesProgram, shape: Shape) -> Program:
    """Returns the program ``module``, with vLLM as a second role if the recipe uses it."""
    engine = program.engine_program()
    if engine is None:
        return Program(module, program, shape)
    on_gpus = bool(visible_devices() if shape.gpus is None else shape.gpus)
    engine_shape = shape.alone().model_copy(update={"gpus": engine.engine.gpus if on_gpus else 0})
    shared = on_gpus and engine.engine.shares_gpu
    service = Program("tts_assets.rlhf.engine", engine, engine_shape, shares_gpu=shared)
    return Program(module, program, shape, service=service)


def check_codec(name: str, preferences: Preferences, base: ServingModel) -> None:
    """Raises :class:`ConfigError` if the pairs of ``dpo.<name>`` are of another codec."""
    if preferences.facts.codec != base.facts.codec:
        raise ConfigError(
            f"dpo.{name}: {preferences.asset} has codes of codec {preferences.facts.codec[:12]}, "
            f"and {base.asset} speaks those of {base.facts.codec[:12]}: make the pairs with models "
            "of this codec"
        )
