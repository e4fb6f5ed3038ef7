"""RLHF as Dagster sees it: ``rlhf/<recipe>``, GRPO from the serving model of its base recipe."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.core.artifacts import Build, Checkpoint, CodeArrays, EvaluationSuite, ServingModel
from tts_assets.core.compute import Shape, visible_devices
from tts_assets.core.notebook import NOTEBOOK_FILE
from tts_assets.orchestration.checks import losses_check
from tts_assets.orchestration.launchpad import Training
from tts_assets.orchestration.partitions import code_arrays_of
from tts_assets.rlhf.alarms import first_alarms
from tts_assets.rlhf.config import RlhfProgram, RlhfRecipe
from tts_assets.rlhf.metrics import numbers, pictures, training_records
from tts_assets.rlhf.reward_config import FunctionReward
from tts_assets.speakers.assets import encoder_input, encoder_path
from tts_assets.speakers.config import RESEMBLYZER, encoder_digest

if TYPE_CHECKING:
    from tts_assets.rlhf.prompts import PromptSet

CODE_VERSION = "3"
Definitions = list[AssetsDefinition | AssetChecksDefinition]


def build_assets(recipes: Mapping[str, RlhfRecipe], shape: Shape, root: Path) -> Definitions:
    """An asset and its checks for each ``[rlhf.<name>]``; ``root`` is where relative text files
    start."""
    definitions: Definitions = []
    for name, recipe in recipes.items():
        checkpoint = rlhf_asset(name, recipe, shape, root)
        definitions += [
            checkpoint,
            losses_check(checkpoint),
            collapse_check(checkpoint, recipe),
        ]
    return definitions


def rlhf_asset(name: str, recipe: RlhfRecipe, shape: Shape, root: Path) -> AssetsDefinition:
    """The asset ``rlhf/<name>``.

    The evaluation suite is read to keep its texts out of the prompts, which are part of the
    fingerprint: another suite trains again where it takes a prompt away, or gives one back.
    """
    ins = {
        "base": AssetIn(key=AssetKey(["serving", recipe.base])),
        "suite": AssetIn(key="evaluation_suite"),
    }
    if recipe.prompts.corpora:
        ins["arrays"] = code_arrays_of(recipe.prompts.corpora)
    ins |= encoder_input(recipe.voice_encoder)

    @asset(
        key=["rlhf", name],
        group_name="rlhf",
        ins=ins,
        code_version=CODE_VERSION,
        kinds={"pytorch"},
        description=f"GRPO from serving/{recipe.base} with the rewards "
        f"{', '.join(reward.name for reward in recipe.rewards)}, {recipe.steps} steps.",
    )
    def checkpoint(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Training,
        base: ServingModel,
        suite: EvaluationSuite,
        **optional: Any,
    ) -> Output[Checkpoint]:
        asked, machines = config.of_recipe(recipe), config.of(shape)
        texts = recipe_texts(asked, root)
        arrays: Mapping[str, CodeArrays] = optional.get("arrays", {})
        prompts = collected(asked, texts, arrays, base, suite, store)
        told = describe_prompts(prompts, asked)  # refuses a recipe that would train on none
        heard_by, identity = hearing(asked, optional, root)
        known = {"recipe": identity, "prompts": prompts.digest, **function_digests(asked)}
        inputs = {"base": base, **optional}
        build = Build(f"rlhf/{name}", inputs, known, CODE_VERSION, seed=asked.seed)

        def run(work: Path) -> dict[str, Any]:
            prompts.write(work / "prompts.jsonl")
            program = RlhfProgram(
                run_dir=work,
                name=name,
                recipe=heard_by,
                serving_model=base.path,
                prompts=work / "prompts.jsonl",
            )
            return launcher.run(context, launched(program, machines)).facts

        return store.materialize(
            context,
            Checkpoint,
            build,
            run,
            describe=lambda handle: {**told, **describe_checkpoint(handle, asked)},
        )

    return checkpoint


def launched(program: RlhfProgram, shape: Shape) -> Program:
    """The trainer, and beside it the engine if the recipe has one in a process of its own."""
    engine = program.engine_program()
    if engine is None:
        return Program("tts_assets.rlhf.train", program, shape)
    on_gpus = bool(visible_devices() if shape.gpus is None else shape.gpus)
    alone = shape.alone().model_copy(update={"gpus": engine.engine.gpus if on_gpus else 0})
    shared = on_gpus and engine.engine.shares_gpu
    service = Program("tts_assets.rlhf.engine", engine, alone, shares_gpu=shared)
    return Program("tts_assets.rlhf.train", program, shape, service=service)


def recipe_texts(recipe: RlhfRecipe, root: Path) -> list[str]:
    """The lines of the recipe's text file, if it names one."""
    from tts_assets.rlhf.prompts import read_texts

    return read_texts(root / recipe.prompts.texts) if recipe.prompts.texts else []


