"""Dagster assets of RLHF: ``rlhf/<recipe>`` (GRPO), ``dpo/<recipe>`` and ``preferences/<name>``.

Both train the serving model of their base recipe. Preferences that are votes of a blind test are in
``evaluation/assets.py``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dagster import AssetChecksDefinition, AssetIn, AssetKey, AssetsDefinition

from tts_assets.core.artifacts import (
    ArtifactStore,
    Checkpoint,
    CodeArrays,
    EvaluationSuite,
    Preferences,
    ServingModel,
    SpeakerEncoderCheckpoint,
)
from tts_assets.core.compute import Shape
from tts_assets.orchestration.checks import artifact_check, losses_check
from tts_assets.orchestration.dependencies import code_arrays_of
from tts_assets.orchestration.program_asset import (
    Machines,
    Plan,
    Request,
    Training,
    artifact_asset,
    program_asset,
)
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.dpo_config import DpoProgram, DpoRecipe, PairSource, PreferencesConfig
from tts_assets.rlhf.reporting import (
    count_all_pairs,
    describe_checkpoint,
    describe_dpo,
    describe_preferences,
    find_collapse,
)
from tts_assets.serving.config import VllmConfig
from tts_assets.speakers.assets import encoder_input

CODE_VERSION = "5"
DPO_VERSION = PREFERENCES_VERSION = "1"
PREFERENCES = "tts_assets.rlhf.preferences"  # the program
Built = list[AssetsDefinition | AssetChecksDefinition]


def build_assets(
    recipes: Mapping[str, RlhfRecipe | DpoRecipe], shape: Shape, root: Path, vllm: VllmConfig
) -> Built:
    """Returns an asset and its checks for each ``[rlhf.<name>]`` and ``[dpo.<name>]``.

    ``root`` is the folder of relative paths, ``vllm`` the environment of rollout engines.
    """
    definitions: Built = []
    for name, recipe in recipes.items():
        if isinstance(recipe, DpoRecipe):
            made = dpo_asset(name, recipe, shape)
        else:
            made = rlhf_asset(name, recipe, shape, root, vllm)
        definitions += [made, losses_check(made), collapse_check(made, recipe)]
    return definitions


def rlhf_asset(
    name: str, recipe: RlhfRecipe, shape: Shape, root: Path, vllm: VllmConfig
) -> AssetsDefinition:
    """Returns the asset ``rlhf/<name>``.

    The evaluation suite is an input because its texts are left out of the prompts. The prompts are
    part of the fingerprint, the suite is not: another suite trains again only if the prompts
    change.
    """

    def plan(
        request: Request,
        base: ServingModel,
        suite: EvaluationSuite,
        arrays: Mapping[str, CodeArrays] | None = None,
        encoder: SpeakerEncoderCheckpoint | None = None,
    ) -> Plan[Checkpoint]:
        from tts_assets.rlhf.inputs import RolloutInputs, with_engine

        asked, caches = request.recipe(recipe), request.store.caches
        read = RolloutInputs.read(asked, root, caches, base, suite, arrays, encoder)

        def make(work: Path) -> Mapping[str, Any]:
            program = read.program(work, name, vllm)
            return request.launch(
                with_engine("tts_assets.rlhf.train", program, request.shape(shape))
            )

        return Plan(
            read.known,
            make=make,
            inputs=read.artifacts,
            seed=asked.seed,
            describe=lambda made: {**read.shown, **describe_checkpoint(made, asked)},
        )

    return artifact_asset(
        ["rlhf", name],
        plan,
        options=Training.shown_for(recipe),
        ins=inputs_of(recipe),
        code_version=CODE_VERSION,
        group_name="rlhf",
        kinds={"grpo", "pytorch"},
        description=f"GRPO from serving/{recipe.base} with the rewards "
        f"{', '.join(reward.name for reward in recipe.rewards)}, {recipe.steps} steps.",
    )


def dpo_asset(name: str, recipe: DpoRecipe, shape: Shape) -> AssetsDefinition:
    """Returns the asset ``dpo/<name>``."""

    def plan(request: Request, base: ServingModel, preferences: Preferences) -> Plan[Checkpoint]:
        from tts_assets.rlhf.inputs import check_codec

        asked = request.recipe(recipe)
        check_codec(name, preferences, base)
        return Plan(
            asked.identity(),
            program=lambda work: DpoProgram(
                run_dir=work,
                name=name,
                recipe=asked,
                serving_model=base.path,
                preferences=preferences.path,
            ),
            seed=asked.seed,
            describe=partial(describe_dpo, recipe=asked),
        )

    return program_asset(
        ["dpo", name],
        "tts_assets.rlhf.dpo",
        plan,
        shape=shape,
        options=Training.shown_for(recipe),
        ins={
            "base": AssetIn(key=AssetKey(["serving", recipe.base])),
            "preferences": AssetIn(key=AssetKey(["preferences", recipe.preferences])),
        },
        code_version=DPO_VERSION,
        group_name="rlhf",
        kinds={"dpo", "pytorch"},
        description=f"DPO from serving/{recipe.base} on the pairs of "
        f"preferences/{recipe.preferences}, {recipe.steps} steps.",
    )


def rollout_preferences(
    name: str,
    config: PreferencesConfig,
    recipe: RlhfRecipe,
    shape: Shape,
    root: Path,
    vllm: VllmConfig,
) -> Built:
    """Returns ``preferences/<name>`` from the rewards of a GRPO recipe, with its check."""

    def read(store: ArtifactStore, base: ServingModel, **inputs: Any) -> PairSource:
        from tts_assets.rlhf.inputs import RolloutInputs

        found = RolloutInputs.read(recipe, root, store.caches, base, **inputs)
        return found.pairs(config, vllm)

    about = f"the best and the worst of {recipe.generations} syntheses by serving/{recipe.base}"
    return preferences_asset(name, read, inputs_of(recipe), shape, about)


def preferences_asset(
    name: str,
    read: Callable[..., PairSource],
    ins: Mapping[str, AssetIn],
    shape: Shape,
    about: str,
) -> Built:
    """Returns ``preferences/<name>`` with its check; ``read(store, **inputs)`` gives its source."""

    def plan(request: Request, **inputs: Any) -> Plan[Preferences]:
        from tts_assets.rlhf.inputs import with_engine

        source = read(request.store, **inputs)

        def make(work: Path) -> Mapping[str, Any]:
            program = with_engine(PREFERENCES, source.program(work), request.shape(shape))
            return request.launch(program)

        return Plan(source.known, make, inputs=source.artifacts, describe=describe_preferences)

    made = artifact_asset(
        ["preferences", name],
        plan,
        options=Machines,
        ins=ins,
        code_version=PREFERENCES_VERSION,
        group_name="preferences",
        kinds={"preferences", "json"},
        description=f"Pairs of syntheses of one text, of which one is preferred: {about}.",
    )
    lost = "Prompts or voted trials = pairs + set aside."
    return [made, artifact_check(made, "no_pair_is_lost", lost, count_all_pairs)]


def inputs_of(recipe: RlhfRecipe) -> dict[str, AssetIn]:
    """The inputs of the asset by the names of its parameters."""
    ins = {
        "base": AssetIn(key=AssetKey(["serving", recipe.base])),
        "suite": AssetIn(key="evaluation_suite"),
    }
    if recipe.prompts.corpora:
        ins["arrays"] = code_arrays_of(recipe.prompts.corpora)
    return ins | encoder_input(recipe.speaker_encoder)


def collapse_check(
    checkpoint: AssetsDefinition, recipe: RlhfRecipe | DpoRecipe
) -> AssetChecksDefinition:
    """Returns the check ``no_collapse``, which warns of alarms and blocks nothing."""
    about = "No alarm was raised in training: equal rewards, entropy, repetition, reward "
    about += "hacking, length, KL divergence, preferred completions."
    found = partial(find_collapse, recipe=recipe)
    return artifact_check(checkpoint, "no_collapse", about, found, warns=True)
