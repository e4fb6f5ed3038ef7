"""Dagster assets of SFT: ``sft/<recipe>``, one for each recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import AssetChecksDefinition, AssetIn, AssetsDefinition

from tts_assets.core.artifacts import Checkpoint, CodeArrays, CodecCheckpoint, Texts, TokenArrays
from tts_assets.core.compute import Shape
from tts_assets.orchestration.checks import losses_check
from tts_assets.orchestration.dependencies import code_arrays_of, streams_of, token_arrays_of
from tts_assets.orchestration.program_asset import Plan, Request, Training, program_asset
from tts_assets.sft.config import SftProgram, SftRecipe
from tts_assets.sft.describe import describe_data, describe_recipe, describe_training
from tts_assets.sft.inputs import check_lora, check_machine, find_tokens, sft_program

CODE_VERSION = "5"


def build_assets(
    recipes: Mapping[str, SftRecipe], shape: Shape, lexicon: Mapping[str, str] | None = None
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """An asset and its check for each ``[sft.<name>]``. ``lexicon`` is that of ``[text]``."""
    built: list[AssetsDefinition | AssetChecksDefinition] = []
    for name, recipe in recipes.items():
        checkpoint = sft_asset(name, recipe, shape, lexicon)
        built.append(checkpoint)
        if recipe.steps != 0:  # an untrained base has no loss where nothing is validated
            built.append(losses_check(checkpoint))
    return built


def sft_asset(
    name: str, recipe: SftRecipe, shape: Shape, lexicon: Mapping[str, str] | None = None
) -> AssetsDefinition:
    """The asset ``sft/<name>``, downstream of its data, its base recipe and its texts."""
    text_inputs = {f"text_{number}": text for number, text in enumerate(recipe.texts)}
    ins: dict[str, AssetIn | str] = {"arrays": code_arrays_of(recipe.corpora)}
    if recipe.base.recipe is not None:
        ins["base"] = AssetIn(["sft", recipe.base.recipe])
    ins |= {key: AssetIn(["texts", text]) for key, text in text_inputs.items()}
    deps = []
    if recipe.pretraining is not None:
        ins["tokens"] = streams_of(recipe.corpora)
    else:  # not an input: token ids of texts change no result, and may be missing
        deps.append(token_arrays_of(recipe.corpora))
    ins["codec"] = "codec"

    def plan(
        request: Request,
        arrays: dict[str, CodeArrays],
        codec: CodecCheckpoint,
        base: Checkpoint | None = None,
        tokens: dict[str, TokenArrays] | None = None,
        **by_input: Texts,
    ) -> Plan[Checkpoint]:
        asked, machines = request.recipe(recipe), request.shape(shape)
        texts = {text: by_input[key] for key, text in text_inputs.items()}

        def program(work: Path) -> SftProgram:
            streams = find_tokens(request.store, arrays) if tokens is None else tokens
            built = sft_program(
                name, asked.with_commit(), work, arrays, codec, base, streams, texts
            )
            if request.launcher is not None and request.launcher.is_local:
                check_machine(asked, machines.processes)
                check_lora(asked)
            return built.model_copy(update={"lexicon": dict(lexicon or {})})

        inputs: dict[str, Any] = {
            "arrays": arrays,
            **({} if base is None else {"base": base}),
            **({} if tokens is None else {"tokens": tokens}),
            "codec": codec,
            "texts": texts,
        }
        return Plan(
            asked.identified().determining() | ({"lexicon": dict(lexicon)} if lexicon else {}),
            program=program,
            inputs=inputs,
            seed=asked.seed,
            describe=lambda made: {
                **describe_data(recipe, arrays),
                **describe_training(made, asked),
            },
        )

    return program_asset(
        ["sft", name],
        "tts_assets.sft.train",
        plan,
        shape=shape,
        options=Training.shown_for(recipe),
        ins=ins,
        deps=deps,
        code_version=CODE_VERSION,
        group_name="sft",
        kinds={"sft", "pytorch"},
        description=describe_recipe(recipe),
    )
