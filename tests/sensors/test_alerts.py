"""Alerts to a real HTTP server: sent once, with the error and the address of the run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    Definitions,
    SensorDefinition,
    SkipReason,
    asset,
    build_run_status_sensor_context,
    build_sensor_context,
)
from dagster._core.events import StepRetryData
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._utils.error import SerializableErrorInfo
from filelock import FileLock

from sensors import alerts as sensors
from sensors import alerts as webhooks
from sensors.alerts import NotDelivered, Outbox
from tts_assets.orchestration.config import Alerts, Email, Slack

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds
ALERTS = Alerts(ui="http://ui.example:3000/", stuck_minutes=2)


class Webhook(HTTPServer):
    """Keeps what is posted; ``refusals``: how many of the next posts it answers with 503."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.refusals = 0
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Webhook)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refused = self.server.refusals > 0
        self.server.refusals -= 1
        self.server.posted += [] if refused else [body]
        self.send_response(503 if refused else 200)
        self.end_headers()


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setattr(webhooks, "BETWEEN_TRIES", (0.01, 0.01))
    with Webhook() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TTS_ALERT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/secret")
        yield server
        server.shutdown()


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "storage" / webhooks.FOLDER)


@asset
def broken() -> None:
    raise ValueError("no room left to write")


def fail(instance: DagsterInstance, told: SensorDefinition) -> Any:
    """What a sensor answers to a failed run."""
    job = Definitions([broken]).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    (event,) = [event for event in result.all_events if event.is_run_failure]
    context = build_run_status_sensor_context(
        told.name, event, instance, result.dagster_run
    ).for_run_failure()
    return told(context), result.dagster_run.run_id


def test_a_failed_run_is_posted_with_error_and_url(
    webhook: Webhook, instance: DagsterInstance, outbox: Outbox
) -> None:
    _, run_id = fail(instance, sensors.failed_runs(ALERTS, outbox))
    (body,) = webhook.posted
    assert body["event"] == "run_failed" and body["run_id"] == run_id
    assert body["url"] == f"http://ui.example:3000/runs/{run_id}"
    assert "no room left to write" in body["steps"]["broken"]
    assert body["text"].startswith("run failed: ")


def test_an_unreachable_webhook_is_retried_and_its_address_is_not_shown(
    webhook: Webhook, instance: DagsterInstance, outbox: Outbox
) -> None:
    told = sensors.failed_runs(ALERTS, outbox)
    webhook.refusals = 2
    fail(instance, told)
    assert len(webhook.posted) == 1
    webhook.refusals = 3
    with pytest.raises(NotDelivered, match="503") as refused:
        fail(instance, told)
    (kept,) = outbox.folder.glob("*.json")
    assert "secret" not in str(refused.value) and "secret" not in kept.read_text()


