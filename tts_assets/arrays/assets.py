"""The merged arrays in the graph: ``code_arrays``, one partition a corpus, and what must hold."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetExecutionContext,
    AssetsDefinition,
    Output,
    asset,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from tts_assets.arrays.arrays import SPLITS, CodeTable
from tts_assets.arrays.config import DIGEST_DIGITS, ArraysConfig, ImportedArrays
from tts_assets.arrays.counts import Numbers, add_up_stages
from tts_assets.arrays.files import ArrayError
from tts_assets.arrays.inworld import export_inworld, file_digests, import_inworld, refuse_outside
from tts_assets.arrays.merge import merge, refuse_other_type
from tts_assets.core.artifacts import (
    ArtifactError,
    Build,
    CodeArrays,
    CodecCheckpoint,
    CodecShards,
    InworldArrays,
)
from tts_assets.core.split import ValidationSplit, held_out
from tts_assets.corpora.samples import ABOUT_SAMPLES, FIELDS
from tts_assets.orchestration.checks import column_schema
from tts_assets.orchestration.conditions import follow_data
from tts_assets.orchestration.partitions import corpus_partitions

CODE_VERSION = "2"
IMPORT_VERSION = "1"
EXPORT_VERSION = "1"
Test = Callable[[ArtifactStoreResource, CodeArrays], Numbers]
Built = AssetsDefinition | AssetChecksDefinition


def build_assets(
    config: ArraysConfig, validation: ValidationSplit, codec_name: str | None, root: Path
) -> list[Built]:
    """``code_arrays``, its blocking checks, and the export if there is one.

    ``validation`` says who is held out, ``codec_name`` how ``[codec]`` calls a published codec;
    imported folders are relative to ``root``.
    """
    built: list[Built] = [
        code_arrays_asset(config.imported, validation, codec_name, root),
        array_check(
            "no_sample_is_lost",
            "Counts add up over all stages, from a corpus' entries to train + val.",
            lambda store, arrays: add_up_stages(store.store, arrays),
        ),
        array_check("index_fits_codes", "Offsets rise, and end in range.", measure_tables),
        array_check(
            "samples_fit_index",
            "A sample an index entry, in the split of its id.",
            lambda store, arrays: check_samples(arrays, validation),
        ),
        array_check("codes_are_in_codebook", "Every code is in the codebook.", check_codes),
        array_check("files_are_unchanged", "Digests agree when read again.", read_again),
    ]
    return [*built, inworld_arrays_asset()] if config.export == "inworld" else built


def code_arrays_asset(
    imported: Mapping[str, ImportedArrays],
    validation: ValidationSplit,
    codec_name: str | None,
    root: Path,
) -> AssetsDefinition:
    """The asset ``code_arrays``: merged from shards, or imported where a corpus is declared so."""

    @asset(
        group_name="arrays",
        partitions_def=corpus_partitions,
        # Not loaded as inputs: an imported corpus has no shards.
        deps=["codec_shards", *(["codec"] if imported else [])],
        code_version=CODE_VERSION,
        automation_condition=follow_data(),
        kinds={"numpy"},
        description="All codes of a corpus in two memory-mapped arrays: training and validation.",
    )
    def code_arrays(
        context: AssetExecutionContext, store: ArtifactStoreResource
    ) -> Output[CodeArrays]:
        corpus = context.partition_key
        if corpus in imported:
            codec = store.store.current("codec")
            assert isinstance(codec, CodecCheckpoint)
            return imported_arrays(context, store, imported[corpus], codec, codec_name, root)
        shards = store.store.current("codec_shards", corpus)
        assert isinstance(shards, CodecShards)
        build = Build(
            asset="code_arrays",
            partition=corpus,
            inputs={"codec_shards": shards},
            config=validation,
            code_version=CODE_VERSION,
        )
        return store.materialize(
            context,
            CodeArrays,
            build,
            lambda work: merge(shards, validation, work / "result"),
            describe_arrays,
        )

    return code_arrays


def imported_arrays(
    context: AssetExecutionContext,
    store: ArtifactStoreResource,
    config: ImportedArrays,
    codec: CodecCheckpoint,
    codec_name: str | None,
    root: Path,
) -> Output[CodeArrays]:
    """The arrays of a folder that the reference trainer's merger wrote."""
    corpus, source = context.partition_key, (root / config.path).resolve()
    refuse_other_codec(corpus, config.codec, codec, codec_name)
    build = Build(
        asset="code_arrays",
        partition=corpus,
        inputs={"codec": codec},
        config={"licence": config.licence, "files": file_digests(source)},
        code_version=IMPORT_VERSION,
    )
    return store.materialize(
        context,
        CodeArrays,
        build,
        lambda work: import_inworld(corpus, source, config.licence, codec, work / "result"),
        describe_arrays,
    )


