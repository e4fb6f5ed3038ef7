"""Dagster assets of merged arrays: ``code_arrays`` with its checks, and ``inworld_arrays``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dagster import AssetCheckResult, AssetChecksDefinition, AssetsDefinition, asset_check

from resources.artifact_store import ArtifactStoreResource
from tts_assets.arrays.arrays import ArrayError
from tts_assets.arrays.checks import (
    Numbers,
    check_codes,
    check_counts,
    check_digests,
    check_samples,
    check_tables,
)
from tts_assets.arrays.config import ArraysConfig, ImportedArrays
from tts_assets.arrays.inworld import check_codec, export_inworld, file_digests, import_inworld
from tts_assets.arrays.merge import merge
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    CodeArrays,
    CodecCheckpoint,
    CodecShards,
    InworldArrays,
)
from tts_assets.corpora.samples import ABOUT_SAMPLES, FIELDS
from tts_assets.orchestration.checks import column_schema
from tts_assets.orchestration.conditions import follow_data
from tts_assets.orchestration.partitions import corpus_partitions
from tts_assets.orchestration.program_asset import Plan, Request, artifact_asset

CODE_VERSION = "2"
IMPORT_VERSION = "1"
EXPORT_VERSION = "1"
Test = Callable[[ArtifactStore, CodeArrays], Numbers]


def build_assets(
    config: ArraysConfig, validation: ValidationSplit, codec_name: str | None, root: Path
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """``code_arrays``, its blocking checks, and ``inworld_arrays`` where ``[arrays]`` exports it.

    ``validation`` assigns samples to a split, ``codec_name`` is the ``checkpoint`` of ``[codec]``.
    Paths of imported arrays are relative to ``root``.
    """
    checks: dict[str, tuple[Test, str]] = {
        "no_sample_is_lost": (
            check_counts,
            "All counts add up, from the entries of the corpus to train + val.",
        ),
        "index_fits_codes": (
            lambda _, arrays: check_tables(arrays),
            "The offsets of samples rise and end at the last code.",
        ),
        "samples_fit_index": (
            lambda _, arrays: check_samples(arrays, validation),
            "Each index entry has one sample, and the sample is in the split of its id.",
        ),
        "codes_are_in_codebook": (
            lambda _, arrays: check_codes(arrays),
            "Every code is in the codebook.",
        ),
        "files_are_unchanged": (
            lambda _, arrays: check_digests(arrays),
            "The digests of all files are those of the manifest.",
        ),
    }
    return [
        code_arrays_asset(config.imported, validation, codec_name, root),
        *(array_check(name, test, about) for name, (test, about) in checks.items()),
        *([inworld_arrays_asset()] if config.export == "inworld" else []),
    ]


def code_arrays_asset(
    imported: Mapping[str, ImportedArrays],
    validation: ValidationSplit,
    codec_name: str | None,
    root: Path,
) -> AssetsDefinition:
    """The asset ``code_arrays``: merged from shards, or imported for the corpora ``imported``."""

    def plan(request: Request) -> Plan[CodeArrays]:
        corpus = request.partition
        if corpus in imported:
            codec = request.store.current("codec")
            assert isinstance(codec, CodecCheckpoint)
            return import_plan(corpus, imported[corpus], codec, codec_name, root)
        shards = request.store.current("codec_shards", corpus)
        assert isinstance(shards, CodecShards)
        return Plan(
            validation,
            lambda work: merge(shards, validation, work / "result"),
            inputs={"codec_shards": shards},
            describe=describe_arrays,
        )

    return artifact_asset(
        "code_arrays",
        CodeArrays,
        plan,
        code_version=CODE_VERSION,
        group_name="arrays",
        partitions_def=corpus_partitions,
        # Dependencies instead of inputs: an imported corpus has no shards to load.
        deps=["codec_shards", *(["codec"] if imported else [])],
        automation_condition=follow_data(),
        kinds={"numpy"},
        description="All codes of a corpus in two memory-mapped arrays: training and validation.",
    )


def import_plan(
    corpus: str,
    config: ImportedArrays,
    codec: CodecCheckpoint,
    codec_name: str | None,
    root: Path,
) -> Plan[CodeArrays]:
    """Import the arrays of a folder that the merger of the reference trainer wrote.

    Raises :class:`ArtifactError` if the arrays were made with another codec.
    """
    source = (root / config.path).resolve()
    check_codec(corpus, config.codec, codec, codec_name)
    return Plan(
        {"licence": config.licence, "files": file_digests(source)},
        lambda work: import_inworld(corpus, source, config.licence, codec, work / "result"),
        inputs={"codec": codec},
        describe=describe_arrays,
        code_version=IMPORT_VERSION,
    )


def inworld_arrays_asset() -> AssetsDefinition:
    """The asset ``inworld_arrays``: ``code_arrays`` in the layout of the reference trainer."""

    def plan(request: Request, code_arrays: CodeArrays) -> Plan[InworldArrays]:
        return Plan({}, lambda work: export_inworld(code_arrays, work / "result"))

    return artifact_asset(
        "inworld_arrays",
        InworldArrays,
        plan,
        code_version=EXPORT_VERSION,
        ins={"code_arrays": "code_arrays"},
        group_name="arrays",
        partitions_def=corpus_partitions,
        automation_condition=follow_data(),
        kinds={"numpy"},
        description="The same arrays as the reference trainer reads them: headerless int32 codes.",
    )


def describe_arrays(arrays: CodeArrays) -> dict[str, Any]:
    """Metadata: number of samples, type of the codes, columns of the samples."""
    samples = arrays.facts.train_samples + arrays.facts.val_samples
    return {
        "dagster/partition_row_count": samples,
        **column_schema(FIELDS, ABOUT_SAMPLES),
        "samples": samples,
        "dtype": arrays.facts.dtype,
    }


def array_check(name: str, test: Test, description: str) -> AssetChecksDefinition:
    """A blocking check of ``code_arrays``. It fails with the message that ``test`` raises."""

    @asset_check(
        asset="code_arrays",
        name=name,
        partitions_def=corpus_partitions,
        blocking=True,
        description=description,
    )
    def check(store: ArtifactStoreResource, code_arrays: CodeArrays) -> AssetCheckResult:
        try:
            return AssetCheckResult(passed=True, metadata=test(store.store, code_arrays))
        except (ArrayError, ArtifactError) as error:
            return AssetCheckResult(passed=False, description=str(error))

    return check
