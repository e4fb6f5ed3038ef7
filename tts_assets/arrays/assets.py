"""The merged arrays in the graph: ``code_arrays``, one partition a corpus, and what must hold."""

from collections.abc import Callable

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
from tts_assets.arrays.arrays import SPLITS, ArrayError, CodeTable
from tts_assets.arrays.merge import merge
from tts_assets.artifacts import ArtifactError, Build, CodeArrays, CodecShards
from tts_assets.automation import follow_data
from tts_assets.partitions import corpus_partitions
from tts_assets.split import ValidationSplit, is_validation

CODE_VERSION = "1"
Numbers = dict[str, int]
Test = Callable[[ArtifactStoreResource, CodeArrays], Numbers]


def build_assets(validation: ValidationSplit) -> list[AssetsDefinition | AssetChecksDefinition]:
    """``code_arrays`` and its blocking checks; ``validation`` says who is held out."""
    return [
        code_arrays_asset(validation),
        array_check("no_sample_is_lost", "In the shards = train + val.", count_samples),
        array_check("index_fits_codes", "Offsets rise, and end in range.", measure_tables),
        array_check(
            "samples_fit_index",
            "A sample an index entry, in place.",
            lambda store, arrays: check_samples(arrays, validation),
        ),
        array_check("codes_are_in_codebook", "Every code is in the codebook.", check_codes),
        array_check("files_are_unchanged", "Digests agree when read again.", read_again),
    ]


def code_arrays_asset(validation: ValidationSplit) -> AssetsDefinition:
    """The asset ``code_arrays``."""

    @asset(
        group_name="arrays",
        partitions_def=corpus_partitions,
        code_version=CODE_VERSION,
        automation_condition=follow_data(),
        kinds={"numpy"},
        description="All codes of a corpus in two memory-mapped arrays: training and validation.",
    )
    def code_arrays(
        context: AssetExecutionContext, store: ArtifactStoreResource, codec_shards: CodecShards
    ) -> Output[CodeArrays]:
        build = Build(
            asset="code_arrays",
            partition=context.partition_key,
            inputs={"codec_shards": codec_shards},
            config=validation,
            code_version=CODE_VERSION,
        )
        return store.materialize(
            context,
            CodeArrays,
            build,
            lambda work: merge(codec_shards, validation, work / "result"),
            describe_arrays,
        )

    return code_arrays


def describe_arrays(arrays: CodeArrays) -> dict[str, int]:
    samples = arrays.facts.train_samples + arrays.facts.val_samples
    return {"dagster/partition_row_count": samples, "samples": samples}


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


def count_samples(store: ArtifactStoreResource, arrays: CodeArrays) -> Numbers:
    """Samples and codes are as many as in the shards that the arrays were made from."""
    source = arrays.manifest.inputs["codec_shards"]
    folder = store.store.folder(source.asset, source.partition)
    shards = CodecShards.open(folder / source.fingerprint).facts
    tables = [CodeTable.of_split(arrays.path, split) for split in SPLITS]
    samples, codes = (sum(map(len, part)) for part in (tables, [t.codes for t in tables]))
    if (samples, codes) != (shards.samples, shards.codes):
        raise ArrayError(
            f"{arrays.path} holds {samples} samples and {codes} codes, but the shards in {folder} "
            f"{shards.samples} and {shards.codes}; materialize {arrays.asset} again"
        )
    return {"samples": samples, "codes": codes}


def measure_tables(store: ArtifactStoreResource, arrays: CodeArrays) -> Numbers:
    """Open both splits, which checks their index; the counts equal the recorded facts."""
    facts = arrays.facts.model_dump()
    found: Numbers = {}
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        found |= {f"{split}_samples": len(table), f"{split}_codes": len(table.codes)}
    for name, number in found.items():
        if facts[name] != number:
            raise ArrayError(f"{arrays.path}: {name} is {number}, recorded is {facts[name]}")
    return found


def check_samples(arrays: CodeArrays, validation: ValidationSplit) -> Numbers:
    """Every line is a sample, belongs to an index entry, and lies in the split of its id."""
    found: Numbers = {}
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        for sample in table.samples:
            if is_validation(sample["id"], validation) != (split == "val"):
                raise ArrayError(f"{table.samples_path}: {sample['id']} is not of split {split}")
        found[split] = len(table.samples)
    return found


def check_codes(store: ArtifactStoreResource, arrays: CodeArrays) -> Numbers:
    """Every code is below the codebook size; the message names the first that is not."""
    size = arrays.facts.codebook_size
    highest = 0
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        highest = max(highest, int(table.codes.max(initial=0)))
        if highest >= size:
            place = int(np.argmax(table.codes >= size))
            row = int(np.searchsorted(table.bounds, place, side="right")) - 1
            raise ArrayError(
                f"{arrays.path}: {split} sample {row} has code {table.codes[place]}, but the "
                f"codebook has {size}; encode the corpus again"
            )
    return {"highest_code": highest, "codebook_size": size}


def read_again(store: ArtifactStoreResource, arrays: CodeArrays) -> Numbers:
    """Every byte is what the manifest says."""
    arrays.verify()
    return {"bytes": sum(entry.size for entry in arrays.manifest.files.values())}
