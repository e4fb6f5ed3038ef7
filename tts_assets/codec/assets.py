"""The codec in the graph: ``codec`` (fetched or trained) and ``codec_shards``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetExecutionContext,
    AssetIn,
    AssetsDefinition,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.codec.config import (
    CodecConfig,
    CodecProgram,
    CodecRecipe,
    DecoderProgram,
    DecoderRecipe,
    ShardProgram,
)
from tts_assets.codec.sources import MODEL_CARD, fetch, identify, started_from
from tts_assets.core.accounting import SET_ASIDE_FILE, count_reasons, read_set_aside
from tts_assets.core.artifacts import (
    MANIFEST,
    ArtifactStore,
    Build,
    CodecCheckpoint,
    CodecDecoder,
    CodecShards,
    Handle,
    Manifest,
    SampleManifest,
)
from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.core.plots import curves
from tts_assets.core.program import METRICS_FILE, read_metrics
from tts_assets.core.split import ValidationSplit
from tts_assets.corpora.filter import KEPT_FILE
from tts_assets.corpora.samples import ABOUT_SAMPLES, FIELDS
from tts_assets.orchestration.checks import column_schema, losses_check
from tts_assets.orchestration.conditions import fetch_for, follow_data
from tts_assets.orchestration.launchpad import Machines, Training
from tts_assets.orchestration.partitions import corpus_partitions, filtered_samples_of
from tts_assets.orchestration.program_asset import Plan, Request, program_asset

CODE_VERSION = "2"
TRAINING_VERSION = "5"  # of codecs and decoders that are trained here
SHARDS = "codec_shards"


def build_assets(
    config: CodecConfig, validation: ValidationSplit, shape: Shape, root: Path
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """``root``: the folder that a relative ``checkpoint`` or ``base`` starts from."""
    if config.train is not None:
        codec = trained_codec(config.train, validation, shape, root)
    else:
        codec = fetched_codec(config, root)
    shards = codec_shards_asset(config.shard_samples, config.batch_tokens, shape)
    built: list[AssetsDefinition | AssetChecksDefinition] = [codec, shards]
    built.append(accounting_check(shards))
    if config.train is not None:
        built.append(losses_check(codec))
    if config.decoder is not None:
        decoder = trained_decoder(config.decoder, validation, shape, root)
        built += [decoder, losses_check(decoder)]
    return built


def fetched_codec(config: CodecConfig, root: Path) -> AssetsDefinition:
    """The asset ``codec`` where it is a folder or a published model."""
    name = config.checkpoint
    assert name is not None

    @asset(
        group_name="codec",
        code_version=CODE_VERSION,
        automation_condition=fetch_for("filtered_samples"),
        kinds={"pytorch"},
        description=f"The codec {name}: waveforms to integer codes and back.",
    )
    def codec(
        context: AssetExecutionContext, store: ArtifactStoreResource
    ) -> Output[CodecCheckpoint]:
        source = identify(name, config.revision, root)
        build = Build("codec", {}, {"source": source}, CODE_VERSION)

        def bring(work: Path) -> dict[str, Any]:
            fetch(name, source, root, work / "result")
            return codec_facts(work / "result")

        return store.materialize(
            context, CodecCheckpoint, build, bring, lambda _: model_card(root / name)
        )

    return codec


def trained_codec(
    recipe: CodecRecipe, validation: ValidationSplit, shape: Shape, root: Path
) -> AssetsDefinition:
    """The asset ``codec`` where this project trains it, downstream of its corpora."""
    base = None if recipe.base is None else root / recipe.base

    def plan(request: Request, samples: Mapping[str, SampleManifest]) -> Plan[CodecCheckpoint]:
        asked = request.recipe(recipe)

        def program(work: Path) -> CodecProgram:
            return CodecProgram(
                run_dir=work,
                recipe=asked.model_copy(update={"base": base}),
                samples={name: handle.path / KEPT_FILE for name, handle in samples.items()},
                validation=validation,
            )

        known = {
            "recipe": asked.model_copy(update={"base": None}),
            "base": started_from(base, "codec.train.base"),
            "validation": validation,
        }
        return Plan(known, program=program, seed=asked.seed, describe=describe_training)

    return program_asset(
        "codec",
        CodecCheckpoint,
        "tts_assets.codec.train",
        plan,
        shape=shape,
        options=Training,
        ins={"samples": filtered_samples_of(recipe.corpora)},
        code_version=TRAINING_VERSION,
        group_name="codec",
        kinds={"pytorch"},
        description=f"A codec trained on {', '.join(recipe.corpora)} for {recipe.steps} steps.",
    )


def trained_decoder(
    recipe: DecoderRecipe, validation: ValidationSplit, shape: Shape, root: Path
) -> AssetsDefinition:
    """The asset ``codec_decoder``; serving models and reports decode with it where it exists."""
    start = None if recipe.start in ("codec", "scratch") else root / recipe.start

    @asset(
        group_name="codec_decoder",  # no part of what a corpus is refreshed with
        ins={"samples": filtered_samples_of(recipe.corpora)},
        code_version=TRAINING_VERSION,
        kinds={"pytorch"},
        description=f"A decoder at {recipe.sample_rate} Hz for the codec's codes, trained on "
        f"{', '.join(recipe.corpora)} for {recipe.steps} steps.",
    )
    def codec_decoder(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Training,
        samples: dict[str, SampleManifest],
        codec: CodecCheckpoint,
    ) -> Output[CodecDecoder]:
        asked = config.of_recipe(recipe)
        known = asked if start is None else asked.model_copy(update={"start": "folder"})
        begun = started_from(start, 'codec.decoder.start (or "codec", or "scratch")')
        parts = {"recipe": known, "start": begun, "validation": validation}
        inputs: dict[str, Any] = {"samples": samples, "codec": codec}
        build = Build("codec_decoder", inputs, parts, TRAINING_VERSION, seed=asked.seed)

        def train(work: Path) -> dict[str, Any]:
            program = DecoderProgram(
                run_dir=work,
                recipe=asked,
                codec=codec.path,
                codec_content=codec.content,
                start=start,
                samples={name: handle.path / KEPT_FILE for name, handle in samples.items()},
                validation=validation,
            )
            module = "tts_assets.codec.train_decoder"
            return launcher.run(context, Program(module, program, config.of(shape))).facts

        return store.materialize(context, CodecDecoder, build, train, describe_training)

    return codec_decoder


def codec_shards_asset(shard_samples: int, batch_tokens: int, shape: Shape) -> AssetsDefinition:
    """The asset ``codec_shards``, one partition a corpus. ``batch_tokens`` changes no byte, so
    it is no part of what a build is known by."""

    @asset(
        group_name="codec",
        partitions_def=corpus_partitions,
        ins={"samples": AssetIn("filtered_samples")},
        code_version=CODE_VERSION,
        automation_condition=follow_data(),
        kinds={"pytorch", "numpy"},
        description="Every kept utterance as codes; broken audio is set aside with its reason.",
    )
    def codec_shards(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        samples: SampleManifest,
        codec: CodecCheckpoint,
    ) -> Output[CodecShards]:
        build = Build(
            asset=SHARDS,
            partition=context.partition_key,
            inputs={"samples": samples, "codec": codec},
            config={"shard_samples": shard_samples},
            code_version=CODE_VERSION,
        )

        def encode(work: Path) -> dict[str, Any]:
            program = ShardProgram(
                run_dir=work,
                corpus=samples.facts.corpus,
                samples=samples.path / KEPT_FILE,
                codec=codec.path,
                codec_content=codec.content,
                codec_facts=codec.facts,
                shard_samples=shard_samples,
                batch_tokens=batch_tokens,
                reuse=earlier_shards(store.store, context.partition_key, codec),
            )
            module = "tts_assets.codec.shards"
            return launcher.run(context, Program(module, program, config.of(shape))).facts

        return store.materialize(context, CodecShards, build, encode, describe_shards)

    return codec_shards


def earlier_shards(store: ArtifactStore, partition: str, codec: CodecCheckpoint) -> list[Path]:
    """The current ``codec_shards`` of all corpora that this code made with this codec, the
    partition's own first: the same audio has the same codes there."""
    links = sorted(store.root.glob(f"{SHARDS}/*/current"))
    found = []
    for link in sorted(links, key=lambda link: link.parent.name != partition):
        try:
            manifest = Manifest.from_json(link / MANIFEST)
        except ConfigError:  # it is said where the artifact itself is opened
            continue
        same_code = manifest.code_version == CODE_VERSION
        if same_code and manifest.facts.get("codec") == codec.content:
            found.append(link.resolve())
    return found


