"""The job ``scrub``: reads every file of the storage."""

from dagster import Failure, JobDefinition, OpExecutionContext, job, op

from jobs.asset_jobs import SCRUB
from resources.artifact_store import ArtifactStoreResource
from tts_assets.core.artifacts.verification import scrub


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
