"""The one partitions definition: a corpus is a partition, added by the corpora sensor or a job."""

from collections.abc import Iterable

from dagster import (
    AssetDep,
    AssetIn,
    DynamicPartitionsDefinition,
    SpecificPartitionsPartitionMapping,
)

from tts_assets.artifacts import CodeArrays, SampleManifest, TokenArrays

corpus_partitions = DynamicPartitionsDefinition(name="corpus")


def code_arrays_of(corpora: Iterable[str]) -> AssetIn:
    """The input of an unpartitioned asset that reads these corpora: a dict by corpus name."""
    mapping = SpecificPartitionsPartitionMapping(sorted(corpora))
    return AssetIn("code_arrays", partition_mapping=mapping, dagster_type=dict[str, CodeArrays])


def filtered_samples_of(corpora: Iterable[str]) -> AssetIn:
    """The input of an unpartitioned asset that reads the ``filtered_samples`` of these corpora."""
    mapping = SpecificPartitionsPartitionMapping(sorted(corpora))
    return AssetIn(
        "filtered_samples", partition_mapping=mapping, dagster_type=dict[str, SampleManifest]
    )


def streams_of(corpora: Iterable[str]) -> AssetIn:
    """The input of an unpartitioned asset that reads the ``token_arrays`` of these corpora."""
    mapping = SpecificPartitionsPartitionMapping(sorted(corpora))
    return AssetIn("token_arrays", partition_mapping=mapping, dagster_type=dict[str, TokenArrays])


def token_arrays_of(corpora: Iterable[str]) -> AssetDep:
    """The dependency on the texts of these corpora as token ids."""
    return AssetDep(
        "token_arrays", partition_mapping=SpecificPartitionsPartitionMapping(sorted(corpora))
    )
