"""Dagster assets of SFT: ``sft/<recipe>``, one for each recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import AssetChecksDefinition, AssetIn, AssetsDefinition, MetadataValue

from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Checkpoint,
    CodeArrays,
    CodecCheckpoint,
    Texts,
    TokenArrays,
    verify,
)
from tts_assets.core.compute import Shape
from tts_assets.core.notebook import NOTEBOOK_FILE
from tts_assets.core.plots import curves
from tts_assets.core.program import METRICS_FILE, read_metrics
from tts_assets.orchestration.checks import losses_check
from tts_assets.orchestration.launchpad import Training
from tts_assets.orchestration.partitions import code_arrays_of, streams_of, token_arrays_of
from tts_assets.orchestration.program_asset import Plan, Request, program_asset
from tts_assets.sft.config import SftProgram, SftRecipe, check_machine
from tts_assets.sft.describe import (
    DIAGNOSTICS,
    describe_fit,
    describe_recipe,
    last_diagnostics,
    markdown,
    read_card,
)
from tts_assets.speechlm.assets import CODE_VERSION as TOKENS_VERSION

CODE_VERSION = "5"


def build_assets(
    recipes: Mapping[str, SftRecipe], shape: Shape
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """An asset and its check for each ``[sft.<name>]``."""
    built: list[AssetsDefinition | AssetChecksDefinition] = []
    for name, recipe in recipes.items():
        checkpoint = sft_asset(name, recipe, shape)
        built.append(checkpoint)
        if recipe.steps != 0:  # an untrained base has no loss where nothing is validated
            built.append(losses_check(checkpoint))
    return built


def sft_asset(name: str, recipe: SftRecipe, shape: Shape) -> AssetsDefinition:
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
            built = sft_program(name, asked, work, arrays, codec, base, streams, texts)
            if request.launcher is not None and request.launcher.is_local:
                check_machine(asked, machines.processes)
                check_lora(asked)
            return built

        inputs: dict[str, Any] = {
            "arrays": arrays,
            **({} if base is None else {"base": base}),
            **({} if tokens is None else {"tokens": tokens}),
            "codec": codec,
            "texts": texts,
        }
        return Plan(
            asked.identified().determining(),
            program=program,
            inputs=inputs,
            seed=asked.seed,
            describe=lambda made: describe_data(recipe, arrays) | describe_training(made, asked),
        )

    return program_asset(
        ["sft", name],
        Checkpoint,
        "tts_assets.sft.train",
        plan,
        shape=shape,
        options=Training,
        ins=ins,
        deps=deps,
        code_version=CODE_VERSION,
        group_name="sft",
        kinds={"pytorch"},
        description=describe_recipe(recipe),
    )


def sft_program(
    name: str,
    recipe: SftRecipe,
    run_dir: Path,
    arrays: Mapping[str, CodeArrays],
    codec: CodecCheckpoint,
    base: Checkpoint | None,
    tokens: Mapping[str, TokenArrays],
    texts: Mapping[str, Texts],
) -> SftProgram:
    """The configuration of the program. Raises :class:`ArtifactError` if inputs do not fit."""
    for corpus, handle in arrays.items():
        if handle.facts.codec != codec.content:
            raise ArtifactError(
                f"code_arrays[{corpus}] were made with codec {handle.facts.codec[:12]}, but the "
                f"codec is now {codec.content[:12]}: materialize code_arrays[{corpus}] again"
            )
    if base is not None and base.facts.codec != codec.content:
        raise ArtifactError(
            f"{base.asset} was trained on codec {base.facts.codec[:12]}, but the codec is now "
            f"{codec.content[:12]}: materialize {base.asset} again"
        )
    if recipe.pretraining is not None:
        check_streams(tokens, arrays)
    return SftProgram(
        run_dir=run_dir,
        name=name,
        recipe=recipe,
        arrays={corpus: handle.path for corpus, handle in arrays.items()},
        tokens={corpus: handle.path for corpus, handle in tokens.items()},
        texts={text: handle.path for text, handle in texts.items()},
        base_checkpoint=base.path if base is not None else None,
        codec=codec.content,
        codec_folder=codec.path,
        sample_rate=codec.facts.sample_rate,
        token_rate=codec.facts.token_rate,
        codebook_size=codec.facts.codebook_size,
    )


def find_tokens(store: ArtifactStore, arrays: Mapping[str, CodeArrays]) -> dict[str, TokenArrays]:
    """The current ``token_arrays`` by corpus, where this code made them from these arrays."""
    found = {}
    for corpus, handle in arrays.items():
        link = store.folder("token_arrays", corpus) / "current"
        if link.exists():
            tokens = TokenArrays.open(link.resolve())
            if made_from(tokens, handle):
                verify(store, tokens)
                found[corpus] = tokens
    return found


def made_from(tokens: TokenArrays, arrays: CodeArrays) -> bool:
    """Whether this code made ``tokens`` from these arrays."""
    manifest = tokens.manifest
    made = manifest.inputs["code_arrays"].content, manifest.code_version
    return made == (arrays.content, TOKENS_VERSION)


def check_streams(tokens: Mapping[str, TokenArrays], arrays: Mapping[str, CodeArrays]) -> None:
    """Raise :class:`ArtifactError` unless ``tokens`` have the streams of these arrays."""
    from tts_assets.speechlm.tokens import CODES  # takes half a second to import

    for corpus, handle in tokens.items():
        if not made_from(handle, arrays[corpus]):
            raise ArtifactError(
                f"token_arrays[{corpus}] were made from other code_arrays than the current, or by "
                f"older code: materialize token_arrays[{corpus}] again"
            )
        if not any(name.endswith(f"{CODES}.npy") for name in handle.manifest.files):
            raise ArtifactError(
                f"token_arrays[{corpus}] have no streams for pretraining: set [arrays] "
                f"pretraining = true and materialize token_arrays[{corpus}] again"
            )


def check_lora(recipe: SftRecipe) -> None:
    """Call :func:`tts_assets.sft.model.check_lora`, which takes seconds to import."""
    if recipe.lora is not None:
        from tts_assets.sft.model import check_lora

        check_lora(recipe)


def describe_data(recipe: SftRecipe, arrays: Mapping[str, CodeArrays]) -> dict[str, Any]:
    """Metadata of the data: minutes, samples, and the dataset card with its warnings."""
    card = read_card({name: handle.path for name, handle in arrays.items()}, recipe.corpora)
    return {
        "minutes": sum(source.minutes for source in card.values()),
        "samples": sum(source.samples for source in card.values()),
        "dataset_card": MetadataValue.md(markdown(card)),
    }


def describe_training(checkpoint: Checkpoint, recipe: SftRecipe) -> dict[str, Any]:
    """Metadata of the run: its length, loss curves, diagnostics, assessment and samples."""
    records = read_metrics(checkpoint.path / METRICS_FILE)
    trained = [record for record in records if "loss" in record]
    labels = {"loss": "training", "val_loss": "validation"}
    plots = {"loss_curve": curves(records, [labels], x_label="step", y_label="nats a token")}
    diagnostics = last_diagnostics(records)
    if diagnostics:
        validated = [record for record in records if "val_accuracy" in record]
        plots["diagnostics"] = curves(validated, DIAGNOSTICS, x_label="step")
    notebook = checkpoint.path / NOTEBOOK_FILE
    return {
        **({"audio_hours_seen": trained[-1]["audio_hours_seen"]} if trained else {}),
        **{name: MetadataValue.md(f"![{name}]({plot})") for name, plot in plots.items()},
        **describe_fit(records, recipe.export),
        **diagnostics,
        **({"listening": MetadataValue.notebook(str(notebook))} if notebook.is_file() else {}),
    }