def collected(
    recipe: RlhfRecipe,
    texts: list[str],
    arrays: Mapping[str, CodeArrays],
    base: ServingModel,
    suite: EvaluationSuite,
    store: ArtifactStoreResource,
) -> "PromptSet":
    """The recipe's prompts, without the suite's texts, as the base model would have them read.

    Raises :class:`PromptError` where a reward cannot judge one of them.
    """
    from tts_assets.corpora.normalizer import Normalizer
    from tts_assets.rlhf.prompts import Limits, collect, refuse_unheard
    from tts_assets.serving.served_model import read_card

    card = read_card(base.path)
    positions = json.loads((base.path / "config.json").read_text())["max_position_embeddings"]
    limits = Limits(positions - recipe.sampling.max_tokens, card.token_rate)
    folders = {corpus: handle.path for corpus, handle in arrays.items()}
    normalizer = Normalizer(card.text, store.store.caches)
    found = collect(recipe.prompts, texts, folders, suite_texts(suite), limits, normalizer)
    refuse_unheard(found.prompts, recipe.rewards)
    return found


def suite_texts(suite: EvaluationSuite) -> list[str]:
    lines = (suite.path / "suite.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def hearing(
    recipe: RlhfRecipe, inputs: Mapping[str, Any], root: Path
) -> tuple[RlhfRecipe, dict[str, Any]]:
    """The recipe with its encoder of voices found, and what identifies it, free of paths."""
    known = recipe.identified()
    if recipe.voice_encoder in ("", RESEMBLYZER):
        return recipe, known.identity()
    path = encoder_path(recipe.voice_encoder, inputs, root)
    return recipe.hearing_with(str(path)), known.hearing_with(encoder_digest(path)).identity()


def function_digests(recipe: RlhfRecipe) -> dict[str, Any]:
    """Digests of the files of reward functions; nothing for a recipe that has none.

    Raises :class:`ConfigError` for a module that is not there.
    """
    from tts_assets.rlhf.rewards import source_digest

    calls = [reward.call for reward in recipe.rewards if isinstance(reward, FunctionReward)]
    return {"functions": {call: source_digest(call) for call in calls}} if calls else {}


def describe_prompts(found: "PromptSet", recipe: RlhfRecipe) -> dict[str, Any]:
    """How many there are, how many of them are held out, and why others were left out.

    Raises :class:`PromptError` if all are held out.
    """
    from tts_assets.rlhf.rollouts import hold_out

    _, held_out = hold_out(found.prompts, recipe.heldout)
    return {
        "prompts": len(found.prompts),
        "prompts_held_out": len(held_out),
        "prompts_left_out": MetadataValue.json(dict(found.left_out)),
    }


def describe_checkpoint(checkpoint: Checkpoint, recipe: RlhfRecipe) -> dict[str, Any]:
    """How rewards and WER went, pictures of it, the alarms, and what it sounded like."""
    folder = checkpoint.path
    found = first_alarms(training_records(folder), recipe.alarms)
    seen = {name: {"update": at, "seen": text} for name, (at, text) in found.items()}
    notebook = folder / NOTEBOOK_FILE
    return {
        **numbers(folder, recipe),
        **{name: MetadataValue.md(text) for name, text in pictures(folder, recipe).items()},
        "alarms": MetadataValue.json(seen),
        **({"listening": MetadataValue.notebook(str(notebook))} if notebook.is_file() else {}),
    }


def collapse_check(checkpoint: AssetsDefinition, recipe: RlhfRecipe) -> AssetChecksDefinition:
    """The policy showed no sign of collapse; it warns, and blocks nothing."""

    @asset_check(
        asset=checkpoint,
        name="no_collapse",
        description="No alarm was raised in training: entropy, repetition, reward hacking, length, "
        "KL.",
    )
    def check(checkpoint: Checkpoint) -> AssetCheckResult:
        found = first_alarms(training_records(checkpoint.path), recipe.alarms)
        return AssetCheckResult(
            passed=not found,
            severity=AssetCheckSeverity.WARN,
            metadata={name: f"from update {at} on: {text}" for name, (at, text) in found.items()},
        )

    return check
