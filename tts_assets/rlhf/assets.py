"""RLHF as Dagster sees it: ``rlhf/<recipe>``, GRPO from the serving model of its base recipe."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
)

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.artifacts import Build, Checkpoint, CodeArrays, EvaluationSuite, ServingModel
from tts_assets.compute import Shape
from tts_assets.partitions import code_arrays_of
from tts_assets.plots import curves
from tts_assets.rlhf.config import RlhfProgram, RlhfRecipe, SimilarityReward
from tts_assets.speakers.source import encoder_digest, resolve

CODE_VERSION = "1"


def build_assets(
    recipes: Mapping[str, RlhfRecipe], shape: Shape, root: Path
) -> list[AssetsDefinition]:
    """An asset for each ``[rlhf.<name>]``; ``root`` is where relative text files start."""
    return [rlhf_asset(name, recipe, shape, root) for name, recipe in recipes.items()]


def rlhf_asset(name: str, recipe: RlhfRecipe, shape: Shape, root: Path) -> AssetsDefinition:
    """The asset ``rlhf/<name>``.

    The evaluation suite is read to keep its texts out of the prompts. It decides nothing else,
    and is no part of the fingerprint: another suite alone does not train again.
    """
    ins = {
        "base": AssetIn(key=AssetKey(["serving", recipe.base])),
        "suite": AssetIn(key="evaluation_suite"),
    }
    if recipe.prompts.corpora:
        ins["arrays"] = code_arrays_of(recipe.prompts.corpora)

    @asset(
        key=["rlhf", name],
        group_name="rlhf",
        ins=ins,
        code_version=CODE_VERSION,
        kinds={"pytorch"},
        description=f"GRPO from serving/{recipe.base} with the rewards "
        f"{', '.join(reward.kind for reward in recipe.rewards)}, {recipe.steps} steps.",
    )
    def checkpoint(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        base: ServingModel,
        suite: EvaluationSuite,
        **optional: Any,
    ) -> Output[Checkpoint]:
        from tts_assets.corpora.normalizer import Normalizer
        from tts_assets.rlhf.prompts import collect
        from tts_assets.serving.synthesis import read_card

        texts = recipe_texts(recipe, root)
        arrays: Mapping[str, CodeArrays] = optional.get("arrays", {})
        folders = {corpus: handle.path for corpus, handle in arrays.items()}
        normalizer = Normalizer(read_card(base.path).text, store.store.caches)
        prompts = collect(recipe.prompts, texts, folders, suite_texts(suite), normalize=normalizer)
        placed, encoders = with_encoders(recipe, root)
        config = {"recipe": recipe, "texts": texts, **encoders}
        inputs = {"base": base, **optional}
        build = Build(f"rlhf/{name}", inputs, config, CODE_VERSION, seed=recipe.seed)

        def run(work: Path) -> dict[str, Any]:
            prompts.write(work / "prompts.jsonl")
            program = RlhfProgram(
                run_dir=work,
                name=name,
                recipe=placed,
                serving_model=base.path,
                prompts=work / "prompts.jsonl",
            )
            return launcher.run(context, Program("tts_assets.rlhf.train", program, shape)).facts

        return store.materialize(
            context,
            Checkpoint,
            build,
            run,
            describe=lambda handle: {
                "prompts": len(prompts.prompts),
                "prompts_left_out": MetadataValue.json(dict(prompts.left_out)),
                **describe_checkpoint(handle),
            },
        )

    return checkpoint


def recipe_texts(recipe: RlhfRecipe, root: Path) -> list[str]:
    """The lines of the recipe's text file, if it names one."""
    from tts_assets.rlhf.prompts import read_texts

    return read_texts(root / recipe.prompts.texts) if recipe.prompts.texts else []


def with_encoders(recipe: RlhfRecipe, root: Path) -> tuple[RlhfRecipe, dict[str, str]]:
    """The recipe with the place of its similarity reward's encoder, and what that encoder is."""
    rewards, encoders = [], {}
    for reward in recipe.rewards:
        if isinstance(reward, SimilarityReward):
            path = resolve(reward.speaker_encoder, root)
            encoders = {"speaker_encoder": encoder_digest(path)}
            reward = reward.model_copy(update={"speaker_encoder": str(path)})
        rewards.append(reward)
    return recipe.model_copy(update={"rewards": tuple(rewards)}), encoders


def suite_texts(suite: EvaluationSuite) -> list[str]:
    lines = (suite.path / "suite.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """How reward and WER of the rollouts went, and a picture of it."""
    lines = (checkpoint.path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    first, last = records[0], records[-1]
    panels = [{"reward": "reward", "wer": "WER of the rollouts"}, {"kl": "KL to the base"}]
    picture = curves(records, panels, x_label="update")
    return {
        "reward_first": first["reward"],
        "reward_last": last["reward"],
        "rollout_wer_first": first["wer"],
        "rollout_wer_last": last["wer"],
        "curves": MetadataValue.md(f"![reward and KL]({picture})"),
    }
