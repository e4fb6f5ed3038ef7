"""Dagster assets of corpora, one partition per corpus.

``raw_corpus`` (the index), ``speech_segments`` (clips) and ``filtered_samples``.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import polars as pl
from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetsDefinition,
    MetadataValue,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Program
from tts_assets.audio_models.whisper import model_folder
from tts_assets.core.accounting import (
    SET_ASIDE_FILE,
    count_reasons,
    raise_nothing_usable,
    read_set_aside,
)
from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Handle,
    RawCorpus,
    SampleFacts,
    SampleManifest,
    SegmentFacts,
    SpeechSegments,
)
from tts_assets.core.compute import Shape
from tts_assets.core.notebook import NOTEBOOK_FILE
from tts_assets.core.plots import histogram
from tts_assets.corpora.config import CorpusConfig, FilterConfig, MeasureProgram, TextConfig
from tts_assets.corpora.describe import (
    count_lines,
    durations,
    markdown_table,
    plot_distributions,
    quantiles,
    read_rejected,
    reasons,
)
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.filter import KEPT_FILE, REJECTED_FILE
from tts_assets.corpora.filter_corpus import filter_corpus
from tts_assets.corpora.index import (
    ABOUT_UTTERANCES,
    UTTERANCES_FILE,
    index_corpus,
    plausibility,
    read_entries,
)
from tts_assets.corpora.samples import ABOUT_SAMPLES, FIELDS, SCHEMA
from tts_assets.corpora.segments.config import CODE_VERSION, SegmentProgram
from tts_assets.corpora.segments.result import CARD_FILE, account, pass_through, source_digests
from tts_assets.corpora.synthesis import is_complete, synthesis_program
from tts_assets.corpora.watch import Scan, Seen, survey
from tts_assets.orchestration.checks import column_schema
from tts_assets.orchestration.conditions import follow_data
from tts_assets.orchestration.launchpad import Machines
from tts_assets.orchestration.partitions import corpus_partitions
from tts_assets.orchestration.program_asset import Plan, Request, artifact_asset

INDEX_VERSION = "4"
FILTER_VERSION = "4"
MEASURE = "tts_assets.corpora.quality"
SYNTHESIZE = "tts_assets.corpora.synthesis"
CUT = "tts_assets.corpora.segments.segment"
ROWS_SHOWN = 8
H = TypeVar("H", bound=Handle)


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
    shape = shape or Shape(processes=1)
    return [
        raw_corpus_asset(corpora, text or TextConfig(), shape),
        speech_segments_asset(corpora, shape),
        filtered_samples_asset(corpora, filters, text or TextConfig(), shape),
        accounting_check(
            "raw_corpus", "every_entry", "Entries = utterances + set aside.", count_entries
        ),
        accounting_check(
            "speech_segments",
            "every_second",
            "Seconds recorded = seconds in clips + set aside; each clip occurs once.",
            count_seconds,
        ),
        accounting_check(
            "filtered_samples", "every_sample", "In = kept + rejected.", count_samples
        ),
        plausibility_check(),
    ]


def raw_corpus_asset(corpora: Corpora, text: TextConfig, shape: Shape) -> AssetsDefinition:
    """The asset ``raw_corpus``: the index of a corpus. A synthetic corpus is made first."""

    def synthesize(request: Request, path: Path, config: CorpusConfig) -> None:
        work = request.store.root / ".work" / f"synthesis.{request.partition}"
        program = synthesis_program(work, corpora.project, path, config, text)
        if not is_complete(program):
            request.launch(Program(SYNTHESIZE, program, request.shape(shape)))

    def plan(request: Request) -> Plan[RawCorpus]:
        path, config = corpus = corpora(request.partition)
        if config.synthesis is not None:
            synthesize(request, path, config)
        scan = Scan.begin(corpus)
        scan.folder(path)  # before anything is read: the next scan detects later changes
        state, outside = survey(read_entries(path, config), path)
        scan.outside(outside.items())

        def index(work: Path) -> Any:
            result = work / "result"
            facts = index_corpus(request.partition, path, config, request.store, result)
            if not facts.utterances:
                what = f"corpus {request.partition!r} has no usable utterance of {facts.entries}"
                raise_nothing_usable(what, read_set_aside(result / SET_ASIDE_FILE))
            return facts

        def record(_: RawCorpus) -> None:
            Seen(scan.digest, tuple(outside)).record(request.store, request.partition)

        # ``state`` tells that files changed; the content digest tells whether it matters.
        known = {"corpus": config.as_indexed(), "root": path, "state": state}
        return Plan(known, index, describe=describe_corpus, after=record)

    return artifact_asset(
        "raw_corpus",
        RawCorpus,
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

        # Rows name audio relative to these folders, so they are part of the content.
        known = {
            "root": raw_corpus.facts.root,
            "audio_pool": raw_corpus.facts.audio_pool,
            "segments": config,
            "sources": {} if config is None else source_digests(config, root),
        }
        return Plan(known, make, describe=describe_segments)

    return artifact_asset(
        "speech_segments",
        SpeechSegments,
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
        # Samples name audio by absolute path, so these folders are part of the content.
        known = {
            "filters": chosen.identified(),
            "text": text,
            "root": speech_segments.facts.root,
            "audio_pool": speech_segments.facts.audio_pool,
        }

        aside = speech_segments.path / SET_ASIDE_FILE

        def measure(program: MeasureProgram) -> None:
            request.launch(Program(MEASURE, program, request.shape(shape)))

        def make(work: Path) -> SampleFacts:
            facts = filter_corpus(speech_segments, chosen, text, request.store, work, measure)
            if not facts.kept:
                what = f"corpus {request.partition!r} has no sample that passes the filters"
                rejected = read_rejected(work / "result" / REJECTED_FILE)
                raise_nothing_usable(what, [*rejected, *read_set_aside(aside)])
            return facts

        return Plan(known, make, describe=lambda made: describe_samples(made, chosen))

    return artifact_asset(
        "filtered_samples",
        SampleManifest,
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


Counts = Mapping[str, int | float]


def accounting_check(
    asset: str,
    items: str,
    description: str,
    count: Callable[[H, ArtifactStore], tuple[bool, Counts]],
) -> AssetChecksDefinition:
    """The blocking check ``<items>_is_accounted_for``.

    ``count(handle, store)`` returns whether the check passes and the numbers for its metadata. An
    ArtifactError that it raises fails the check, too.
    """

    @asset_check(
        asset=asset,
        name=f"{items}_is_accounted_for",
        partitions_def=corpus_partitions,
        blocking=True,
        description=description,
    )
    def check(store: ArtifactStoreResource, made: Handle) -> AssetCheckResult:
        try:
            passed, counts = count(cast(H, made), store.store)
        except ArtifactError as error:
            return AssetCheckResult(passed=False, description=str(error))
        return AssetCheckResult(passed=passed, metadata=dict(counts))

    return check


def plausibility_check() -> AssetChecksDefinition:
    """The check ``columns_are_plausible`` of ``raw_corpus``, which warns."""

    @asset_check(
        asset="raw_corpus",
        partitions_def=corpus_partitions,
        description="Speakers and texts do not look as if columns were mixed up.",
    )
    def columns_are_plausible(made: Handle) -> AssetCheckResult:
        signs = plausibility(pl.read_parquet(made.path / UTTERANCES_FILE))
        return AssetCheckResult(
            passed=not signs,
            severity=AssetCheckSeverity.WARN,
            description="; ".join(signs) or None,
            metadata={"signs": len(signs)},
        )

    return columns_are_plausible


def count_entries(corpus: RawCorpus, _: ArtifactStore) -> tuple[bool, Counts]:
    """Compares the entries that the reader counted with the rows and the set-aside records.

    The reader does not run again: that takes as long as indexing, and the corpus may have grown.
    """
    entries = corpus.facts.entries
    rows = pl.scan_parquet(corpus.path / UTTERANCES_FILE).select(pl.len()).collect().item()
    aside = len(read_set_aside(corpus.path / SET_ASIDE_FILE))
    counts = {"entries": entries, "utterances": rows, "set_aside": aside}
    return entries == rows + aside, counts


def count_seconds(segments: SpeechSegments, store: ArtifactStore) -> tuple[bool, Counts]:
    """Compares the time in clips and set aside with the recordings. Raises ArtifactError."""
    source = segments.manifest.inputs["raw_corpus"]
    folder = store.folder(source.asset, source.partition) / source.fingerprint
    return True, account(RawCorpus.open(folder), segments)


def count_samples(samples: SampleManifest, _: ArtifactStore) -> tuple[bool, Counts]:
    """Compares the samples that went in with the kept and rejected lines."""
    kept, rejected = (count_lines(samples.path / name) for name in (KEPT_FILE, REJECTED_FILE))
    samples_in = samples.facts.samples_in
    counts = {"samples_in": samples_in, "kept": kept, "rejected": rejected}
    return samples_in == kept + rejected, counts


def describe_corpus(corpus: RawCorpus) -> dict[str, Any]:
    """Metadata of ``raw_corpus``: a preview, durations in seconds, and counted reasons."""
    rows = pl.read_parquet(corpus.path / UTTERANCES_FILE)
    shown = rows.select("id", "audio", "duration", "sample_rate", "speaker", "text")
    seconds = rows["duration"]
    longest = {"seconds_median": seconds.median(), "seconds_longest": seconds.max()}
    aside = count_reasons(read_set_aside(corpus.path / SET_ASIDE_FILE))
    return {
        "dagster/partition_row_count": len(rows),
        "utterances_preview": _table(shown.head(ROWS_SHOWN)),
        "durations": _table(durations(seconds)),
        "set_aside_reasons": MetadataValue.json(aside),
        **column_schema(rows.schema, ABOUT_UTTERANCES),
        **{name: round(float(value or 0), 3) for name, value in longest.items()},  # type: ignore[arg-type]
    }


def describe_segments(segments: SpeechSegments) -> dict[str, Any]:
    """Metadata: the columns, and for recordings the dataset card, a histogram and a notebook."""
    table = segments.path / UTTERANCES_FILE
    rows = pl.read_parquet(table, columns=["duration"])
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": len(rows),
        **column_schema(pl.read_parquet_schema(table), ABOUT_UTTERANCES),
    }
    if not segments.facts.recordings:
        return metadata
    reasons = count_reasons(read_set_aside(segments.path / SET_ASIDE_FILE))
    plot = histogram(rows["duration"].to_list(), x_label="seconds", y_label="clips")
    card = (segments.path / CARD_FILE).read_text()
    return metadata | {
        "card": MetadataValue.md(f"{card}\n![durations]({plot})"),
        "listening": MetadataValue.notebook(segments.path / NOTEBOOK_FILE),
        "set_aside_reasons": MetadataValue.json(reasons),
    }


def describe_samples(samples: SampleManifest, filters: FilterConfig) -> dict[str, Any]:
    """Metadata of ``filtered_samples``: a preview, the filters' effect, quality and a notebook."""
    kept, rejected = samples.path / KEPT_FILE, samples.path / REJECTED_FILE
    shown = ("id", "transcript", "language", "duration", "speaker_id")
    rows = pl.scan_ndjson(kept, schema=SCHEMA).select(shown)
    seconds = rows.select("duration").collect(engine="streaming")["duration"]
    plot = plot_distributions({"kept": kept, "rejected": rejected})
    return {
        "dagster/partition_row_count": samples.facts.kept,
        **column_schema(FIELDS, ABOUT_SAMPLES),
        "samples_preview": _table(rows.head(ROWS_SHOWN).collect()),
        "rejected_in_order": _table(reasons(samples.facts.reasons, filters)),
        "durations": _table(durations(seconds)),
        "quality": _table(quantiles(kept)),
        "distributions": MetadataValue.md(f"![distributions]({plot})"),
        "listening": MetadataValue.notebook(samples.path / NOTEBOOK_FILE),
    }


def _table(rows: pl.DataFrame) -> MetadataValue:
    return MetadataValue.md(markdown_table(rows))
