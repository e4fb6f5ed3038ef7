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
    asset,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from tts_assets.accounting import SET_ASIDE_FILE, count_reasons, read_set_aside
from tts_assets.artifacts import Build, RawCorpus, SampleManifest, SpeechSegments
from tts_assets.corpora.config import CorpusConfig, FilterConfig
from tts_assets.corpora.filter import KEPT_FILE, REJECTED_FILE, filter_corpus
from tts_assets.corpora.index import UTTERANCES_FILE, index_corpus, read_entries
from tts_assets.corpora.listening import NOTEBOOK_FILE
from tts_assets.corpora.listing import entries_digest
from tts_assets.corpora.segments.assets import build_assets as segments_assets
from tts_assets.partitions import corpus_partitions

INDEX_VERSION = "2"
FILTER_VERSION = "2"
ROWS_SHOWN = 8
SECONDS = (0, 1, 2, 4, 7, 10, 15, 20, 30)  # where the classes of the duration table begin


def build_assets(
    corpora: dict[str, CorpusConfig], filters: FilterConfig, root: Path, processes: int = 1
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """``root``: the folder that relative corpus paths start from; ``processes``: the ranks that
    cut recordings."""
    declared = Declared(corpora, root)
    return [
        raw_corpus_asset(declared),
        *segments_assets(declared, processes, root),
        filtered_samples_asset(filters),
        entries_check(declared),
        samples_check(),
    ]


@dataclass(frozen=True)
class Declared:
    """The corpora of ``dagster_project.toml``."""

    corpora: dict[str, CorpusConfig]
    root: Path

    def __call__(self, partition: str) -> tuple[Path, CorpusConfig]:
        """Where the corpus of a partition lies, and how it is read."""
        if partition not in self.corpora:
            raise ValueError(
                f"corpus {partition!r} is a partition, but not declared: add "
                f"[corpora.{partition}] to dagster_project.toml, or delete the partition"
            )
        config = self.corpora[partition]
        return (self.root / config.path).resolve(), config


def raw_corpus_asset(declared: Declared) -> AssetsDefinition:
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
        path, config = declared(name)
        entries = read_entries(path, config)
        build = Build(
            asset="raw_corpus",
            partition=name,
            inputs={},
            # This tells that files changed; the content digest tells whether it matters.
            config={
                "corpus": config.model_copy(update={"segments": None}),  # cut after the index
                "root": path,
                "state": entries_digest(entries),
            },
            code_version=INDEX_VERSION,
        )
        return store.materialize(
            context,
            RawCorpus,
            build,
            lambda work: index_corpus(name, path, config, store.store, work / "result"),
            describe_corpus,
        )

    return raw_corpus


def filtered_samples_asset(filters: FilterConfig) -> AssetsDefinition:
    """The asset ``filtered_samples``."""

    @asset(
        group_name="corpora",
        partitions_def=corpus_partitions,
        code_version=FILTER_VERSION,
        kinds={"polars", "json"},
        description="Utterances with normalized text, kept or rejected with a reason.",
    )
    def filtered_samples(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        speech_segments: SpeechSegments,
    ) -> Output[SampleManifest]:
        build = Build(
            asset="filtered_samples",
            partition=context.partition_key,
            inputs={"speech_segments": speech_segments},
            # Samples name audio by absolute path, so the place is part of what they are.
            config={
                "filters": filters,
                "root": speech_segments.facts.root,
                "audio_pool": speech_segments.facts.audio_pool,
            },
            code_version=FILTER_VERSION,
        )
        return store.materialize(
            context,
            SampleManifest,
            build,
            lambda work: filter_corpus(speech_segments, filters, work / "result"),
            describe_samples,
        )

    return filtered_samples


def entries_check(declared: Declared) -> AssetChecksDefinition:
    """Nothing that a corpus lists is missing from its index."""

    @asset_check(
        asset="raw_corpus",
        partitions_def=corpus_partitions,
        blocking=True,
        description="Entries = utterances + set aside.",
    )
    def every_entry_is_accounted_for(
        context: AssetCheckExecutionContext, raw_corpus: RawCorpus
    ) -> AssetCheckResult:
        path, config = declared(raw_corpus.partition)
        entries = len(read_entries(path, config))
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


def describe_samples(samples: SampleManifest) -> dict[str, Any]:
    path = samples.path / KEPT_FILE
    columns = {
        "id": pl.String,
        "transcript": pl.String,
        "language": pl.String,
        "duration": pl.Float64,
        "speaker_id": pl.String,
    }
    empty = not path.stat().st_size
    rows = pl.DataFrame(schema=columns) if empty else pl.read_ndjson(path, schema=columns)
    return {
        "dagster/partition_row_count": len(rows),
        "samples_preview": _table(rows.head(ROWS_SHOWN)),
        "durations": _table(durations(rows["duration"])),
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
