"""Dagster assets of the codec: ``codec``, ``codec_decoder`` and ``codec_shards``."""

from collections.abc import Mapping
from pathlib import Path

from dagster import AssetChecksDefinition, AssetsDefinition

from tts_assets.codec.config import (
    CodecConfig,
    CodecProgram,
    CodecRecipe,
    DecoderProgram,
    DecoderRecipe,
    ShardProgram,
    identify,
    model_card,
    start_digests,
)
from tts_assets.codec.shard_files import count_shards, describe_shards, reusable_shards
from tts_assets.codec.training_config import describe_training
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import CodecCheckpoint, CodecDecoder, CodecShards, SampleManifest
from tts_assets.core.compute import Shape
from tts_assets.corpora.filter import KEPT_FILE, sample_lists
from tts_assets.corpora.validation import identified
from tts_assets.orchestration.checks import artifact_check, losses_check
from tts_assets.orchestration.dependencies import (
    corpus_partitions,
    fetch_for,
    filtered_samples_of,
    follow_data,
)
from tts_assets.orchestration.program_asset import (
    Plan,
    Request,
    Training,
    artifact_asset,
    program_asset,
)

CODE_VERSION = "2"
CODEC_VERSION, DECODER_VERSION = "5", "6"  # of trained codecs and decoders
Samples = Mapping[str, SampleManifest]  # by corpus


def build_assets(
    config: CodecConfig, validation: ValidationSplit, shape: Shape, root: Path
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """The assets and checks of ``[codec]``; relative paths start at ``root``."""
    shards = codec_shards(config.shard_samples, config.batch_tokens, shape)
    built: list[AssetsDefinition | AssetChecksDefinition] = [
        shards,
        artifact_check(
            shards,
            "every_code_sample_is_accounted_for",
            "Samples in = encoded + set aside.",
            count_shards,
        ),
    ]
    if config.train is None:
        built.insert(0, fetched_codec(config, root))
    else:
        codec = trained_codec(config.train, validation, shape, root)
        built = [codec, *built, losses_check(codec)]
    if config.decoder is not None:
        decoder = trained_decoder(config.decoder, validation, shape, root)
        built += [decoder, losses_check(decoder)]
    return built


def fetched_codec(config: CodecConfig, root: Path) -> AssetsDefinition:
    """The asset ``codec`` from a folder, an original checkpoint, or the Hugging Face hub."""
    name = config.checkpoint
    assert name is not None

    def plan(request: Request) -> Plan[CodecCheckpoint]:
        from tts_assets.codec.original import fetch_checked

        source, books = identify(name, root), config.codebooks
        return Plan(
            {"source": source, **({} if books is None else {"codebooks": books})},
            lambda work: fetch_checked(name, source, root, work / "result", books),
            describe=lambda _: model_card(root / name),
        )

    return artifact_asset(
        "codec",
        plan,
        code_version=CODE_VERSION,
        group_name="codec",
        automation_condition=fetch_for("filtered_samples"),
        kinds={"pytorch"},
        description=f"The codec {name}: waveforms to integer codes and back.",
    )


def trained_codec(
    recipe: CodecRecipe, validation: ValidationSplit, shape: Shape, root: Path
) -> AssetsDefinition:
    """The asset ``codec``, trained on the filtered samples of its corpora."""
    base = None if recipe.base is None else root / recipe.base
    semantic = recipe.architecture.semantic_model and root / recipe.architecture.semantic_model

    def plan(request: Request, samples: Samples) -> Plan[CodecCheckpoint]:
        asked = request.recipe(recipe)
        encoder = start_digests(semantic, "codec.train.architecture.semantic_model")
        return Plan(
            {
                "recipe": asked.placed(None, None),
                "base": start_digests(base, "codec.train.base"),
                **({"semantic_model": encoder} if encoder else {}),
                "validation": identified(validation, samples),
            },
            program=lambda work: CodecProgram(
                run_dir=work,
                recipe=asked.placed(base, semantic),
                samples=sample_lists(samples),
                validation=validation,
            ),
            seed=asked.seed,
            describe=describe_training,
        )

    return program_asset(
        "codec",
        "tts_assets.codec.train",
        plan,
        shape=shape,
        options=Training.shown_for(recipe),
        ins={"samples": filtered_samples_of(recipe.corpora)},
        code_version=CODEC_VERSION,
        group_name="codec",
        kinds={"pytorch"},
        description=f"A codec trained on {', '.join(recipe.corpora)} for {recipe.steps} steps.",
    )


def trained_decoder(
    recipe: DecoderRecipe, validation: ValidationSplit, shape: Shape, root: Path
) -> AssetsDefinition:
    """The asset ``codec_decoder``, which serving models and reports use if it exists."""
    start = None if recipe.start in ("codec", "scratch") else root / recipe.start

    def plan(request: Request, samples: Samples, codec: CodecCheckpoint) -> Plan[CodecDecoder]:
        asked = request.recipe(recipe)
        return Plan(
            {
                "recipe": asked if start is None else asked.model_copy(update={"start": "folder"}),
                "start": start_digests(start, 'codec.decoder.start (or "codec", or "scratch")'),
                "validation": identified(validation, samples),
            },
            program=lambda work: DecoderProgram(
                run_dir=work,
                recipe=asked,
                codec=codec.path,
                codec_content=codec.content,
                start=start,
                samples=sample_lists(samples),
                validation=validation,
            ),
            seed=asked.seed,
            describe=describe_training,
        )

    return program_asset(
        "codec_decoder",
        "tts_assets.codec.train_decoder",
        plan,
        shape=shape,
        options=Training.shown_for(recipe),
        ins={"samples": filtered_samples_of(recipe.corpora), "codec": "codec"},
        code_version=DECODER_VERSION,
        group_name="codec_decoder",  # a separate group: refreshing a corpus does not include it
        kinds={"pytorch"},
        description=f"A decoder at {recipe.sample_rate} Hz for the codec's codes, trained on "
        f"{', '.join(recipe.corpora)} for {recipe.steps} steps.",
    )


def codec_shards(shard_samples: int, batch_tokens: int, shape: Shape) -> AssetsDefinition:
    """The asset ``codec_shards``, with a partition per corpus.

    ``batch_tokens`` changes no byte of the result, so it is not part of the fingerprint.
    """

    def plan(
        request: Request, samples: SampleManifest, codec: CodecCheckpoint
    ) -> Plan[CodecShards]:
        return Plan(
            {"shard_samples": shard_samples},
            program=lambda work: ShardProgram(
                run_dir=work,
                corpus=samples.facts.corpus,
                samples=samples.path / KEPT_FILE,
                codec=codec.path,
                codec_content=codec.content,
                codec_facts=codec.facts,
                shard_samples=shard_samples,
                batch_tokens=batch_tokens,
                reuse=reusable_shards(request.store, CODE_VERSION, codec, request.partition),
            ),
            describe=describe_shards,
        )

    return program_asset(
        "codec_shards",
        "tts_assets.codec.shards",
        plan,
        shape=shape,
        ins={"samples": "filtered_samples", "codec": "codec"},
        code_version=CODE_VERSION,
        group_name="codec",
        partitions_def=corpus_partitions,
        automation_condition=follow_data(),
        kinds={"pytorch", "numpy"},
        description="Every kept utterance as codes; broken audio is set aside with its reason.",
    )
