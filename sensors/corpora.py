"""Corpora on disk: each declared corpus becomes a partition, each change a refresh of it.

Whether something changed is decided by paths, sizes and modification times, without reading a
byte; whether that change matters is decided by the refresh itself, from content. A file that was
touched costs one look and makes nothing downstream stale.
"""

import json

from dagster import (
    DefaultSensorStatus,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from tts_assets.corpora.listing import listing_digest
from tts_assets.partitions import corpus_partitions
from tts_assets.settings import Settings


def build_corpora_sensors(settings: Settings, refresh_job: str) -> list[SensorDefinition]:
    """``declared_corpora`` (on: it only adds partitions) and ``changed_corpora`` (off until asked
    for: it starts runs)."""

    @sensor(
        name="declared_corpora",
        minimum_interval_seconds=60,
        default_status=DefaultSensorStatus.RUNNING,
        description="Adds a partition for each corpus of dagster_project.toml.",
    )
    def declared_corpora(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        new = _undeclared(context, settings)
        if not new:
            return SkipReason("every declared corpus is a partition already")
        return SensorResult(dynamic_partitions_requests=[corpus_partitions.build_add_request(new)])

    @sensor(
        name="changed_corpora",
        job_name=refresh_job,
        minimum_interval_seconds=60,
        description="Refreshes a corpus when its files change.",
    )
    def changed_corpora(context: SensorEvaluationContext) -> SensorResult:
        seen: dict[str, str] = json.loads(context.cursor or "{}")
        now = {
            name: listing_digest(settings.path(corpus.path))
            for name, corpus in settings.corpora.items()
        }
        requests = [
            RunRequest(run_key=f"{name}:{digest}", partition_key=name)
            for name, digest in now.items()
            if seen.get(name) != digest
        ]
        new = _undeclared(context, settings)
        return SensorResult(
            run_requests=requests,
            dynamic_partitions_requests=[corpus_partitions.build_add_request(new)] if new else [],
            cursor=json.dumps(now, sort_keys=True),
        )

    return [declared_corpora, changed_corpora]


def _undeclared(context: SensorEvaluationContext, settings: Settings) -> list[str]:
    assert corpus_partitions.name is not None
    known = set(context.instance.get_dynamic_partitions(corpus_partitions.name))
    return [name for name in settings.partitions if name not in known]
