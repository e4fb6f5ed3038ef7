"""The one partitions definition: a corpus is a partition, added by the corpora sensor or a job."""

from collections.abc import Iterable

from dagster import (
    AssetDep,
    AssetIn,
    DynamicPartitionsDefinition,
    SpecificPartitionsPartitionMapping,
)

from tts_assets.core.artifacts import (
    CodeArrays,
    Handle,
    SampleManifest,
    SpeechSegments,
    TokenArrays,
)

corpus_partitions = DynamicPartitionsDefinition(name="corpus")


def code_arrays_of(corpora: Iterable[str]) -> AssetIn:
    return of_corpora("code_arrays", CodeArrays, corpora)


def filtered_samples_of(corpora: Iterable[str]) -> AssetIn:
    return of_corpora("filtered_samples", SampleManifest, corpora)


def segments_of(corpora: Iterable[str]) -> AssetIn:
    return of_corpora("speech_segments", SpeechSegments, corpora)


def streams_of(corpora: Iterable[str]) -> AssetIn:
    return of_corpora("token_arrays", TokenArrays, corpora)


def of_corpora(asset: str, kind: type[Handle], corpora: Iterable[str]) -> AssetIn:
    """The input of an unpartitioned asset that reads these corpora: a dict by corpus name."""
    mapping = SpecificPartitionsPartitionMapping(sorted(corpora))
    # a kind that is known at run time only
    return AssetIn(asset, partition_mapping=mapping, dagster_type=dict[str, kind])  # type: ignore[valid-type]


def token_arrays_of(corpora: Iterable[str]) -> AssetDep:
    """The dependency on the texts of these corpora as token ids."""
    mapping = SpecificPartitionsPartitionMapping(sorted(corpora))
    return AssetDep("token_arrays", partition_mapping=mapping)
