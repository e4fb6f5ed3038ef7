"""The corpora in the graph: ``raw_corpus`` and ``filtered_samples``, one partition a corpus.

``speech_segments`` between them is in ``segments/assets.py``.
"""

from dataclasses import dataclass
from itertools import pairwise
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
from tts_assets.core.accounting import SET_ASIDE_FILE, count_reasons, read_set_aside
from tts_assets.core.artifacts import Build, RawCorpus, SampleFacts, SampleManifest, SpeechSegments
from tts_assets.core.compute import Shape
from tts_assets.core.notebook import NOTEBOOK_FILE
from tts_assets.corpora.config import FilterConfig, MeasureProgram, TextConfig
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.filter import KEPT_FILE, REJECTED_FILE
from tts_assets.corpora.filter_corpus import filter_corpus, picture, quantiles, reasons
from tts_assets.corpora.index import (
    ABOUT_UTTERANCES,
    UTTERANCES_FILE,
    index_corpus,
    read_entries,
)
from tts_assets.corpora.samples import ABOUT_SAMPLES, FIELDS, SCHEMA
from tts_assets.corpora.segments.assets import build_assets as segments_assets
from tts_assets.corpora.watch import Look, Seen, survey
from tts_assets.orchestration.checks import column_schema
from tts_assets.orchestration.conditions import follow_data
from tts_assets.orchestration.launchpad import Machines
from tts_assets.orchestration.partitions import corpus_partitions

INDEX_VERSION = "3"
FILTER_VERSION = "3"
MEASURE = "tts_assets.corpora.quality"
ROWS_SHOWN = 8
SECONDS = (0, 1, 2, 4, 7, 10, 15, 20, 30)  # where the classes of the duration table begin


