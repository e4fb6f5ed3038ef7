"""Dagster assets of ``[speakers]``: ``speaker_encoder``, ``speaker_report``, ``speaker_purity``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import AssetChecksDefinition, AssetIn, AssetsDefinition

from tts_assets.core.artifacts import (
    SampleManifest,
    SpeakerEncoderCheckpoint,
    SpeakerPurity,
    SpeakerReport,
    SpeechSegments,
)
from tts_assets.core.compute import Shape
from tts_assets.core.metadata import embedded, set_aside_reasons
from tts_assets.corpora.filter import KEPT_FILE
from tts_assets.orchestration.checks import artifact_check
from tts_assets.orchestration.dependencies import corpus_partitions, segments_of
from tts_assets.orchestration.program_asset import (
    Plan,
    Request,
    Training,
    artifact_asset,
    program_asset,
)
from tts_assets.speakers.config import (
    PUBLISHED,
    EncoderProgram,
    EncoderRecipe,
    PurityConfig,
    PurityProgram,
    ReportProgram,
    SpeakersConfig,
    check_purity,
    describe_purity,
    encoder_digest,
    encoder_path,
    resolve,
)

CODE_VERSION = "2"
Built = AssetsDefinition | AssetChecksDefinition
Segments = Mapping[str, SpeechSegments]  # by corpus


def build_assets(config: SpeakersConfig | None, shape: Shape, root: Path) -> list[Built]:
    """The assets and checks of ``[speakers]``; relative paths start at ``root``."""
    if config is None:
        return []
    if config.train is not None:
        encoder = trained_encoder(config, config.train, shape, root)
    else:
        encoder = fetched_encoder(config, root)
    built: list[Built] = [encoder, speaker_report(config, shape, root)]
    if config.purity is not None:
        purity = speaker_purity(config.purity, shape, root)
        # Warns only: an outlier may be a whisper or a laugh, so a person has to listen.
        about = "No utterance sounds like another speaker."
        name = "every_speaker_sounds_like_one"
        built += [purity, artifact_check(purity, name, about, check_purity, warns=True)]
    return built


def encoder_input(name: str) -> dict[str, AssetIn]:
    """The input ``encoder`` of an asset whose configuration names ``speaker_encoder``."""
    return {"encoder": AssetIn(PUBLISHED)} if name == PUBLISHED else {}


def fetched_encoder(config: SpeakersConfig, root: Path) -> AssetsDefinition:
    """The asset ``speaker_encoder`` from a folder or from public weights."""
    name = config.checkpoint
    assert name is not None

    def plan(request: Request) -> Plan[SpeakerEncoderCheckpoint]:
        path = resolve(name, root)

        def make(work: Path) -> dict[str, Any]:
            from tts_assets.speakers.model import copy_encoder

            return copy_encoder(path, work / "result")

        return Plan({"source": encoder_digest(path)}, make)

    return artifact_asset(
        PUBLISHED,
        plan,
        code_version=CODE_VERSION,
        group_name="speakers",
        kinds={"pytorch"},
        description=f"The speaker encoder {name}: speech to an embedding of 256 numbers.",
    )


def trained_encoder(
    speakers: SpeakersConfig, recipe: EncoderRecipe, shape: Shape, root: Path
) -> AssetsDefinition:
    """The asset ``speaker_encoder``, trained on the segments of its corpora."""
    base = None if recipe.base is None else resolve(recipe.base, root)

    def plan(request: Request, segments: Segments) -> Plan[SpeakerEncoderCheckpoint]:
        asked = request.recipe(recipe)
        return Plan(
            {
                "recipe": asked.model_copy(update={"base": base and encoder_digest(base)}),
                "people": speakers.selection,
            },
            program=lambda work: EncoderProgram(
                run_dir=work,
                selection=speakers.selection,
                corpora={name: handle.path for name, handle in segments.items()},
                recipe=asked.model_copy(update={"base": base and str(base)}),
            ),
            seed=asked.seed,
            describe=lambda made: {"set_aside_reasons": set_aside_reasons(made.path)},
        )

    return program_asset(
        PUBLISHED,
        "tts_assets.speakers.train",
        plan,
        shape=shape,
        options=Training.shown_for(recipe),
        ins={"segments": segments_of(speakers.corpora)},
        code_version=CODE_VERSION,
        group_name="speakers",
        kinds={"pytorch"},
        description=f"A speaker encoder, trained with GE2E on {', '.join(speakers.corpora)}.",
    )


def speaker_report(speakers: SpeakersConfig, shape: Shape, root: Path) -> AssetsDefinition:
    """The asset ``speaker_report``: verification errors on the test speakers."""
    trials = speakers.trials

    def plan(
        request: Request, encoder: SpeakerEncoderCheckpoint, segments: Segments
    ) -> Plan[SpeakerReport]:
        other = encoder_digest(resolve(trials.baseline, root)) if trials.baseline else None
        return Plan(
            {"people": speakers.selection, "trials": trials, "beside": other},
            program=lambda work: ReportProgram(
                run_dir=work,
                selection=speakers.selection,
                corpora={name: handle.path for name, handle in segments.items()},
                trials=trials,
                encoder=str(encoder.path),
                root=root,
            ),
            seed=trials.seed,
            describe=lambda made: {"report": embedded(made.path / "report.md")},
        )

    return program_asset(
        "speaker_report",
        "tts_assets.speakers.evaluate",
        plan,
        shape=shape,
        limit=Shape.alone,
        ins={"encoder": PUBLISHED, "segments": segments_of(speakers.corpora)},
        code_version=CODE_VERSION,
        group_name="speakers",
        kinds={"pytorch", "markdown"},
        description="Verification errors of the encoder on speakers that it was not trained on.",
    )


def speaker_purity(purity: PurityConfig, shape: Shape, root: Path) -> AssetsDefinition:
    """The asset ``speaker_purity``, with a partition per corpus."""

    def plan(
        request: Request,
        samples: SampleManifest,
        encoder: SpeakerEncoderCheckpoint | None = None,
    ) -> Plan[SpeakerPurity]:
        path = encoder_path(purity.encoder, encoder, root)
        return Plan(
            {"purity": purity, "encoder": encoder_digest(path)},
            program=lambda work: PurityProgram(
                run_dir=work,
                purity=purity,
                encoder=str(path),
                samples=samples.path / KEPT_FILE,
                cache=request.store.cache("voices"),
            ),
            inputs={"samples": samples},
            describe=describe_purity,
        )

    return program_asset(
        "speaker_purity",
        "tts_assets.speakers.purity",
        plan,
        shape=shape,
        limit=Shape.alone,
        ins={"samples": "filtered_samples", **encoder_input(purity.encoder)},
        code_version=CODE_VERSION,
        group_name="speakers",
        partitions_def=corpus_partitions,
        kinds={"pytorch", "parquet"},
        description="The similarity of each speaker's utterances, and outliers among them.",
    )
