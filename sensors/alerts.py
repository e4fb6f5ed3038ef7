"""Who is told of trouble: a webhook of ours, Slack and e-mail through Dagster's own sensors.

All are off until switched on. They tell of runs started by hand (``dagster job execute``, ``make
demo``), too, which Dagster gives no or another code location than the workspace's: hence
``monitor_all_code_locations``. What is secret comes from the environment; Slack's or e-mail's
sensor is not there without its secret, and ``python -m tts_assets.doctor`` says so.

Notices on their way to a webhook: a file each, from before the first try until it is taken.

A webhook may be away for hours, while Dagster asks for each failed run once. What is kept is what
would be posted; the address is a secret, and stands in the environment alone.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    EventLogEntry,
    RunFailureSensorContext,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    get_dagster_logger,
    make_email_on_run_failure_sensor,
    run_failure_sensor,
    sensor,
)
from filelock import FileLock, Timeout

from tts_assets.core.artifacts import written_aside
from tts_assets.orchestration.config import (
    SLACK_VARIABLE,
    SMTP_VARIABLE,
    WEBHOOK_VARIABLE,
    Alerts,
    Email,
    Slack,
)

FOLDER = ".notices"
POST_SECONDS = 10.0
BETWEEN_TRIES = (1.0, 4.0)  # seconds
SEND_SECONDS = 20.0  # until the last notice of a tick; its three tries fit into the tick's 60 s


class NotTold(RuntimeError):
    """The webhook did not take a notice, which is kept."""


@dataclass(frozen=True)
class Outbox:
    """The notices that no webhook has taken yet."""

    folder: Path

    def keep(self, notice: Mapping[str, Any]) -> None:
        """For :meth:`send`; one of the same event of the same run is replaced."""
        with written_aside(self.folder / f"{notice['event']}.{notice['run_id']}.json") as aside:
            aside.write_text(json.dumps(notice))

    def send(self) -> None:
        """POST what is kept, the oldest first; raises :class:`NotTold` at the end if some stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", blocking=False):
                self._send()
        except Timeout:
            return  # the tick of another sensor is at it

    def _send(self) -> None:
        untold = None
        until = time.monotonic() + SEND_SECONDS
        for path in sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime):
            if time.monotonic() > until:
                break
            try:
                post(json.loads(path.read_text()))
            except NotTold as error:  # perhaps only of this one, which must not stop the others
                untold = error
            else:
                path.unlink()
        if untold is not None:
            left = len(list(self.folder.glob("*.json")))
            raise NotTold(f"{untold}; notices that wait for it in {self.folder}: {left}")


def post(body: Mapping[str, Any]) -> None:
    """POST to the webhook, three times if need be; raises :class:`NotTold`, without the address,
    which is a secret."""
    for wait in (*BETWEEN_TRIES, None):
        try:
            _post_once(body)
            return
        except OSError as error:  # URLError, HTTPError and time-outs
            if wait is None:
                raise NotTold(f"the webhook in {WEBHOOK_VARIABLE} answers: {error}") from None
            time.sleep(wait)
        except (ValueError, http.client.HTTPException) as error:  # their messages quote the address
            what = type(error).__name__
            raise NotTold(f"{WEBHOOK_VARIABLE} is no address of a webhook: {what}") from None


def _post_once(body: Mapping[str, Any]) -> None:
    request = urllib.request.Request(
        os.environ[WEBHOOK_VARIABLE],
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=POST_SECONDS):
        pass


LONGEST_MESSAGE = 2000  # characters, the last ones: a launcher's message ends with the traceback
NO_WEBHOOK = f"nobody is told: set {WEBHOOK_VARIABLE} to the address of a webhook"


def build_alert_sensors(alerts: Alerts, storage: Path) -> list[SensorDefinition]:
    outbox = Outbox(storage / FOLDER)
    built = [failed_runs(alerts, outbox), stuck_runs(alerts, outbox)]
    if alerts.slack and (token := secret(SLACK_VARIABLE)):
        built.append(slack_sensor(alerts.slack, token, alerts.ui))
    if alerts.email and (password := secret(SMTP_VARIABLE)):
        built.append(email_sensor(alerts.email, password, alerts.ui))
    return built


def secret(variable: str) -> str:
    value = os.environ.get(variable, "")
    if not value:
        get_dagster_logger().warning(f"{variable} is not set: its alerts tell nobody")
    return value


def failed_runs(alerts: Alerts, outbox: Outbox) -> SensorDefinition:
    """Dagster asks for each failed run once, also where the answer is an error: what is not told
    now is kept, and goes out with the next failed run or the next tick of ``stuck_runs``."""

    @run_failure_sensor(
        name="failed_runs",
        minimum_interval_seconds=30,
        monitor_all_code_locations=True,
        description=f"POSTs each failed run as JSON to the address in {WEBHOOK_VARIABLE}.",
    )
    def failed(context: RunFailureSensorContext) -> SkipReason | None:
        if WEBHOOK_VARIABLE not in os.environ:
            return SkipReason(NO_WEBHOOK)
        steps = {
            event.step_key: str(event.step_failure_data.error_display_string)[-LONGEST_MESSAGE:]
            for event in context.get_step_failure_events()
        }
        message = context.failure_event.message or "failed"
        outbox.keep(notice("run_failed", context.dagster_run, alerts.ui, message, steps=steps))
        outbox.send()
        return None

    return failed


