"""Dagster assets of RLHF: ``rlhf/<recipe>``, GRPO from the serving model of its base recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import AssetChecksDefinition, AssetIn, AssetKey, AssetsDefinition

from resources.launcher import Program
from tts_assets.core.artifacts import (
    ArtifactStore,
    Checkpoint,
    CodeArrays,
    EvaluationSuite,
    ServingModel,
    SpeakerEncoderCheckpoint,
)
from tts_assets.core.compute import Shape, visible_devices
from tts_assets.core.metadata import CheckResult
from tts_assets.orchestration.checks import artifact_check, losses_check
from tts_assets.orchestration.partitions import code_arrays_of
from tts_assets.orchestration.program_asset import Plan, Request, Training, artifact_asset
from tts_assets.rlhf.config import RlhfProgram, RlhfRecipe, located_encoder
from tts_assets.rlhf.reporting import describe_checkpoint, find_collapse
from tts_assets.serving.config import VllmConfig
from tts_assets.speakers.assets import encoder_input

CODE_VERSION = "5"


def build_assets(
    recipes: Mapping[str, RlhfRecipe], shape: Shape, root: Path, vllm: VllmConfig | None = None
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """Returns an asset and its checks for each ``[rlhf.<name>]``.

    ``root`` is the folder of relative paths, ``vllm`` the environment of rollout engines.
    """
    definitions: list[AssetsDefinition | AssetChecksDefinition] = []
    for name, recipe in recipes.items():
        checkpoint = rlhf_asset(name, recipe, shape, root, vllm or VllmConfig())
        definitions += [checkpoint, losses_check(checkpoint), collapse_check(checkpoint, recipe)]
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
        from tts_assets.rlhf.prompts import recipe_prompts
        from tts_assets.rlhf.rewards import function_digests
        from tts_assets.rlhf.rollouts import hold_out

        asked = request.recipe(recipe)
        folders = {corpus: handle.path for corpus, handle in (arrays or {}).items()}
        prompts = recipe_prompts(asked, root, base.path, suite.path, folders, request.store.caches)
        _, held_out = hold_out(prompts.prompts, asked.heldout)  # raises if all are held out
        located, identity = located_encoder(asked, encoder, root)
        known = {"recipe": identity, "prompts": prompts.digest}
        if functions := function_digests(asked.rewards):
            known["functions"] = functions
        inputs = {"base": base, "arrays": arrays, "encoder": encoder}
        shown = {
            "prompts": len(prompts.prompts),
            "prompts_held_out": len(held_out),
            "prompts_left_out": dict(prompts.left_out),
        }

        def make(work: Path) -> Mapping[str, Any]:
            program = RlhfProgram(
                run_dir=work,
                name=name,
                recipe=located,
                serving_model=base.path,
                prompts=prompts.write(work / "prompts.jsonl"),
                vllm=vllm,
            )
            return request.launch(with_engine(program, request.shape(shape)))

        return Plan(
            known,
            make=make,
            inputs={name: handle for name, handle in inputs.items() if handle is not None},
            seed=asked.seed,
            describe=lambda made: {**shown, **describe_checkpoint(made, asked)},
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


def inputs_of(recipe: RlhfRecipe) -> dict[str, AssetIn]:
    """The inputs of the asset by the names of its parameters."""
    ins = {
        "base": AssetIn(key=AssetKey(["serving", recipe.base])),
        "suite": AssetIn(key="evaluation_suite"),
    }
    if recipe.prompts.corpora:
        ins["arrays"] = code_arrays_of(recipe.prompts.corpora)
    return ins | encoder_input(recipe.speaker_encoder)


def with_engine(program: RlhfProgram, shape: Shape) -> Program:
    """Returns the trainer, with vLLM as a second role if the recipe uses it."""
    engine = program.engine_program()
    if engine is None:
        return Program("tts_assets.rlhf.train", program, shape)
    on_gpus = bool(visible_devices() if shape.gpus is None else shape.gpus)
    engine_shape = shape.alone().model_copy(update={"gpus": engine.engine.gpus if on_gpus else 0})
    shared = on_gpus and engine.engine.shares_gpu
    service = Program("tts_assets.rlhf.engine", engine, engine_shape, shares_gpu=shared)
    return Program("tts_assets.rlhf.train", program, shape, service=service)


def collapse_check(checkpoint: AssetsDefinition, recipe: RlhfRecipe) -> AssetChecksDefinition:
    """Returns the check ``no_collapse``, which warns of alarms and blocks nothing."""

    def collapse(_: ArtifactStore, made: Checkpoint) -> CheckResult:
        return find_collapse(made, recipe)

    about = "No alarm was raised in training: equal rewards, entropy, repetition, reward "
    about += "hacking, length, KL divergence."
    return artifact_check(checkpoint, "no_collapse", about, collapse, warns=True)
