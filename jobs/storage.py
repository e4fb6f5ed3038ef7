"""Jobs of the storage: ``scrub`` reads every file, ``prune`` deletes old versions."""

import time

from dagster import (
    Config,
    Failure,
    JobDefinition,
    OpExecutionContext,
    RunConfig,
    ScheduleDefinition,
    job,
    op,
)
from pydantic import Field

from jobs.asset_jobs import PRUNE, SCRUB
from resources.artifact_store import ArtifactStoreResource
from tts_assets.core.artifacts.pruning import Retention, prune
from tts_assets.core.artifacts.verification import scrub
from tts_assets.orchestration.config import Schedules


@op(name="read_storage")
def read_storage(context: OpExecutionContext, store: ArtifactStoreResource) -> None:
    """Read all artifacts. Fails with every damaged artifact and what to do."""
    found = scrub(store.store)
    context.log.info(found.summary)
    if found.problems:
        raise Failure(f"{found.summary}\n{found.report}", allow_retries=False)


def build_scrub_job() -> JobDefinition:
    """The job that reads every file of the storage and fails if one is damaged."""

    @job(name=SCRUB, description="Reads every file of the storage; lists what is damaged.")
    def scrub_job() -> None:
        read_storage()

    return scrub_job


class PruneConfig(Config):
    """The configuration of one run of the job ``prune``."""

    delete: bool = Field(False, description="otherwise the run only says what it would delete")


def build_prune_job(retention: Retention) -> JobDefinition:
    """The job that deletes old versions of artifacts which nothing refers to."""

    @op(name="old_versions")
    def old_versions(
        context: OpExecutionContext, store: ArtifactStoreResource, config: PruneConfig
    ) -> None:
        """List old versions that nothing refers to, and delete them if the run is told to."""
        now = time.time()
        found = prune(store.store, retention, now, config.delete, context.log.info)
        context.log.info(found.report(now))

    @job(name=PRUNE, description="Lists old versions that nothing refers to, or deletes them.")
    def prune_job() -> None:
        old_versions()

    return prune_job


def build_prune_schedule(made: JobDefinition, when: Schedules) -> ScheduleDefinition:
    """The schedule of ``prune``, which deletes. It is off by default."""
    return ScheduleDefinition(
        name="weekly_prune",
        job=made,
        cron_schedule=when.prune,
        execution_timezone=when.timezone,
        run_config=RunConfig(ops={"old_versions": PruneConfig(delete=True)}),
        description="Deletes old versions that nothing refers to ([retention]).",
    )
