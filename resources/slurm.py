"""Programs on a Slurm cluster, as batch jobs that outlive Dagster."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

from dagster import AssetExecutionContext, DagsterExecutionInterruptedError, DagsterRunStatus
from pydantic import Field

from resources.launcher import Launcher, LaunchError, Program, launch_error
from resources.slurm_client import Refused, SlurmClient, Unreachable
from resources.slurm_follower import Ended, Follower, record_starts
from resources.slurm_script import REQUEUES, gpus_of, job_name, write_script
from resources.torchrun import time_limit_message
from tts_assets.artifacts import written_aside
from tts_assets.compute import SlurmOptions

SUBMIT_SECONDS = 5.0  # before another try, when it is not known whether sbatch got through
# What another try would not change: the user ended it, or it needs more than it asked for.
PERMANENT = {"CANCELLED", "OUT_OF_MEMORY", "DEADLINE", "REVOKED"}
HINTS = {
    "CANCELLED": "somebody cancelled it (scancel)",
    "OUT_OF_MEMORY": "raise compute.memory_gb",
    "LOST": "neither the controller nor the accounting nor the run folder knows how it ended",
}


class SlurmLauncher(Launcher):
    """One batch job a program. The run folder must lie on a file system that the nodes share.

    A job that waits or runs for the same build is found by its name and followed, not submitted
    again. Cancelling the Dagster run cancels the job; when Dagster merely goes away (a restart, a
    crash), the job runs on, and the next run of the asset follows it from where the last one was.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    modules: list[str] = Field(default_factory=list)
    options: list[str] = Field(default_factory=list)
    srun_options: list[str] = Field(default_factory=list)
    login: list[str] = Field(default_factory=list)
    save_seconds: int = 300
    max_requeues: int = 10
    poll_seconds: float = 15.0
    command_seconds: float = 60.0

    def catch_up(self, program: Program, asset: str) -> None:
        record_starts(program, functools.partial(self.record, program, asset))

    def launch(
        self, context: AssetExecutionContext, program: Program, pipes: Mapping[str, str]
    ) -> None:
        client = SlurmClient(tuple(self.login), self.command_seconds, context.log.warning)
        asset = context.asset_key.to_user_string()
        record = functools.partial(self.record, program, asset)
        follower = Follower(client, program, self.poll_seconds, context.log.info, record)
        try:
            job = self._find(context, client, program)
            if job is None:
                (program.run_dir / REQUEUES).unlink(missing_ok=True)
                job = self._submit(context, client, program, pipes)
            while (ended := follower.follow(job)) and self._may_go_on(program, ended):
                context.log.info(f"job {job} reached its time limit; submitting it again")
                job = self._submit(context, client, program, pipes)
        except (DagsterExecutionInterruptedError, KeyboardInterrupt):
            self._leave(context, client, job_name(program))
            raise
        if program.facts() is None:
            raise failure(program, ended)

    def _find(
        self, context: AssetExecutionContext, client: SlurmClient, program: Program
    ) -> int | None:
        found = client.find(job_name(program))
        if found:
            context.log.info(f"job {found[0]} is at it already: following it")
        return found[0] if found else None

    def _submit(
        self,
        context: AssetExecutionContext,
        client: SlurmClient,
        program: Program,
        pipes: Mapping[str, str],
    ) -> int:
        self.refuse_over_budget(program, gpus_of(program))
        for role in program.roles():
            role.forget_failures()
        script = write_script(program, self.slurm_options(), pipes)
        while True:
            try:
                job = client.submit(script)
            except Unreachable as trouble:
                context.log.warning(f"sbatch got no answer, looking for the job: {trouble}")
                time.sleep(SUBMIT_SECONDS)
                found = client.find(job_name(program))
                if not found:
                    continue
                job = found[0]
            except Refused as refusal:
                message = f"sbatch refuses {script}: {refusal}"
                raise LaunchError(message, program, permanent=True) from None
            context.log.info(f"submitted {script} as job {job}")
            return job

    def slurm_options(self) -> SlurmOptions:
        return SlurmOptions(**{name: getattr(self, name) for name in SlurmOptions.model_fields})

    def _may_go_on(self, program: Program, ended: Ended) -> bool:
        """Whether the job ended at its time limit, without a requeue, and may have another go."""
        if program.facts() is not None or not (ended.stopped or ended.state == "TIMEOUT"):
            return False
        path = program.run_dir / REQUEUES
        used = int(path.read_text()) if path.is_file() else 0
        if used >= self.max_requeues:
            limits = f"job {ended.job} reached the last of {used + 1} time limits: "
            raise LaunchError(limits + time_limit_message(program), program, permanent=True)
        with written_aside(path) as aside:
            aside.write_text(f"{used + 1}\n")
        return True

    def _leave(self, context: AssetExecutionContext, client: SlurmClient, name: str) -> None:
        """Cancel the job if the run is being cancelled; else it goes on without this process."""
        run = context.instance.get_run_by_id(context.run_id)
        if run is None or run.status not in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED):
            context.log.info(f"leaving {name} in the queue: run the asset again to follow it")
            return
        deadline = time.monotonic() + self.grace_seconds
        while True:
            try:
                client.cancel(name)
                context.log.info(f"cancelled the job {name}")
                return
            except Unreachable as trouble:
                if time.monotonic() > deadline:
                    context.log.error(f"{name} may still run; scancel --name={name}: {trouble}")
                    return
            time.sleep(1)


def failure(program: Program, ended: Ended) -> LaunchError:
    hint = f" ({HINTS[ended.state]})" if ended.state in HINTS else ""
    code = f" with exit code {ended.exit_code}" if ended.state == "FAILED" else ""
    without = " without a result" if ended.state == "COMPLETED" else ""
    how = f"job {ended.job} ended as {ended.state}{code}{without}{hint}"
    error = launch_error(program, how)
    error.permanent |= ended.state in PERMANENT
    return error
