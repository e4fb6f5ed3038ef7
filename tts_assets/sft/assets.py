"""SFT as Dagster sees it: one asset per recipe, ``sft/<recipe>``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dagster import (
    AssetChecksDefinition,
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
from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Build,
    Checkpoint,
    CodeArrays,
    CodecCheckpoint,
    Texts,
    TokenArrays,
)
from tts_assets.core.compute import Shape
from tts_assets.core.notebook import NOTEBOOK_FILE
from tts_assets.core.plots import curves
from tts_assets.core.program import read_metrics
from tts_assets.orchestration.checks import losses_check
from tts_assets.orchestration.launchpad import Training
from tts_assets.orchestration.partitions import code_arrays_of, streams_of, token_arrays_of
from tts_assets.sft import machine
from tts_assets.sft.config import SftProgram, SftRecipe
from tts_assets.sft.describe import assess_fit, markdown, read_card
from tts_assets.speechlm.assets import CODE_VERSION as TOKENS_VERSION

CODE_VERSION = "5"
HEALTH_PANELS = (
    {
        "val_accuracy": "codes found",
        "val_end_found": "ends found",
        "val_end_false": "codes taken for an end",
    },
    {"val_entropy": "entropy, nats"},
    {"update_ratio": "change of a step / weights"},
)


def build_assets(
    recipes: Mapping[str, SftRecipe], shape: Shape
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """An asset and its check for each ``[sft.<name>]``."""
    built: list[AssetsDefinition | AssetChecksDefinition] = []
    for name, recipe in recipes.items():
        checkpoint = sft_asset(name, recipe, shape)
        built.append(checkpoint)
        if recipe.steps != 0:  # a base as it is tells no loss where nothing is validated
            built.append(losses_check(checkpoint))
    return built


def sft_asset(name: str, recipe: SftRecipe, shape: Shape) -> AssetsDefinition:
    """The asset ``sft/<name>``; its base recipe and its texts, if it has any, are upstream."""
    ins = {"arrays": code_arrays_of(recipe.corpora)}
    if recipe.base.recipe is not None:
        ins["base"] = AssetIn(key=AssetKey(["sft", recipe.base.recipe]))
    given = {f"text_{number}": name for number, name in enumerate(recipe.texts)}
    ins |= {key: AssetIn(key=AssetKey(["texts", text])) for key, text in given.items()}
    deps = []
    if recipe.pretraining is not None:
        ins["tokens"] = streams_of(recipe.corpora)
    else:  # no input: the texts as ids change no result, and are not always there
        deps.append(token_arrays_of(recipe.corpora))

    @asset(
        key=["sft", name],
        group_name="sft",
        ins={**ins, "codec": AssetIn(key="codec")},
        deps=deps,
        code_version=CODE_VERSION,
        kinds={"pytorch"},
        description=describe_recipe(recipe),
    )
    def checkpoint(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Training,
        **inputs: Any,
    ) -> Output[Checkpoint]:
        inputs["texts"] = {text: inputs.pop(key) for key, text in given.items()}
        asked, machines = config.of_recipe(recipe), config.of(shape)
        known = asked.identified().determining()
        build = Build(f"sft/{name}", inputs, known, CODE_VERSION, seed=asked.seed)

        def run(work: Path) -> dict[str, Any]:
            tokens = {"tokens": find_tokens(store.store, inputs["arrays"])}
            program = sft_program(name, asked, work, **tokens | inputs)
            if launcher.is_local:
                machine.check(asked, machines.processes)
                check_lora(asked)
            return launcher.run(context, Program("tts_assets.sft.train", program, machines)).facts

        return store.materialize(
            context,
            Checkpoint,
            build,
            run,
            describe=lambda made: {
                **describe_data(recipe, inputs["arrays"]),
                **describe_checkpoint(made, asked),
            },
        )

    return checkpoint


def describe_data(recipe: SftRecipe, arrays: Mapping[str, CodeArrays]) -> dict[str, Any]:
    """What it was trained on, by source, and what may spoil the voice."""
    folders = {name: handle.path for name, handle in arrays.items()}
    card = read_card(folders, recipe.corpora)
    return {
        "minutes": sum(source.minutes for source in card.values()),
        "samples": sum(source.samples for source in card.values()),
        "dataset_card": MetadataValue.md(markdown(card)),
    }


def find_tokens(store: ArtifactStore, arrays: Mapping[str, CodeArrays]) -> dict[str, TokenArrays]:
    """By corpus, the ``token_arrays`` that this code made from these arrays, where there are."""
    found = {}
    for corpus, handle in arrays.items():
        link = store.folder("token_arrays", corpus) / "current"
        if link.is_symlink():
            tokens = TokenArrays.open(link.resolve())
            if made_from(tokens, handle):
                found[corpus] = tokens
    return found


def made_from(tokens: TokenArrays, arrays: CodeArrays) -> bool:
    """Whether this code made ``tokens`` from these arrays."""
    manifest = tokens.manifest
    made = manifest.inputs["code_arrays"].content, manifest.code_version
    return made == (arrays.content, TOKENS_VERSION)


def check_streams(tokens: Mapping[str, TokenArrays], arrays: Mapping[str, CodeArrays]) -> None:
    """Raise :class:`ArtifactError` unless there are streams to pretrain on, of these arrays."""
    from tts_assets.speechlm.tokens import CODES  # half a second to import

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


def sft_program(
    name: str,
    recipe: SftRecipe,
    run_dir: Path,
    arrays: Mapping[str, CodeArrays],
    codec: CodecCheckpoint,
    base: Checkpoint | None = None,
    tokens: Mapping[str, TokenArrays] | None = None,
    texts: Mapping[str, Texts] | None = None,
) -> SftProgram:
    """The program's configuration; raises :class:`ArtifactError` where inputs do not fit."""
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
        check_streams(tokens or {}, arrays)
    return SftProgram(
        run_dir=run_dir,
        name=name,
        recipe=recipe,
        arrays={corpus: handle.path for corpus, handle in arrays.items()},
        tokens={corpus: handle.path for corpus, handle in (tokens or {}).items()},
        texts={name: handle.path for name, handle in (texts or {}).items()},
        base_checkpoint=base.path if base is not None else None,
        codec=codec.content,
        codec_folder=codec.path,
        sample_rate=codec.facts.sample_rate,
        token_rate=codec.facts.token_rate,
        codebook_size=codec.facts.codebook_size,
    )