def build_assets(
    corpora: Corpora,
    filters: FilterConfig,
    text: TextConfig | None = None,
    shape: Shape | None = None,
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """``corpora`` are looked up when an asset runs: a new one needs no restart. ``shape``: of the
    programs that cut recordings and measure the quality of a corpus."""
    shape = shape or Shape(processes=1)
    filtering = Filtering(corpora, filters, text or TextConfig(), shape)
    return [
        raw_corpus_asset(corpora),
        *segments_assets(corpora, shape),
        filtered_samples_asset(filtering),
        entries_check(),
        samples_check(),
    ]


@dataclass(frozen=True)
class Filtering:
    """``[filters]``, those of each corpus, and ``[text]``."""

    corpora: Corpora
    filters: FilterConfig
    text: TextConfig
    shape: Shape

    def of(self, partition: str) -> FilterConfig:
        """The filters of one corpus."""
        _, config = self.corpora(partition)
        return self.filters.for_corpus(config.filters, partition)


def raw_corpus_asset(corpora: Corpora) -> AssetsDefinition:
    """The asset ``raw_corpus``."""

    @asset(
        group_name="corpora",
        partitions_def=corpus_partitions,
        code_version=INDEX_VERSION,
        kinds={"polars", "parquet"},
        description="Every utterance of a corpus: where its audio lies, how long, who, what.",
    )
    def raw_corpus(
        context: AssetExecutionContext, store: ArtifactStoreResource
    ) -> Output[RawCorpus]:
        name = context.partition_key
        path, config = corpus = corpora(name)
        look = Look.begin(corpus)
        look.folder(path)  # before anything is read: what changes later is seen next time
        state, outside = survey(read_entries(path, config), path)
        look.outside(outside.items())
        build = Build(
            asset="raw_corpus",
            partition=name,
            inputs={},
            # This tells that files changed; the content digest tells whether it matters.
            config={"corpus": config.as_indexed(), "root": path, "state": state},
            code_version=INDEX_VERSION,
        )
        output = store.materialize(
            context,
            RawCorpus,
            build,
            lambda work: index_corpus(name, path, config, store.store, work / "result"),
            describe_corpus,
        )
        Seen(look.digest, tuple(outside)).record(store.store, name)
        return output

    return raw_corpus


def filtered_samples_asset(filtering: Filtering) -> AssetsDefinition:
    """The asset ``filtered_samples``."""

    @asset(
        group_name="corpora",
        partitions_def=corpus_partitions,
        code_version=FILTER_VERSION,
        automation_condition=follow_data(),
        kinds={"polars", "json"},
        description="Utterances with normalized text, kept or rejected with a reason.",
    )
    def filtered_samples(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        speech_segments: SpeechSegments,
    ) -> Output[SampleManifest]:
        filters = filtering.of(context.partition_key)
        build = Build(
            asset="filtered_samples",
            partition=context.partition_key,
            inputs={"speech_segments": speech_segments},
            # Samples name audio by absolute path, so the place is part of what they are.
            config={
                "filters": filters.identified(),
                "text": filtering.text,
                "root": speech_segments.facts.root,
                "audio_pool": speech_segments.facts.audio_pool,
            },
            code_version=FILTER_VERSION,
        )

        def measure(program: MeasureProgram) -> None:
            launcher.run(context, Program(MEASURE, program, config.of(filtering.shape)))

        def run(work: Path) -> SampleFacts:
            return filter_corpus(
                speech_segments, filters, filtering.text, store.store, work, measure
            )

        return store.materialize(
            context, SampleManifest, build, run, lambda made: describe_samples(made, filters)
        )

    return filtered_samples


def entries_check() -> AssetChecksDefinition:
    """Nothing that a corpus lists is missing from its index.

    Entries were counted as the reader gave them. It is not asked again: that would take as long
    as it did, and a corpus may have grown since.
    """

    @asset_check(
        asset="raw_corpus",
        partitions_def=corpus_partitions,
        blocking=True,
        description="Entries = utterances + set aside.",
    )
    def every_entry_is_accounted_for(
        context: AssetCheckExecutionContext, raw_corpus: RawCorpus
    ) -> AssetCheckResult:
        entries = raw_corpus.facts.entries
        rows = pl.scan_parquet(raw_corpus.path / UTTERANCES_FILE).select(pl.len()).collect().item()
        aside = len(read_set_aside(raw_corpus.path / SET_ASIDE_FILE))
        return AssetCheckResult(
            passed=entries == rows + aside,
            metadata={"entries": entries, "utterances": rows, "set_aside": aside},
        )

    return every_entry_is_accounted_for


def samples_check() -> AssetChecksDefinition:
    """Nothing that went into the filters is lost."""

    @asset_check(
        asset="filtered_samples",
        partitions_def=corpus_partitions,
        blocking=True,
        description="In = kept + rejected.",
    )
    def every_sample_is_accounted_for(
        context: AssetCheckExecutionContext, filtered_samples: SampleManifest
    ) -> AssetCheckResult:
        kept, rejected = (_lines(filtered_samples.path / f) for f in (KEPT_FILE, REJECTED_FILE))
        samples_in = filtered_samples.facts.samples_in
        return AssetCheckResult(
            passed=samples_in == kept + rejected and kept > 0,
            metadata={"samples_in": samples_in, "kept": kept, "rejected": rejected},
        )

    return every_sample_is_accounted_for


def describe_corpus(corpus: RawCorpus) -> dict[str, Any]:
    rows = pl.read_parquet(corpus.path / UTTERANCES_FILE)
    shown = rows.select("id", "audio", "duration", "sample_rate", "speaker", "text")
    reasons = count_reasons(read_set_aside(corpus.path / SET_ASIDE_FILE))
    return {
        "dagster/partition_row_count": len(rows),
        "utterances_preview": _table(shown.head(ROWS_SHOWN)),
        "durations": _table(durations(rows["duration"])),
        "set_aside_reasons": MetadataValue.json(reasons),
        **column_schema(rows.schema, ABOUT_UTTERANCES),
        **{
            f"seconds_{name}": round(float(value), 3)
            for name, value in rows.select(
                median=pl.col("duration").median().fill_null(0),
                longest=pl.col("duration").max().fill_null(0),
            )
            .row(0, named=True)
            .items()
        },
    }


def describe_samples(samples: SampleManifest, filters: FilterConfig) -> dict[str, Any]:
    kept, rejected = samples.path / KEPT_FILE, samples.path / REJECTED_FILE
    shown = ("id", "transcript", "language", "duration", "speaker_id")
    rows = pl.scan_ndjson(kept, schema=SCHEMA).select(shown)
    plot = picture({"kept": kept, "rejected": rejected})
    return {
        "dagster/partition_row_count": samples.facts.kept,
        **column_schema(FIELDS, ABOUT_SAMPLES),
        "samples_preview": _table(rows.head(ROWS_SHOWN).collect()),
        "rejected_in_order": _table(reasons(samples.facts.reasons, filters)),
        "durations": _table(
            durations(rows.select("duration").collect(engine="streaming")["duration"])
        ),
        "quality": _table(quantiles(kept)),
        "distributions": MetadataValue.md(f"![distributions]({plot})"),
        "listening": MetadataValue.notebook(samples.path / NOTEBOOK_FILE),
    }


def durations(seconds: pl.Series) -> pl.DataFrame:
    """A histogram: how many clips, and how many minutes, are how long."""
    rows = []
    for low, high in pairwise([*SECONDS, float("inf")]):
        inside = seconds.filter((seconds >= low) & (seconds < high))
        name = f"{low} to {high} s" if high < float("inf") else f"from {low} s"
        rows.append({"long": name, "clips": len(inside), "minutes": round(inside.sum() / 60, 2)})
    return pl.DataFrame(rows)


def _table(rows: pl.DataFrame) -> MetadataValue:
    """Rows as a Markdown table."""
    with pl.Config(
        tbl_formatting="MARKDOWN",
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_width_chars=1000,
        tbl_cols=-1,
        tbl_rows=-1,
        fmt_str_lengths=80,
    ):
        return MetadataValue.md(str(rows))


def _lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for _ in stream)
