"""Alerts about failed and stuck runs: a webhook, and Slack and e-mail by Dagster's own sensors.

All sensors are off by default. They also report runs started by hand (``dg launch``,
``make demo``). Dagster assigns those another code location or none, hence
``monitor_all_code_locations``. Secrets are read from the environment. Without its secret, the
sensor of Slack or e-mail is not defined; ``python -m tts_assets.doctor`` reports missing
secrets.

A webhook may be unreachable for hours, but Dagster evaluates a failed run only once. Each notice
for the webhook is therefore a file in the store (:class:`Outbox`) until it was delivered. The
file holds the JSON to post, but not the address, which is a secret.
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

from tts_assets.core.artifacts import atomic_write
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
SEND_SECONDS = (
    20.0  # no notice is started later in a tick: its three attempts end before the limit of 60 s
)


class NotDelivered(RuntimeError):
    """The webhook did not accept a notice. The notice is kept."""


@dataclass(frozen=True)
class Outbox:
    """The notices that are not delivered yet, one file each."""

    folder: Path

    def keep(self, notice: Mapping[str, Any]) -> None:
        """Store a notice. It replaces an earlier one of the same event and run."""
        with atomic_write(self.folder / f"{notice['event']}.{notice['run_id']}.json") as aside:
            aside.write_text(json.dumps(notice))

    def send(self) -> None:
        """POST the notices, the oldest first. Raises :class:`NotDelivered` at the end if any
        failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", blocking=False):
                self._send()
        except Timeout:
            return  # the tick of another sensor is sending

    def _send(self) -> None:
        failed = None
        until = time.monotonic() + SEND_SECONDS
        for path in sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime):
            if time.monotonic() > until:
                break
            try:
                post(json.loads(path.read_text()))
            except NotDelivered as error:  # the others may still be accepted
                failed = error
            else:
                path.unlink()
        if failed is not None:
            left = len(list(self.folder.glob("*.json")))
            raise NotDelivered(f"{failed}; undelivered notices in {self.folder}: {left}")


def post(body: Mapping[str, Any]) -> None:
    """POST to the webhook, with up to three attempts.

    Raises :class:`NotDelivered` without the address of the webhook, which is a secret.
    """
    for wait in (*BETWEEN_TRIES, None):
        try:
            _post_once(body)
            return
        except OSError as error:  # URLError, HTTPError and timeouts
            if wait is None:
                raise NotDelivered(f"the webhook in {WEBHOOK_VARIABLE} answers: {error}") from None
            time.sleep(wait)
        except (
            ValueError,
            http.client.HTTPException,
        ) as error:  # their messages contain the address
            name = type(error).__name__
            raise NotDelivered(f"{WEBHOOK_VARIABLE} is no valid address: {name}") from None


def _post_once(body: Mapping[str, Any]) -> None:
    request = urllib.request.Request(
        os.environ[WEBHOOK_VARIABLE],
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=POST_SECONDS):
        pass


LONGEST_MESSAGE = 2000  # characters from the end, where the traceback of a launched program is
NO_WEBHOOK = f"no alert is sent: set {WEBHOOK_VARIABLE} to the address of a webhook"


def build_alert_sensors(alerts: Alerts, storage: Path) -> list[SensorDefinition]:
    """``failed_runs`` and ``stuck_runs``; those of Slack and e-mail if configured."""
    outbox = Outbox(storage / FOLDER)
    built = [failed_runs(alerts, outbox), stuck_runs(alerts, outbox)]
    if alerts.slack and (token := secret(SLACK_VARIABLE)):
        built.append(slack_sensor(alerts.slack, token, alerts.ui))
    if alerts.email and (password := secret(SMTP_VARIABLE)):
        built.append(email_sensor(alerts.email, password, alerts.ui))
    return built


def secret(variable: str) -> str:
    """The value of an environment variable. Logs a warning if it is empty."""
    value = os.environ.get(variable, "")
    if not value:
        get_dagster_logger().warning(f"{variable} is not set: its alerts are not sent")
    return value


