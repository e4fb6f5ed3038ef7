"""The partitions definition of corpora, and inputs that read several corpora.

The sensor ``new_corpora`` and the demo add partitions.
"""

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
    """The input ``code_arrays`` of these corpora, as ``dict[str, CodeArrays]``."""
    return of_corpora("code_arrays", CodeArrays, corpora)


def filtered_samples_of(corpora: Iterable[str]) -> AssetIn:
    """The input ``filtered_samples`` of these corpora, as ``dict[str, SampleManifest]``."""
    return of_corpora("filtered_samples", SampleManifest, corpora)


def segments_of(corpora: Iterable[str]) -> AssetIn:
    """The input ``speech_segments`` of these corpora, as ``dict[str, SpeechSegments]``."""
    return of_corpora("speech_segments", SpeechSegments, corpora)


def streams_of(corpora: Iterable[str]) -> AssetIn:
    """The input ``token_arrays`` of these corpora, as ``dict[str, TokenArrays]``."""
    return of_corpora("token_arrays", TokenArrays, corpora)


def of_corpora(asset: str, kind: type[Handle], corpora: Iterable[str]) -> AssetIn:
    """The input ``asset`` of an unpartitioned asset that reads these corpora, as a dict by
    corpus."""
    mapping = SpecificPartitionsPartitionMapping(sorted(corpora))
    # the value type is known at run time only
    return AssetIn(asset, partition_mapping=mapping, dagster_type=dict[str, kind])  # type: ignore[valid-type]


def token_arrays_of(corpora: Iterable[str]) -> AssetDep:
    """A dependency on ``token_arrays`` of these corpora, without loading them."""
    mapping = SpecificPartitionsPartitionMapping(sorted(corpora))
    return AssetDep("token_arrays", partition_mapping=mapping)
