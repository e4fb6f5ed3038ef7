"""The speaker encoder in the graph: ``speaker_encoder``, ``speaker_report``, ``speaker_purity``.

Only where ``[speakers]`` is configured.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
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
from tts_assets.core.accounting import SET_ASIDE_FILE, count_reasons, read_set_aside
from tts_assets.core.artifacts import (
    Build,
    SampleManifest,
    SpeakerEncoderCheckpoint,
    SpeakerPurity,
    SpeakerReport,
    SpeechSegments,
)
from tts_assets.core.compute import Shape
from tts_assets.corpora.filter import KEPT_FILE
from tts_assets.orchestration.launchpad import Machines, Training
from tts_assets.orchestration.partitions import corpus_partitions, segments_of
from tts_assets.speakers.config import (
    PUBLISHED,
    PURITY_FILE,
    EncoderProgram,
    EncoderRecipe,
    PurityConfig,
    PurityProgram,
    ReportProgram,
    SpeakersConfig,
    encoder_digest,
    resolve,
)

CODE_VERSION = "2"
OUTLIERS_SHOWN = 20
Built = AssetsDefinition | AssetChecksDefinition


def build_assets(config: SpeakersConfig | None, shape: Shape, root: Path) -> list[Built]:
    """``root``: the folder that relative paths of the configuration start from."""
    if config is None:
        return []
    if config.train is not None:
        encoder = trained_encoder(config, config.train, shape, root)
    else:
        encoder = fetched_encoder(config, root)
    built: list[Built] = [encoder, report_asset(config, shape, root)]
    if config.purity is not None:
        built += [purity_asset(config.purity, shape, root), outliers_check()]
    return built


def encoder_input(name: str) -> dict[str, AssetIn]:
    """The input ``encoder`` of an asset whose configuration names the published encoder."""
    return {"encoder": AssetIn(PUBLISHED)} if name == PUBLISHED else {}


def encoder_path(name: str, given: Mapping[str, SpeakerEncoderCheckpoint], root: Path) -> Path:
    """Where the encoder lies that a configuration names; ``given``: what came by
    :func:`encoder_input`."""
    return given["encoder"].path if name == PUBLISHED else resolve(name, root)


def fetched_encoder(config: SpeakersConfig, root: Path) -> AssetsDefinition:
    """The asset ``speaker_encoder`` where it is a folder, or public weights."""
    name = config.checkpoint
    assert name is not None

    @asset(
        key=PUBLISHED,
        group_name="speakers",
        code_version=CODE_VERSION,
        kinds={"pytorch"},
        description=f"The speaker encoder {name}: speech to 256 numbers that are a voice.",
    )
    def speaker_encoder(
        context: AssetExecutionContext, store: ArtifactStoreResource
    ) -> Output[SpeakerEncoderCheckpoint]:
        path = resolve(name, root)
        build = Build(PUBLISHED, {}, {"source": encoder_digest(path)}, CODE_VERSION)

        def fetch(work: Path) -> dict[str, Any]:
            from tts_assets.speakers.model import open_encoder, save_encoder

            model, card = open_encoder(path)
            save_encoder(model, card, work / "result")
            return {
                "parameters": sum(p.numel() for p in model.parameters()),
                "embedding": card.architecture.embedding,
            }

        return store.materialize(context, SpeakerEncoderCheckpoint, build, fetch)

    return speaker_encoder


def trained_encoder(
    speakers: SpeakersConfig, recipe: EncoderRecipe, shape: Shape, root: Path
) -> AssetsDefinition:
    """The asset ``speaker_encoder`` where this project trains it, downstream of its corpora."""
    base = None if recipe.base is None else resolve(recipe.base, root)

    @asset(
        key=PUBLISHED,
        group_name="speakers",
        ins={"segments": segments_of(speakers.corpora)},
        code_version=CODE_VERSION,
        kinds={"pytorch"},
        description=f"An encoder of voices by GE2E on {', '.join(speakers.corpora)}.",
    )
    def speaker_encoder(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Training,
        segments: dict[str, SpeechSegments],
    ) -> Output[SpeakerEncoderCheckpoint]:
        asked = config.of_recipe(recipe)
        parts = {
            "recipe": asked.model_copy(update={"base": base and encoder_digest(base)}),
            "people": speakers.people,
        }
        build = Build(PUBLISHED, {"segments": segments}, parts, CODE_VERSION, seed=asked.seed)

        def train(work: Path) -> dict[str, Any]:
            program = EncoderProgram(
                run_dir=work,
                people=speakers.people,
                corpora={name: handle.path for name, handle in segments.items()},
                recipe=asked.model_copy(update={"base": base and str(base)}),
            )
            module = "tts_assets.speakers.train"
            return launcher.run(context, Program(module, program, config.of(shape))).facts

        return store.materialize(context, SpeakerEncoderCheckpoint, build, train, describe_encoder)

    return speaker_encoder


def report_asset(speakers: SpeakersConfig, shape: Shape, root: Path) -> AssetsDefinition:
    beside = speakers.trials.beside

    @asset(
        group_name="speakers",
        ins={"encoder": AssetIn(PUBLISHED), "segments": segments_of(speakers.corpora)},
        code_version=CODE_VERSION,
        kinds={"pytorch", "markdown"},
        description="Errors of the encoder on pairs of speakers whom it was not trained on.",
    )
    def speaker_report(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        encoder: SpeakerEncoderCheckpoint,
        segments: dict[str, SpeechSegments],
    ) -> Output[SpeakerReport]:
        other = resolve(beside, root) if beside else None
        parts = {
            "people": speakers.people,
            "trials": speakers.trials,
            "beside": other and encoder_digest(other),
        }
        inputs: dict[str, Any] = {"encoder": encoder, "segments": segments}
        build = Build("speaker_report", inputs, parts, CODE_VERSION, seed=speakers.trials.seed)

        def judge(work: Path) -> dict[str, Any]:
            program = ReportProgram(
                run_dir=work,
                people=speakers.people,
                corpora={name: handle.path for name, handle in segments.items()},
                trials=speakers.trials,
                encoder=str(encoder.path),
                root=root,
            )
            module = "tts_assets.speakers.evaluate"
            machines = config.of(shape).alone()
            return launcher.run(context, Program(module, program, machines)).facts

        return store.materialize(context, SpeakerReport, build, judge, describe_report)

    return speaker_report


def purity_asset(purity: PurityConfig, shape: Shape, root: Path) -> AssetsDefinition:
    @asset(
        group_name="speakers",
        partitions_def=corpus_partitions,
        ins={"samples": AssetIn("filtered_samples"), **encoder_input(purity.encoder)},
        code_version=CODE_VERSION,
        kinds={"pytorch", "parquet"},
        description="How alike each speaker's utterances sound, and which do not belong.",
    )
    def speaker_purity(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        samples: SampleManifest,
        **encoder: SpeakerEncoderCheckpoint,
    ) -> Output[SpeakerPurity]:
        path = encoder_path(purity.encoder, encoder, root)
        build = Build(
            "speaker_purity",
            {"samples": samples},
            {"purity": purity, "encoder": encoder_digest(path)},
            CODE_VERSION,
            partition=context.partition_key,
        )

        def measure(work: Path) -> dict[str, Any]:
            program = PurityProgram(
                run_dir=work,
                purity=purity,
                encoder=str(path),
                samples=samples.path / KEPT_FILE,
                cache=store.store.cache("voices"),
            )
            module = "tts_assets.speakers.purity"
            machines = config.of(shape).alone()
            return launcher.run(context, Program(module, program, machines)).facts

        return store.materialize(context, SpeakerPurity, build, measure, describe_purity)

    return speaker_purity


def outliers_check() -> AssetChecksDefinition:
    """A warning only: an outlier may be a whisper or a laugh, and is to be listened to."""

    @asset_check(
        asset="speaker_purity",
        partitions_def=corpus_partitions,
        description="No utterance sounds like somebody else than its speaker.",
    )
    def every_speaker_sounds_like_one(speaker_purity: SpeakerPurity) -> AssetCheckResult:
        return AssetCheckResult(
            passed=speaker_purity.facts.outliers == 0,
            severity=AssetCheckSeverity.WARN,
            metadata={"outliers": speaker_purity.facts.outliers},
        )

    return every_speaker_sounds_like_one


def describe_encoder(encoder: SpeakerEncoderCheckpoint) -> Mapping[str, Any]:
    reasons = count_reasons(read_set_aside(encoder.path / SET_ASIDE_FILE))
    return {"set_aside_reasons": MetadataValue.json(reasons)}


def describe_report(report: SpeakerReport) -> Mapping[str, Any]:
    """The report with its pictures inside."""
    text = (report.path / "report.md").read_text()
    for picture in sorted(report.path.glob("*.png")):
        inside = base64.b64encode(picture.read_bytes()).decode()
        text = text.replace(f"({picture.name})", f"(data:image/png;base64,{inside})")
    return {"report": MetadataValue.md(text)}


def describe_purity(purity: SpeakerPurity) -> Mapping[str, Any]:
    """The outliers, the furthest first."""
    rows = pl.read_parquet(purity.path / PURITY_FILE).filter("outlier").sort("similarity", "id")
    shown = rows.head(OUTLIERS_SHOWN)
    lines = [
        "| utterance | speaker | similarity | nearest other | similarity |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['wav_path']} | {r['speaker']} | {r['similarity']} | {r['nearest']} | "
        f"{r['similarity_nearest']} |"
        for r in shown.iter_rows(named=True)
    ]
    return {"outliers_first": MetadataValue.md("\n".join(lines))}
