"""Dagster assets of corpora, one partition per corpus.

``raw_corpus`` (the index), ``speech_segments`` (clips) and ``filtered_samples``.
"""

import shutil
from pathlib import Path
from typing import Any

from dagster import AssetChecksDefinition, AssetsDefinition

from resources.launcher import Program
from tts_assets.audio_models.whisper import model_folder
from tts_assets.core.artifacts import (
    RawCorpus,
    RawCorpusFacts,
    SampleFacts,
    SampleManifest,
    SegmentFacts,
    SpeechSegments,
)
from tts_assets.core.compute import Shape
from tts_assets.core.program import RESULT_FILE
from tts_assets.corpora.config import CorpusConfig, FilterConfig, MeasureProgram, TextConfig
from tts_assets.corpora.corrections import Corrections
from tts_assets.corpora.describe import (
    check_columns,
    count_entries,
    count_samples,
    count_seconds,
    describe_corpus,
    describe_samples,
    describe_segments,
)
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.filter_corpus import filter_corpus
from tts_assets.corpora.index import read_entries, usable_index
from tts_assets.corpora.segments import CODE_VERSION, SegmentProgram
from tts_assets.corpora.segments.result import pass_through, source_digests
from tts_assets.corpora.synthesis import is_complete, synthesis_program
from tts_assets.corpora.watch import RecordedScan, Scan, corpus_state
from tts_assets.orchestration.checks import artifact_check
from tts_assets.orchestration.dependencies import corpus_partitions, follow_data
from tts_assets.orchestration.program_asset import Machines, Plan, Request, artifact_asset

INDEX_VERSION = "6"
FILTER_VERSION = "6"
MEASURE = "tts_assets.corpora.quality"
SYNTHESIZE = "tts_assets.corpora.synthesis"
CUT = "tts_assets.corpora.segments.segment"


def build_assets(
    corpora: Corpora,
    filters: FilterConfig,
    text: TextConfig | None = None,
    shape: Shape | None = None,
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """The assets and checks of all corpora.

    An asset looks up its corpus when it runs: a new corpus needs no restart. ``shape`` is that of
    the programs that cut recordings and measure audio quality.
    """
    shape, text = shape or Shape(processes=1), text or TextConfig()
    raw, segments = raw_corpus_asset(corpora, text, shape), speech_segments_asset(corpora, shape)
    samples = filtered_samples_asset(corpora, filters, text, shape)
    return [
        *(raw, segments, samples),
        artifact_check(
            raw, "every_entry_is_accounted_for", "Entries = utterances + set aside.", count_entries
        ),
        artifact_check(
            segments,
            "every_second_is_accounted_for",
            "Seconds recorded = seconds in clips + set aside; each clip occurs once.",
            count_seconds,
        ),
        artifact_check(
            samples, "every_sample_is_accounted_for", "In = kept + rejected.", count_samples
        ),
        artifact_check(
            raw,
            "columns_are_plausible",
            "Speakers and texts do not look as if columns were mixed up.",
            check_columns,
            warns=True,
        ),
    ]


def raw_corpus_asset(corpora: Corpora, text: TextConfig, shape: Shape) -> AssetsDefinition:
    """The asset ``raw_corpus``: the index of a corpus. A synthetic corpus is made first."""

    def synthesize(request: Request, path: Path, config: CorpusConfig) -> None:
        work = request.store.root / ".work" / f"synthesis.{request.partition}"
        program = synthesis_program(work, corpora.project, path, config, text)
        if not is_complete(program):
            # A finished program is not launched again, but its texts or clips have changed.
            if (work / RESULT_FILE).is_file():
                shutil.rmtree(work)
            request.launch(Program(SYNTHESIZE, program, request.shape(shape)))

    def plan(request: Request) -> Plan[RawCorpus]:
        path, config = corpus = corpora(request.partition)
        if config.synthesis is not None:
            synthesize(request, path, config)
        scan = Scan.begin(corpus)
        scan.folder(path)  # before anything is read: the next scan detects later changes
        state, outside = corpus_state(read_entries(path, config), path)
        scan.outside(outside.items())

        def index(work: Path) -> RawCorpusFacts:
            return usable_index(request.partition, path, config, request.store, work / "result")

        def record(_: RawCorpus) -> None:
            RecordedScan(scan.digest, tuple(outside)).record(request.store, request.partition)

        # ``state`` changes with the files, and ``root`` if the corpus was moved. Later assets are
        # stale only if the content digest, which has no path, changes.
        known = {"corpus": config.as_indexed(), "root": path, "state": state}
        return Plan(known, index, describe=describe_corpus, after=record)

    return artifact_asset(
        "raw_corpus",
        plan,
        code_version=INDEX_VERSION,
        options=Machines,
        group_name="corpora",
        partitions_def=corpus_partitions,
        kinds={"polars", "parquet"},
        description="All utterances of a corpus: audio file, duration, speaker and text.",
    )


def speech_segments_asset(corpora: Corpora, shape: Shape) -> AssetsDefinition:
    """The asset ``speech_segments``: clips cut from recordings; utterances pass through."""
    root = corpora.project  # base of relative paths of models and reference recordings

    def plan(request: Request, raw_corpus: RawCorpus) -> Plan[SpeechSegments]:
        config = corpora(request.partition).config.segments

        def make(work: Path) -> SegmentFacts | dict[str, Any]:
            if config is None:
                return pass_through(raw_corpus, work / "result")
            program = SegmentProgram(
                run_dir=work,
                corpus=raw_corpus.path,
                segments=config,
                model=model_folder(config.model, root),
                reference=config.speaker and root / config.speaker.reference,
                audio_pool=request.store.audio_pool,
                transcripts=request.store.cache("transcripts"),
                records=request.store.cache("segments"),
            )
            return request.launch(Program(CUT, program, request.shape(shape)))

        sources = {} if config is None else source_digests(config, root)
        return Plan({"segments": config, "sources": sources}, make, describe=describe_segments)

    return artifact_asset(
        "speech_segments",
        plan,
        code_version=CODE_VERSION,
        ins={"raw_corpus": "raw_corpus"},
        options=Machines,
        group_name="corpora",
        partitions_def=corpus_partitions,
        automation_condition=follow_data(),
        kinds={"ctranslate2", "polars"},
        description="Clips cut from long recordings; a corpus of utterances passes unchanged.",
    )


def filtered_samples_asset(
    corpora: Corpora, filters: FilterConfig, text: TextConfig, shape: Shape
) -> AssetsDefinition:
    """The asset ``filtered_samples``: normalized utterances, kept or rejected."""

    def plan(request: Request, speech_segments: SpeechSegments) -> Plan[SampleManifest]:
        own = corpora(request.partition).config.filters
        chosen = filters.for_corpus(own, request.partition)
        changes = Corrections.of(corpora.project, request.partition)
        known = {"filters": chosen.identified(), "text": text, **changes.identity()}

        def measure(program: MeasureProgram) -> None:
            request.launch(Program(MEASURE, program, request.shape(shape)))

        def make(work: Path) -> SampleFacts:
            corpus, store = speech_segments, request.store
            return filter_corpus(corpus, chosen, text, store, work, measure, changes)

        return Plan(known, make, describe=lambda made: describe_samples(made, chosen))

    return artifact_asset(
        "filtered_samples",
        plan,
        code_version=FILTER_VERSION,
        ins={"speech_segments": "speech_segments"},
        options=Machines,
        group_name="corpora",
        partitions_def=corpus_partitions,
        automation_condition=follow_data(),
        kinds={"polars", "json"},
        description="Utterances with normalized text, kept or rejected with a reason.",
    )
