"""Which inputs an asset reads, and when a change of them requests it.

Corpora are partitions, which the sensor ``new_corpora`` and the demo add; an asset may read several
of them. Automation conditions materialize assets when the content of their inputs changes.
"""

from collections.abc import Iterable

from dagster import (
    AssetDep,
    AssetIn,
    AssetKey,
    AutomationCondition,
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
EXPERIMENT_TAG = "tts/experiment"  # tag of runs with other steps or another seed than the recipe's
WHOLE_CORPUS = "tts/whole_corpus"  # tag of runs that materialize all assets of a corpus


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


def follow_data() -> AutomationCondition:
    """Materialize a partition when the data version of an input changed since the last request.

    An input that is rebuilt to the same bytes does not count, nor does an input materialized by a
    run that also materializes this asset, or by an experiment. The condition waits while the asset
    or an input is in progress, while inputs are missing, and until the blocking checks of inputs
    pass. A failed run is not requested again before the next change. The first evaluation requests
    nothing.
    """
    elsewhere = ~AutomationCondition.executed_with_tags(tag_keys={WHOLE_CORPUS})
    return _follow("follow_data", _changed() & elsewhere, _inputs_are_ready())


def follow_training() -> AutomationCondition:
    """:func:`follow_data` for assets that need GPUs. Jobs of a whole corpus do not include these.

    The condition also waits for inputs that will be materialized again because their own inputs
    changed: token ids after codes, a report after its model.
    """
    # data_version_changed() is true for all changed partitions of an input, including those that an
    # unpartitioned asset does not read. The second operand of `&` restricts it to those it reads.
    # Otherwise a changed corpus would block recipes of other corpora forever.
    own = _content_changed() & ~AutomationCondition.missing()
    behind = AutomationCondition.any_deps_match(
        AutomationCondition.any_deps_match(own).since(AutomationCondition.newly_updated())
    )
    return _follow("follow_training", _changed(), _inputs_are_ready() & ~behind)


def _changed() -> AutomationCondition:
    """An input changed, in a run that does not materialize the asset itself."""
    return _content_changed() & ~AutomationCondition.executed_with_root_target()


def _content_changed() -> AutomationCondition:
    """The content changed, and not in a run of an experiment, whose results are not current."""
    return AutomationCondition.data_version_changed() & ~AutomationCondition.executed_with_tags(
        tag_keys={EXPERIMENT_TAG}
    )


def _inputs_are_ready() -> AutomationCondition:
    """Nothing is in progress or missing, and the blocking checks of inputs pass."""
    return (
        ~AutomationCondition.in_progress()
        & ~AutomationCondition.any_deps_in_progress()
        & ~AutomationCondition.any_deps_missing()
        & AutomationCondition.all_deps_blocking_checks_passed()
    )


def _follow(
    label: str, change: AutomationCondition, ready: AutomationCondition
) -> AutomationCondition:
    changed = AutomationCondition.any_deps_match(change)
    # A change in the tick after a request is not covered by that request.
    handled = AutomationCondition.newly_requested() & ~changed
    return (changed.since(handled) & ready).with_label(label)


def make_once() -> AutomationCondition:
    """Materialize an asset without inputs once, if it is missing."""
    return (
        AutomationCondition.missing().newly_true().since(AutomationCondition.newly_requested())
        & ~AutomationCondition.in_progress()
    ).with_label("make_once")


def fetch_for(user: str) -> AutomationCondition:
    """Materialize an asset without inputs once, when a partition of the asset ``user`` exists.

    ``user`` is the asset that reads this one.
    """
    needed = AutomationCondition.missing() & AutomationCondition.asset_matches(
        AssetKey(user), ~AutomationCondition.missing()
    )
    return (
        needed.newly_true().since(AutomationCondition.newly_requested())
        & ~AutomationCondition.in_progress()
    ).with_label("fetch_when_needed")