def test_an_invalid_address_is_not_shown(
    instance: DagsterInstance, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("hooks.example/secret", "http://hooks.example:port/secret"):
        monkeypatch.setenv("TTS_ALERT_WEBHOOK", address)
        with pytest.raises(NotDelivered, match="TTS_ALERT_WEBHOOK is no valid address") as refused:
            fail(instance, sensors.failed_runs(ALERTS, outbox))
        assert "secret" not in str(refused.value)


def test_a_notice_is_sent_when_the_webhook_is_back(
    webhook: Webhook, instance: DagsterInstance, outbox: Outbox
) -> None:
    webhook.refusals = 100
    with pytest.raises(NotDelivered):
        fail(instance, sensors.failed_runs(ALERTS, outbox))
    stuck = sensors.stuck_runs(ALERTS, outbox)
    with build_sensor_context(instance=instance) as context:
        skipped = stuck(context)
        assert isinstance(skipped, SkipReason) and skipped.skip_message is not None
        assert "503" in skipped.skip_message and str(outbox.folder) in skipped.skip_message
        webhook.refusals = 0
        for _ in range(2):
            assert stuck(context) == SkipReason("no run is stuck")
    assert [body["event"] for body in webhook.posted] == ["run_failed"]  # once


def test_a_rejected_notice_does_not_block_others(webhook: Webhook, outbox: Outbox) -> None:
    for number in range(3):
        outbox.keep({"event": "run_failed", "run_id": str(number)})
    webhook.refusals = 3  # all tries of the oldest
    with pytest.raises(NotDelivered, match=r"503.*: 1$"):
        outbox.send()
    outbox.send()
    assert [body["run_id"] for body in webhook.posted] == ["1", "2", "0"]


def test_two_sensors_send_each_notice_once(webhook: Webhook, outbox: Outbox) -> None:
    outbox.keep({"event": "run_failed", "run_id": "0"})
    with FileLock(outbox.folder / ".lock"):  # as the other one holds it
        outbox.send()
    assert not webhook.posted
    outbox.send()
    assert len(webhook.posted) == 1


def test_a_run_started_by_hand_is_reported_by_the_daemon(
    webhook: Webhook, instance: DagsterInstance, outbox: Outbox
) -> None:
    told = sensors.failed_runs(ALERTS, outbox)
    cursor = None

    def tick() -> None:
        nonlocal cursor
        context = build_sensor_context(instance=instance, cursor=cursor, repository_name="tts")
        with context:
            cursor = told.evaluate_tick(context).cursor

    tick()
    _, run_id = fail(instance, told)  # has no origin, as that of `dg launch`
    webhook.posted.clear()
    tick()
    assert [body["run_id"] for body in webhook.posted] == [run_id]


def test_without_a_webhook_the_skip_reason_names_the_variable(
    instance: DagsterInstance, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TTS_ALERT_WEBHOOK", raising=False)
    skipped, _ = fail(instance, sensors.failed_runs(ALERTS, outbox))
    assert "set TTS_ALERT_WEBHOOK" in skipped.skip_message


def test_a_stuck_run_is_reported_once_and_keeps_running(
    webhook: Webhook, instance: DagsterInstance, outbox: Outbox
) -> None:
    from dagster._core.test_utils import create_run_for_test

    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    instance.report_engine_event("training: 20/100", run)
    cursor = None

    def tick(minutes: float = 0) -> str:
        """So many minutes from now."""
        nonlocal cursor
        with later(minutes), build_sensor_context(instance=instance, cursor=cursor) as context:
            skipped = sensors.stuck_runs(ALERTS, outbox)(context)
            cursor = context.cursor
        assert isinstance(skipped, SkipReason) and skipped.skip_message
        return skipped.skip_message

    assert tick() == "no run is stuck"
    assert run.run_id in tick(3)
    assert "training: 20/100" in webhook.posted[0]["message"]
    tick(4)
    assert len(webhook.posted) == 1
    instance.report_engine_event("training: 21/100", run)
    assert tick() == "no run is stuck"
    tick(3)
    assert len(webhook.posted) == 2  # silent again
    found = instance.get_run_by_id(run.run_id)
    assert found is not None and found.status == DagsterRunStatus.STARTED


def test_the_time_until_a_retry_does_not_count(instance: DagsterInstance) -> None:
    from dagster._core.test_utils import create_run_for_test

    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    error = SerializableErrorInfo("the disk hiccups", [], "OSError")
    waits = DagsterEvent(
        event_type_value=DagsterEventType.STEP_UP_FOR_RETRY.value,
        job_name=run.job_name,
        event_specific_data=StepRetryData(error, seconds_to_wait=3600),
    )
    instance.report_dagster_event(waits, run.run_id)
    now = time.time()
    assert not sensors.silent_runs(instance, now + 3500)
    ((found, since, _),) = sensors.silent_runs(instance, now + 3700)
    assert found.run_id == run.run_id and since == pytest.approx(now + 3600, abs=60)


def later(minutes: float) -> Any:
    return patch("time.time", return_value=time.time() + 60 * minutes)


@contextmanager
def hanging_run(home: Path, work: Path) -> Iterator[tuple[DagsterInstance, DagsterRun]]:
    """A run in a process of its own, whose program has started to wait."""
    from dagster._core.test_utils import create_run_for_test

    home.mkdir()
    target = ModuleTarget("tests.support.hanging", None, str(ROOT), "hanging")
    with (
        DagsterInstance.local_temp(str(home)) as instance,
        WorkspaceProcessContext(instance, target) as workspace,
    ):
        request = workspace.create_request_context()
        job = (
            request.get_code_location("hanging")
            .get_repository("__repository__")
            .get_full_job("__ASSET_JOB")
        )
        run = create_run_for_test(
            instance,
            job.name,
            run_config={"ops": {"hanging": {"config": {"folder": str(work)}}}},
            remote_job_origin=job.get_remote_origin(),
            job_code_origin=job.get_python_origin(),
        )
        instance.launch_run(run.run_id, request)
        wait_for(lambda: saved(work) == 2)
        yield instance, run


def saved(work: Path) -> int:
    path = work / "checkpoints" / "count.txt"
    return int(path.read_text()) if path.is_file() else 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_stuck_run_is_ended_if_configured(
    webhook: Webhook, outbox: Outbox, tmp_path: Path
) -> None:
    alerts = ALERTS.model_copy(update={"stuck_minutes": 0.02, "end_stuck_minutes": 0.05})
    with hanging_run(tmp_path / "home", tmp_path / "work") as (instance, run):
        time.sleep(1.5)

        def ended() -> bool:
            with build_sensor_context(instance=instance) as context:
                sensors.stuck_runs(alerts, outbox)(context)
            found = instance.get_run_by_id(run.run_id)
            return found is not None and found.status == DagsterRunStatus.CANCELED

        wait_for(ended)
    assert saved(tmp_path / "work") == 3  # it was asked to stop, and saved
    told = [body["event"] for body in webhook.posted]
    assert told[0] == "run_stuck" and told.count("run_ended") == 1
    assert "end_stuck_minutes" in webhook.posted[told.index("run_ended")]["text"]


def test_a_run_without_a_process_is_marked_as_canceled(
    webhook: Webhook, outbox: Outbox, tmp_path: Path
) -> None:
    from dagster._core.test_utils import create_run_for_test

    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
        instance.report_engine_event("training: 20/100", run)
        alerts = ALERTS.model_copy(update={"end_stuck_minutes": 2})
        with later(3), build_sensor_context(instance=instance) as context:
            sensors.stuck_runs(alerts, outbox)(context)
        found = instance.get_run_by_id(run.run_id)
    assert found is not None and found.status == DagsterRunStatus.CANCELED
    assert [body["event"] for body in webhook.posted] == ["run_ended"]


def test_stuck_runs_are_ended_while_the_webhook_is_unreachable(
    webhook: Webhook, outbox: Outbox, tmp_path: Path
) -> None:
    from dagster._core.test_utils import create_run_for_test

    alerts = ALERTS.model_copy(update={"end_stuck_minutes": 10})
    webhook.refusals = 1000
    cursor = None
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        runs = [create_run_for_test(instance, status=DagsterRunStatus.STARTED) for _ in range(3)]
        for run in runs:
            instance.report_engine_event("training: 20/100", run)
        for minutes in (3, 4, 11):
            context = build_sensor_context(instance=instance, cursor=cursor)
            with later(minutes), context:
                skipped = sensors.stuck_runs(alerts, outbox)(context)
                cursor = context.cursor
            assert isinstance(skipped, SkipReason) and "503" in str(skipped.skip_message)
            assert cursor is not None and len(json.loads(cursor)) == 3
        statuses = {found.status for found in instance.get_runs()}
    assert statuses == {DagsterRunStatus.CANCELED}
    webhook.refusals = 0
    outbox.send()
    told = [(body["event"], body["run_id"]) for body in webhook.posted]
    events = ("run_stuck", "run_ended")
    assert sorted(told) == sorted((event, run.run_id) for event in events for run in runs)
    assert {body["minutes"] for body in webhook.posted} == {3, 11}  # at 4 there is no second notice


def test_end_stuck_minutes_must_not_be_below_stuck_minutes() -> None:
    with pytest.raises(ValueError, match="write a smaller stuck_minutes"):
        Alerts(stuck_minutes=60, end_stuck_minutes=30)


def test_slack_and_email_sensors_need_their_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    email = Email(sender="tts@example.org", to=("me@example.org",), host="mail.example.org")
    alerts = Alerts(slack=Slack(channel="#tts"), email=email)
    for name in alerts.variables():
        monkeypatch.delenv(name, raising=False)
    ours = ["failed_runs", "stuck_runs"]
    assert [s.name for s in sensors.build_alert_sensors(alerts, tmp_path)] == ours
    for name in alerts.variables():
        monkeypatch.setenv(name, "hush")
    theirs = ["failed_runs_to_slack", "failed_runs_to_email"]
    built = sensors.build_alert_sensors(alerts, tmp_path)
    assert [s.name for s in built] == [*ours, *theirs]
    everywhere = {s.name for s in built if getattr(s, "_monitor_all_code_locations", False)}
    assert everywhere == {"failed_runs", *theirs}
