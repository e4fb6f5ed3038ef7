"""Sensors of corpora on disk: new corpora become partitions, changed ones are read again.

A change is detected from names, sizes and times of files (``tts_assets/corpora/watch.py``), without
reading them. ``raw_corpus`` then reads the corpus, and assets downstream run only if its content
changed (sensor ``data_automation``). A file that was only touched costs one run of ``raw_corpus``.
Corrections do not change a corpus but its samples: ``filtered_samples`` is made again with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dagster import (
    AssetKey,
    AssetSelection,
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)

from tts_assets.core.artifacts import ArtifactStore
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.watch import Watch, access_problem
from tts_assets.orchestration.dependencies import corpus_partitions

LOOK_SECONDS = 20.0  # per tick; Dagster ends a tick after 60 s and discards its result
RAW, SAMPLES = AssetKey("raw_corpus"), AssetKey("filtered_samples")
PARTITION_TAG = "dagster/partition"
UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def build_corpora_sensors(
    corpora: Corpora, imported: Sequence[str], storage: Path
) -> list[SensorDefinition]:
    """The sensors ``new_corpora`` and ``changed_corpora``.

    ``imported`` are corpora of which only arrays exist; they are partitions, too. ``new_corpora``
    is on by default, because it only adds partitions. ``changed_corpora`` is off by default: it
    requests every corpus that was never read, which are all on a fresh checkout.
    """

    @sensor(
        name="new_corpora",
        minimum_interval_seconds=60,
        default_status=DefaultSensorStatus.RUNNING,
        description="Adds a partition for each corpus, declared or discovered.",
    )
    def new_corpora(context: SensorEvaluationContext) -> SensorResult:
        found, problems = corpora.find()
        known = partitions(context.instance)
        problems += [
            f"the partition {name} has no corpus any more: restore it, or delete the partition"
            for name in sorted(known - {*found, *imported})
        ]
        added = [*found, *imported]
        return result(context, f"{len(added)} corpora are partitions", problems, added)

    @sensor(
        name="changed_corpora",
        asset_selection=AssetSelection.assets(RAW, SAMPLES),
        minimum_interval_seconds=60,
        description="Requests raw_corpus for a corpus when its files change, and filtered_samples "
        "when its corrections change.",
    )
    def changed_corpora(context: SensorEvaluationContext) -> SensorResult:
        found, _ = corpora.find()
        hidden = {name: why for name, corpus in found.items() if (why := access_problem(corpus))}
        readable = {name: found[name] for name in found if name not in hidden}
        watch = Watch.load(context.cursor)
        store = ArtifactStore(storage)
        changed = watch.round(readable, store, LOOK_SECONDS)
        corrected, problems = watch.corrections(readable, store, corpora.project)
        notes = [f"{name} is skipped: {why}" for name, why in hidden.items()] + problems
        if watch.first:
            notes.append(f"the time limit was reached; the next tick starts with {watch.first}")
        requests = []
        for name in readable:
            if name not in changed and name not in corrected:
                continue
            if run := unfinished_run(context.instance, name):
                notes.append(f"{name} changed, and waits for the end of run {run}")
                continue
            watch.requested |= {name: changed[name]} if name in changed else {}
            watch.corrected |= {name: corrected[name]} if name in corrected else {}
            asked = [RAW] * (name in changed) + [SAMPLES] * (name in corrected)
            # No run key: a corpus that returns to an earlier state must be read again, too.
            requests.append(RunRequest(partition_key=name, asset_selection=asked))
        return result(
            context,
            f"{len(readable)} corpora checked, no change to act on",
            notes,
            found,
            requests=requests,
            cursor=watch.dump(),
        )

    return [new_corpora, changed_corpora]


def result(
    context: SensorEvaluationContext,
    nothing: str,
    notes: Iterable[str],
    added: Iterable[str],
    requests: list[RunRequest] | None = None,
    cursor: str | None = None,
) -> SensorResult:
    """The result of a tick: new partitions, run requests and the cursor.

    Notes go to the log and, if the tick requests nothing, to the skip reason, which the UI shows.
    """
    for note in notes:
        context.log.warning(note)
    new = sorted(set(added) - partitions(context.instance))
    idle = not new and not requests
    return SensorResult(
        run_requests=requests or [],
        dynamic_partitions_requests=[corpus_partitions.build_add_request(new)] if new else [],
        skip_reason="; ".join([nothing, *notes]) if idle else None,
        cursor=cursor,
    )


def partitions(instance: DagsterInstance) -> set[str]:
    """The corpora that are partitions now."""
    assert corpus_partitions.name is not None
    return set(instance.get_dynamic_partitions(corpus_partitions.name))


def unfinished_run(instance: DagsterInstance, corpus: str) -> str | None:
    """The id of an unfinished run of this corpus, if any. A corpus is read by one run at a time."""
    filters = RunsFilter(statuses=UNFINISHED, tags={PARTITION_TAG: corpus})
    runs = instance.get_runs(filters, limit=1)
    return runs[0].run_id if runs else None
