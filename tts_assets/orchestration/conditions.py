"""When an asset follows its inputs by itself: when their content changed, and never else."""

from dagster import AssetKey, AutomationCondition

WHOLE_CORPUS = "tts/whole_corpus"  # tags runs that make everything from recordings to arrays


def follow_data() -> AutomationCondition:
    """Materialize a partition when the data version of an input changed since it was requested.

    An input that was rebuilt to the same bytes is no change, nor is one of a run that makes this
    asset, too. It waits while it or an input is being made, for inputs that are missing, and for
    the inputs' blocking checks to pass. Nothing is asked for twice: after a failure the next
    change, or a person, asks again. At its first look everything is as it should be.
    """
    elsewhere = ~AutomationCondition.executed_with_tags(tag_keys={WHOLE_CORPUS})
    return _follow("follow_data", _changed() & elsewhere, _at_rest())


def follow_training() -> AutomationCondition:
    """The same for assets that cost GPUs, which no job that makes a whole corpus has made.

    It waits, too, for an input that will be made again, because an input of its own has changed:
    texts as token ids after codes, a report after its model.
    """
    # data_version_changed() names all changed partitions of an input, also those that an asset
    # without partitions does not read; what stands beside it in an `&` leaves only those it reads.
    # Without, a changed corpus holds up whoever waits for recipes of other corpora, for good.
    own = AutomationCondition.data_version_changed() & ~AutomationCondition.missing()
    behind = AutomationCondition.any_deps_match(
        AutomationCondition.any_deps_match(own).since(AutomationCondition.newly_updated())
    )
    return _follow("follow_training", _changed(), _at_rest() & ~behind)


def _changed() -> AutomationCondition:
    """Of an input: by a run that does not make the asset itself."""
    return (
        AutomationCondition.data_version_changed()
        & ~AutomationCondition.executed_with_root_target()
    )


def _at_rest() -> AutomationCondition:
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
    # A change that comes in the very tick after a request is not part of what was requested.
    handled = AutomationCondition.newly_requested() & ~changed
    return (changed.since(handled) & ready).with_label(label)


def make_once() -> AutomationCondition:
    """Materialize an asset without inputs, once, when it is not there."""
    return (
        AutomationCondition.missing().newly_true().since(AutomationCondition.newly_requested())
        & ~AutomationCondition.in_progress()
    ).with_label("make_once")


def fetch_for(user: str) -> AutomationCondition:
    """Materialize an asset without inputs, once, when some partition of the asset ``user``, for
    which it is needed, is there."""
    needed = AutomationCondition.missing() & AutomationCondition.asset_matches(
        AssetKey(user), ~AutomationCondition.missing()
    )
    return (
        needed.newly_true().since(AutomationCondition.newly_requested())
        & ~AutomationCondition.in_progress()
    ).with_label("fetch_when_needed")