def check_lora(recipe: SftRecipe) -> None:
    """As :func:`tts_assets.sft.model.check_lora`, which takes seconds to import."""
    if recipe.lora is not None:
        from tts_assets.sft.model import check_lora

        check_lora(recipe)


def describe_recipe(recipe: SftRecipe) -> str:
    base = recipe.base
    start = base.hub or (f"sft/{base.recipe}" if base.recipe else "a Llama from scratch")
    if recipe.steps == 0:
        return f"SpeechLM that is not trained: {start}."
    length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epochs"
    data = ", ".join([*recipe.corpora, *recipe.texts])
    how = "trained" if recipe.pretraining is None else "pretrained"
    return f"SpeechLM {how} from {start} on {data} for {length}."


def describe_checkpoint(checkpoint: Checkpoint, recipe: SftRecipe) -> dict[str, Any]:
    """Numbers of the run, its curves as pictures, and what it sounded like."""
    records = read_metrics(checkpoint.path / "metrics.jsonl")
    trained = [record for record in records if "loss" in record]
    labels = {"loss": "training", "val_loss": "validation"}
    picture = curves(records, [labels], x_label="step", y_label="nats a token")
    seen = {"audio_hours_seen": trained[-1]["audio_hours_seen"]} if trained else {}
    return {
        **seen,
        "loss_curve": MetadataValue.md(f"![loss curve]({picture})"),
        **describe_verdict(records, recipe),
        **describe_health(records),
        **describe_listening(checkpoint.path / NOTEBOOK_FILE),
    }


def describe_verdict(records: Sequence[Mapping[str, float]], recipe: SftRecipe) -> dict[str, Any]:
    """Whether it learnt its recordings by heart, in a sentence and in numbers."""
    found = assess_fit(records, recipe.export)
    numbers = {"train_val_gap": found.gap, "val_loss_rise": found.rise}
    known = {name: value for name, value in numbers.items() if value is not None}
    return {"verdict": f"{found.word}: {found.sentence}", **known}


def describe_health(records: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The last signs of health as numbers, and their curves; nothing without a validation."""
    seen = [record for record in records if "val_accuracy" in record]
    if not seen:
        return {}
    picture = curves(seen, HEALTH_PANELS, x_label="step")
    return {name: seen[-1][name] for panel in HEALTH_PANELS for name in panel} | {
        "health": MetadataValue.md(f"![signs of health]({picture})")
    }


def describe_listening(path: Path) -> dict[str, Any]:
    return {"listening": MetadataValue.notebook(str(path))} if path.is_file() else {}