def accounting_check(shards: AssetsDefinition) -> AssetChecksDefinition:
    """The blocking check that no utterance was lost on the way to codes."""

    @asset_check(
        asset=shards,
        partitions_def=corpus_partitions,
        blocking=True,
        description="Samples in = encoded + set aside.",
    )
    def every_code_sample_is_accounted_for(
        context: AssetCheckExecutionContext, codec_shards: CodecShards
    ) -> AssetCheckResult:
        facts = codec_shards.facts
        encoded = sum(
            len(path.read_bytes().splitlines())
            for path in codec_shards.path.glob("shard-*.samples.jsonl")
        )
        aside = len(read_set_aside(codec_shards.path / SET_ASIDE_FILE))
        return AssetCheckResult(
            passed=facts.samples_in == encoded + aside and encoded > 0,
            metadata={"samples_in": facts.samples_in, "encoded": encoded, "set_aside": aside},
        )

    return every_code_sample_is_accounted_for


def codec_facts(folder: Path) -> dict[str, Any]:
    """Load the codec once: what cannot be loaded is not published."""
    from tts_assets.codec.model import Codec

    return Codec.load(folder).facts.model_dump()


def describe_training(handle: Handle) -> Mapping[str, Any]:
    """Curves of the training, and how much of the codebook was in use at its end."""
    records = read_metrics(handle.path / METRICS_FILE)
    panels = [{"mel": "training", "val_mel": "validation"}]
    if any("perplexity" in record for record in records):
        panels.append({"perplexity": "perplexity of the codes", "dead_codes": "dead codes"})
    picture = curves(records, panels, x_label="step")
    last = records[-1]
    names = ("val_mel", "val_entropy", "perplexity", "codes_used", "dead_codes")
    return {"curves": MetadataValue.md(f"![curves]({picture})")} | {
        name: last[name] for name in names if name in last
    }


def model_card(folder: Path) -> Mapping[str, Any]:
    card = folder / MODEL_CARD
    return {"model_card": MetadataValue.md(card.read_text())} if card.is_file() else {}


def describe_shards(shards: CodecShards) -> Mapping[str, Any]:
    reasons = count_reasons(read_set_aside(shards.path / SET_ASIDE_FILE))
    return {
        "dagster/partition_row_count": shards.facts.samples,
        **column_schema(FIELDS, ABOUT_SAMPLES),
        "set_aside_reasons": MetadataValue.json(reasons),
    }