def refuse_other_codec(
    corpus: str, named: str, codec: CodecCheckpoint, codec_name: str | None
) -> None:
    """Raise :class:`ArtifactError` if imported codes were made with another codec than ours."""
    by_digest = len(named) >= DIGEST_DIGITS and codec.content.startswith(named)
    if named != codec_name and not by_digest:
        ours = [codec.content[:DIGEST_DIGITS], *([codec_name] if codec_name else [])]
        raise ArtifactError(
            f"arrays.imported.{corpus} were made with codec {named!r}, but [codec] is now "
            f"{' or '.join(ours)}: codes mean nothing to another codec. Use that codec, or if it "
            f"is the same one, write codec = {ours[-1]!r}"
        )


def inworld_arrays_asset() -> AssetsDefinition:
    """The asset ``inworld_arrays``: an export of ``code_arrays``."""

    @asset(
        group_name="arrays",
        partitions_def=corpus_partitions,
        code_version=EXPORT_VERSION,
        automation_condition=follow_data(),
        kinds={"numpy"},
        description="The same arrays as the reference trainer reads them: headerless int32 codes.",
    )
    def inworld_arrays(
        context: AssetExecutionContext, store: ArtifactStoreResource, code_arrays: CodeArrays
    ) -> Output[InworldArrays]:
        build = Build(
            asset="inworld_arrays",
            partition=context.partition_key,
            inputs={"code_arrays": code_arrays},
            config={},
            code_version=EXPORT_VERSION,
        )
        return store.materialize(
            context,
            InworldArrays,
            build,
            lambda work: export_inworld(code_arrays, work / "result"),
        )

    return inworld_arrays


def describe_arrays(arrays: CodeArrays) -> dict[str, Any]:
    samples = arrays.facts.train_samples + arrays.facts.val_samples
    return {
        "dagster/partition_row_count": samples,
        **column_schema(FIELDS, ABOUT_SAMPLES),
        "samples": samples,
        "dtype": arrays.facts.dtype,
    }


def array_check(name: str, description: str, test: Test) -> AssetChecksDefinition:
    """A blocking check: passed with the numbers that ``test`` finds, or failed with its error."""

    @asset_check(
        asset="code_arrays",
        name=name,
        partitions_def=corpus_partitions,
        blocking=True,
        description=description,
    )
    def check(store: ArtifactStoreResource, code_arrays: CodeArrays) -> AssetCheckResult:
        try:
            return AssetCheckResult(passed=True, metadata=test(store, code_arrays))
        except (ArrayError, ArtifactError) as error:
            return AssetCheckResult(passed=False, description=str(error))

    return check


def measure_tables(store: ArtifactStoreResource, arrays: CodeArrays) -> Numbers:
    """Open both splits, which checks their index; type and counts equal the recorded facts."""
    facts = arrays.facts.model_dump()
    found: Numbers = {}
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        refuse_other_type(table, arrays.facts.dtype, arrays.path)
        found |= {f"{split}_samples": len(table), f"{split}_codes": len(table.codes)}
    for name, number in found.items():
        if facts[name] != number:
            raise ArrayError(f"{arrays.path}: {name} is {number}, recorded is {facts[name]}")
    return found


def check_samples(arrays: CodeArrays, validation: ValidationSplit) -> Numbers:
    """Every line is a sample, belongs to an index entry, and lies in the split of its id; the
    last not for arrays that were imported, whose split is kept."""
    found: Numbers = {}
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        ids = table.columns("id")["id"]
        if ids.null_count():
            row = int(ids.is_null().arg_max() or 0)
            raise ArrayError(f"{table.samples_path}, line {row + 1} is not a sample with an id")
        if arrays.facts.membership == "hash":
            held = held_out([identity.encode() for identity in ids], validation)
            wrong = np.flatnonzero(held != (split == "val"))
            if len(wrong):
                name = ids[int(wrong[0])]
                raise ArrayError(f"{table.samples_path}: {name} is not of split {split}")
        found[split] = len(ids)
    return found


def check_codes(store: ArtifactStoreResource, arrays: CodeArrays) -> Numbers:
    """Every code is in the codebook; the message names the first that is not."""
    size = arrays.facts.codebook_size
    highest = 0
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        refuse_outside(table, size, arrays.path / f"{split}_codes.npy")
        highest = max(highest, int(table.codes.max(initial=0)))
    return {"highest_code": highest, "codebook_size": size}


def read_again(store: ArtifactStoreResource, arrays: CodeArrays) -> Numbers:
    """Every byte is what the manifest says."""
    arrays.verify()
    return {"bytes": sum(entry.size for entry in arrays.manifest.files.values())}
