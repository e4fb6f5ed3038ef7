"""``speech_segments`` in the graph: recordings are cut, a corpus of utterances passes as it is."""

import os
import shutil
from pathlib import Path
from typing import Any

import polars as pl
from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetExecutionContext,
    AssetsDefinition,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.audio_models.whisper import model_folder
from tts_assets.core.accounting import SET_ASIDE_FILE, count_reasons, read_set_aside
from tts_assets.core.artifacts import (
    ArtifactError,
    Build,
    RawCorpus,
    SegmentFacts,
    SpeechSegments,
    sha256_file,
)
from tts_assets.core.compute import Shape
from tts_assets.core.hub import model_digest
from tts_assets.core.notebook import NOTEBOOK_FILE
from tts_assets.core.plots import histogram
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.index import ABOUT_UTTERANCES, UTTERANCES_FILE
from tts_assets.corpora.segments.config import CODE_VERSION, SegmentConfig, SegmentProgram
from tts_assets.corpora.segments.result import CARD_FILE, account, corpus_facts
from tts_assets.orchestration.checks import column_schema
from tts_assets.orchestration.conditions import follow_data
from tts_assets.orchestration.launchpad import Machines
from tts_assets.orchestration.partitions import corpus_partitions


def build_assets(corpora: Corpora, shape: Shape) -> list[AssetsDefinition | AssetChecksDefinition]:
    return [speech_segments_asset(corpora, shape), accounting_check()]


def speech_segments_asset(corpora: Corpora, shape: Shape) -> AssetsDefinition:
    """The asset ``speech_segments``."""
    root = corpora.project  # relative paths of models and of reference voices start here

    @asset(
        group_name="corpora",
        partitions_def=corpus_partitions,
        code_version=CODE_VERSION,
        automation_condition=follow_data(),
        kinds={"ctranslate2", "polars"},
        description="Clips cut from long recordings; a corpus of utterances passes as it is.",
    )
    def speech_segments(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        raw_corpus: RawCorpus,
    ) -> Output[SpeechSegments]:
        _, corpus = corpora(context.partition_key)
        cutting = corpus.segments
        # Rows name audio relative to these, so the places are part of what they are.
        places = {"root": raw_corpus.facts.root, "audio_pool": raw_corpus.facts.audio_pool}
        source = {} if cutting is None else sources(cutting, root)
        build = Build(
            asset="speech_segments",
            partition=context.partition_key,
            inputs={"raw_corpus": raw_corpus},
            config={**places, "segments": cutting, "sources": source},
            code_version=CODE_VERSION,
        )

        def run(work: Path) -> SegmentFacts | dict[str, Any]:
            if cutting is None:
                return pass_through(raw_corpus, work / "result")
            program = SegmentProgram(
                run_dir=work,
                corpus=raw_corpus.path,
                segments=cutting,
                model=model_folder(cutting.model, root),
                reference=cutting.speaker and root / cutting.speaker.reference,
                audio_pool=store.store.audio_pool,
                transcripts=store.store.cache("transcripts"),
                records=store.store.cache("segments"),
            )
            module = "tts_assets.corpora.segments.segment"
            return launcher.run(context, Program(module, program, config.of(shape))).facts

        return store.materialize(context, SpeechSegments, build, run, describe_segments)

    return speech_segments


def sources(config: SegmentConfig, root: Path) -> dict[str, str]:
    """What the files that a configuration names contain: another model or voice is another cut."""
    found = {"model": model_digest(model_folder(config.model, root))}
    if config.speaker:
        reference = root / config.speaker.reference
        if not reference.is_file():
            raise FileNotFoundError(
                f"segments.speaker.reference: there is no {reference}; name a recording of the "
                "wanted speaker"
            )
        found["reference"] = sha256_file(reference)
    return found


def pass_through(corpus: RawCorpus, result: Path) -> SegmentFacts:
    """The files of a corpus of utterances, as links where the filesystem has them."""
    for name in (UTTERANCES_FILE, SET_ASIDE_FILE):
        (result / name).unlink(missing_ok=True)  # of a build that was killed
        try:
            os.link(corpus.path / name, result / name)
        except OSError:  # another filesystem, or one without links
            shutil.copyfile(corpus.path / name, result / name)
    return SegmentFacts(**corpus_facts(corpus), recordings=0, recorded_hours=0.0)


def accounting_check() -> AssetChecksDefinition:
    """Nothing that was recorded is lost between the clips."""

    @asset_check(
        asset="speech_segments",
        partitions_def=corpus_partitions,
        blocking=True,
        description="Seconds recorded = seconds in clips + set aside; every clip is there once.",
    )
    def every_second_is_accounted_for(
        context: AssetCheckExecutionContext,
        store: ArtifactStoreResource,
        speech_segments: SpeechSegments,
    ) -> AssetCheckResult:
        source = speech_segments.manifest.inputs["raw_corpus"]
        folder = store.store.folder(source.asset, source.partition) / source.fingerprint
        try:
            return AssetCheckResult(
                passed=True, metadata=account(RawCorpus.open(folder), speech_segments)
            )
        except ArtifactError as error:
            return AssetCheckResult(passed=False, description=str(error))

    return every_second_is_accounted_for


def describe_segments(segments: SpeechSegments) -> dict[str, Any]:
    """The dataset card, its picture, and a notebook to listen to; of recordings only."""
    table = segments.path / UTTERANCES_FILE
    rows = pl.read_parquet(table, columns=["duration"])
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": len(rows),
        **column_schema(pl.read_parquet_schema(table), ABOUT_UTTERANCES),
    }
    if not segments.facts.recordings:
        return metadata
    reasons = count_reasons(read_set_aside(segments.path / SET_ASIDE_FILE))
    picture = histogram(rows["duration"].to_list(), x_label="seconds", y_label="clips")
    card = (segments.path / CARD_FILE).read_text()
    return metadata | {
        "card": MetadataValue.md(f"{card}\n![durations]({picture})"),
        "listening": MetadataValue.notebook(segments.path / NOTEBOOK_FILE),
        "set_aside_reasons": MetadataValue.json(reasons),
    }