def failed_runs(alerts: Alerts, outbox: Outbox) -> SensorDefinition:
    """The sensor that posts failed runs to the webhook.

    Dagster evaluates each failed run once, even if the sensor raises. An undelivered notice is
    sent with the next failed run or at the next tick of ``stuck_runs``.
    """

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
    """The sensor that reports runs without recent events, and sends undelivered notices.

    A launched program reports progress to Dagster every 30 s, and code that waits (for GPUs, Slurm,
    or another run of the same build) logs every five minutes. A run without events therefore
    hangs. The time until a retry of a step does not count. The run is left running for a debugger,
    unless ``end_stuck_minutes`` is set.
    """
    ends = "" if alerts.end_stuck_minutes is None else f", and ends them {ending(alerts)}"

    @sensor(
        name="stuck_runs",
        minimum_interval_seconds=60,
        description=f"Reports runs without an event for {alerts.stuck_minutes:g} minutes{ends}; "
        "sends undelivered notices.",
    )
    def stuck(context: SensorEvaluationContext) -> SkipReason:
        reported: dict[str, float] = json.loads(context.cursor or "{}")
        silent = silent_runs(context.instance, time.time() - alerts.stuck_minutes * 60)
        for run, last, event in silent:
            minutes = (time.time() - last) / 60
            over = is_over(alerts, run, minutes)
            if reported.get(run.run_id) == last and not over:
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
        return SkipReason("; ".join([found, *send_notices(context, outbox)]))

    return stuck


def send_notices(context: SensorEvaluationContext, outbox: Outbox) -> list[str]:
    """Send the notices of the outbox. Returns error messages.

    An exception would discard the cursor of the tick, and alerts would be sent again.
    """
    if WEBHOOK_VARIABLE not in os.environ:
        return []
    try:
        outbox.send()
    except NotDelivered as error:
        context.log.error(str(error))
        return [str(error)]
    return []


def ending(alerts: Alerts) -> str:
    """The limit after which a run is ended, for messages."""
    return f"after {alerts.end_stuck_minutes:g} minutes, by [alerts] end_stuck_minutes"


def is_over(alerts: Alerts, run: DagsterRun, minutes: float) -> bool:
    """Whether a run without events for ``minutes`` must be ended, and is not ending yet."""
    limit = alerts.end_stuck_minutes
    return limit is not None and minutes >= limit and run.status == DagsterRunStatus.STARTED


def end(instance: DagsterInstance, run: DagsterRun, why: str) -> None:
    """End a run like *Terminate* in the UI: programs save, and are killed after the grace period.

    A run whose process does not exist any more is marked as canceled.
    """
    instance.report_engine_event(why, run)
    coordinator = instance.run_coordinator
    if coordinator is None or not coordinator.cancel_run(run.run_id):
        instance.report_run_canceled(run, why)


def silent_runs(instance: DagsterInstance, since: float) -> list[tuple[DagsterRun, float, str]]:
    """Active runs without an event after ``since``: the run, the time and text of its last
    event."""
    statuses = [DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    found = []
    for run in instance.get_runs(RunsFilter(statuses=statuses)):
        records = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
        if records and silent_from(entry := records[0].event_log_entry) < since:
            found.append((run, silent_from(entry), entry.user_message or str(entry.message)))
    return found


def silent_from(last: EventLogEntry) -> float:
    """The time of the last event of a run, or of its next retry if it waits for one."""
    event = last.dagster_event
    if event is None or event.event_type != DagsterEventType.STEP_UP_FOR_RETRY:
        return last.timestamp
    return last.timestamp + (event.step_retry_data.seconds_to_wait or 0)


def notice(event: str, run: DagsterRun, ui: str, message: str, **more: Any) -> dict[str, Any]:
    """The JSON of a notice. Incoming webhooks of Slack and Mattermost show ``text``."""
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
    """Dagster's sensor that posts failed runs to a Slack channel.

    Raises ModuleNotFoundError without the extra ``slack``.
    """
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
    """Dagster's sensor that mails failed runs."""
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