def stuck_runs(alerts: Alerts, outbox: Outbox) -> SensorDefinition:
    """A launched program tells Dagster every half a minute how far it is, and what waits (for GPUs,
    for Slurm, for another run of the same build) says so every few minutes, so that silence means
    a program that hangs; between a failure and its retry there is none. The run is left to a
    debugger, unless ``end_stuck_minutes`` says how long.
    """
    ends = "" if alerts.end_stuck_minutes is None else f", and ends them {ending(alerts)}"

    @sensor(
        name="stuck_runs",
        minimum_interval_seconds=60,
        description=f"Tells of runs without an event for {alerts.stuck_minutes:g} minutes{ends}; "
        "sends the notices that the webhook has not taken.",
    )
    def stuck(context: SensorEvaluationContext) -> SkipReason:
        told: dict[str, float] = json.loads(context.cursor or "{}")
        silent = silent_runs(context.instance, time.time() - alerts.stuck_minutes * 60)
        for run, last, event in silent:
            minutes = (time.time() - last) / 60
            over = is_over(alerts, run, minutes)
            if told.get(run.run_id) == last and not over:
                continue
            message = f"no event for {minutes:.0f} minutes; the last one: {event}"
            if over:
                message = f"ended {ending(alerts)}: {message}"
                end(context.instance, run, message)
            context.log.warning(f"run {run.run_id} ({run.job_name}): {message}")
            if WEBHOOK_VARIABLE in os.environ:
                name = "run_ended" if over else "run_stuck"
                outbox.keep(notice(name, run, alerts.ui, message, minutes=round(minutes, 1)))
        context.update_cursor(json.dumps({run.run_id: last for run, last, _ in silent}))
        names = ", ".join(run.run_id for run, _, _ in silent)
        found = f"stuck: {names}" if silent else "no run is stuck"
        return SkipReason("; ".join([found, *trouble_of_sending(context, outbox)]))

    return stuck


def trouble_of_sending(context: SensorEvaluationContext, outbox: Outbox) -> list[str]:
    """Send what is kept; what is in the way of it is said, not raised, because Dagster forgets the
    cursor of a tick that fails, and everybody would be told again."""
    if WEBHOOK_VARIABLE not in os.environ:
        return []
    try:
        outbox.send()
    except NotTold as error:
        context.log.error(str(error))
        return [str(error)]
    return []


def ending(alerts: Alerts) -> str:
    return f"after {alerts.end_stuck_minutes:g} minutes, by [alerts] end_stuck_minutes"


def is_over(alerts: Alerts, run: DagsterRun, minutes: float) -> bool:
    """Whether a run that is silent for ``minutes`` is to be ended, and is not being ended."""
    limit = alerts.end_stuck_minutes
    return limit is not None and minutes >= limit and run.status == DagsterRunStatus.STARTED


def end(instance: DagsterInstance, run: DagsterRun, why: str) -> None:
    """As *Terminate* in the UI: the launched program is asked to save, then killed. A run whose
    process nobody finds is only written down as canceled."""
    instance.report_engine_event(why, run)
    coordinator = instance.run_coordinator
    if coordinator is None or not coordinator.cancel_run(run.run_id):
        instance.report_run_canceled(run, why)


def silent_runs(instance: DagsterInstance, since: float) -> list[tuple[DagsterRun, float, str]]:
    """Runs under way that have been silent from before ``since``: from when, after which event."""
    statuses = [DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    found = []
    for run in instance.get_runs(RunsFilter(statuses=statuses)):
        records = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
        if records and silent_from(entry := records[0].event_log_entry) < since:
            found.append((run, silent_from(entry), entry.user_message or str(entry.message)))
    return found


def silent_from(last: EventLogEntry) -> float:
    """When the last event of a run was; one that waits to retry a step says nothing until then."""
    event = last.dagster_event
    if event is None or event.event_type != DagsterEventType.STEP_UP_FOR_RETRY:
        return last.timestamp
    return last.timestamp + (event.step_retry_data.seconds_to_wait or 0)


def notice(event: str, run: DagsterRun, ui: str, message: str, **more: Any) -> dict[str, Any]:
    """``text`` is what Slack's and Mattermost's incoming webhooks show."""
    assets = sorted(key.to_user_string() for key in run.asset_selection or ())
    partition = run.tags.get("dagster/partition")
    url = f"{ui.rstrip('/')}/runs/{run.run_id}"
    what = f"{run.job_name}{f' [{partition}]' if partition else ''}"
    return {
        "event": event,
        "run_id": run.run_id,
        "job": run.job_name,
        "partition": partition,
        "assets": assets,
        "message": message[-LONGEST_MESSAGE:],
        "url": url,
        "text": f"{event.replace('_', ' ')}: {what}: {message[-LONGEST_MESSAGE:]} {url}",
        **more,
    }


def slack_sensor(slack: Slack, token: str, ui: str) -> SensorDefinition:
    try:
        from dagster_slack import make_slack_on_run_failure_sensor
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "[alerts.slack] needs the package dagster-slack: pip install tts-assets[slack]"
        ) from None
    return make_slack_on_run_failure_sensor(
        slack.channel,
        token,
        name="failed_runs_to_slack",
        monitor_all_code_locations=True,
        webserver_base_url=ui,
    )


def email_sensor(email: Email, password: str, ui: str) -> SensorDefinition:
    return make_email_on_run_failure_sensor(
        email_from=email.sender,
        email_password=password,
        email_to=list(email.to),
        smtp_host=email.host,
        smtp_type=email.kind,
        smtp_port=email.port,
        smtp_user=email.user,
        name="failed_runs_to_email",
        monitor_all_code_locations=True,
        webserver_base_url=ui,
    )
