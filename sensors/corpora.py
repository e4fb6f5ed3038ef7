"""Corpora on disk: each becomes a partition, each change a new look at it by ``raw_corpus``.

Whether something changed is decided without reading a byte (``tts_assets/corpora/watch.py``);
whether that matters is decided from content, by ``raw_corpus`` and by what follows it (the sensor
``data_automation``). A file that was touched costs one look, and nothing downstream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dagster import (
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
from tts_assets.orchestration.partitions import corpus_partitions

LOOK_SECONDS = 20.0  # a tick: Dagster ends one after 60 s, and what it found with it
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
    """``imported`` are partitions, too: corpora of which only the arrays are there.

    ``new_corpora`` is on by default, it only adds partitions. ``changed_corpora`` is off until
    somebody asks for it: it starts work on every corpus that was never looked at, which on a fresh
    checkout are all."""

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
        asset_selection=AssetSelection.assets("raw_corpus"),
        minimum_interval_seconds=60,
        description="Has raw_corpus look again at a corpus when its files change.",
    )
    def changed_corpora(context: SensorEvaluationContext) -> SensorResult:
        found, _ = corpora.find()
        hidden = {name: why for name, corpus in found.items() if (why := access_problem(corpus))}
        in_sight = {name: found[name] for name in found if name not in hidden}
        watch = Watch.load(context.cursor)
        changed = watch.round(in_sight, ArtifactStore(storage), LOOK_SECONDS)
        notes = [f"{name} is passed over: {why}" for name, why in hidden.items()]
        if watch.first:
            notes.append(f"time ended this round; the next begins with {watch.first}")
        requests = []
        for name, digest in changed.items():
            if run := unfinished_run(context.instance, name):
                notes.append(f"{name} changed, and waits for the end of run {run}")
                continue
            watch.requested[name] = digest
            # No run key: a corpus that returns to an earlier state is to be looked at, too.
            requests.append(RunRequest(partition_key=name))
        return result(
            context,
            f"{len(in_sight)} corpora in sight, no change to act on",
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
    """New partitions before the runs that need them; notes in the log, and in the reason of a tick
    that does nothing, as that is what the UI shows."""
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
    assert corpus_partitions.name is not None
    return set(instance.get_dynamic_partitions(corpus_partitions.name))


def unfinished_run(instance: DagsterInstance, corpus: str) -> str | None:
    """A run that works on the corpus now: one look at a time, and not under a run's feet."""
    filters = RunsFilter(statuses=UNFINISHED, tags={PARTITION_TAG: corpus})
    runs = instance.get_runs(filters, limit=1)
    return runs[0].run_id if runs else None
