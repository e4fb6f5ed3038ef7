"""The terminal's view of a run: one line per finished asset, failed checks, and a progress bar."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    EventLogEntry,
    UrlMetadataValue,
)

from resources.artifact_store import FIRST
from tts_assets.core.program import progress_line

FIGURES_SHOWN = 4  # numbers on the line of an asset; the UI has all
NOT_FIGURES = ("sample_rate", "token_rate", "hop_length", "codebook_size", "seconds")
ITEMS_SHOWN = 10  # ids, and other items of a list, in the lines of a failed check
LOG_SECONDS = 30.0  # between two progress lines if stdout is no terminal


class RunView:
    """Prints the events of the run ``run_id``, and the progress of programs below ``work``."""

    def __init__(self, instance: DagsterInstance, run_id: str, work: Path) -> None:
        self._instance = instance
        self.run_id = run_id
        self._work = work
        self._cursor: str | None = None
        self._started: dict[str, float] = {}
        self.failed_checks: list[str] = []
        self.pages: dict[str, Path] = {}  # by asset: what to open in a browser
        self._bar = ""
        self._since = time.time()
        self._last_log = time.monotonic()

    def update(self) -> None:
        """Print the events since the last call."""
        records = self._instance.get_records_for_run(self.run_id, cursor=self._cursor)
        self._cursor = records.cursor
        for record in records.records:
            self._show(record.event_log_entry)
        self._show_bar()

    def close(self) -> None:
        """Erase the progress bar."""
        self._draw("")

    def _show(self, entry: EventLogEntry) -> None:
        event = entry.dagster_event
        if event is None or event.step_key is None:
            return
        if event.event_type == DagsterEventType.STEP_START:
            self._started[event.step_key] = entry.timestamp
        elif event.event_type == DagsterEventType.ASSET_MATERIALIZATION:
            seconds = entry.timestamp - self._started.get(event.step_key, entry.timestamp)
            self._line(f"  {asset_line(entry)}  ({seconds:.0f} s)")
            self._keep_page(event)
        elif event.event_type == DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed:
                text = check_lines(evaluation)
                self.failed_checks.append(text)
                self._line(text)
        elif event.event_type == DagsterEventType.STEP_FAILURE and (reason := failure_of(event)):
            self._line(f"  {event.step_key} FAILED: {reason}")

    def _keep_page(self, event: DagsterEvent) -> None:
        assert event.asset_key is not None
        page = event.step_materialization_data.materialization.metadata.get("page")
        if isinstance(page, UrlMetadataValue):  # below the storage, as make ui serves it
            path = unquote(urlsplit(page.value or "").path).lstrip("/")
            self.pages[event.asset_key.to_user_string()] = self._work.parent / path

    def _show_bar(self) -> None:
        progress = latest_progress(self._work, self._since)
        if sys.stdout.isatty():
            self._draw(progress)
        elif progress and time.monotonic() - self._last_log > LOG_SECONDS:
            self._last_log = time.monotonic()
            print(f"    {progress}", flush=True)

    def _line(self, text: str) -> None:
        self._draw("")
        print(text, flush=True)

    def _draw(self, text: str) -> None:
        if text != self._bar:
            print(f"\r{text}{' ' * (len(self._bar) - len(text))}", end="", flush=True)
            if not text:
                print("\r", end="", flush=True)
            self._bar = text


def failure_of(event: DagsterEvent) -> str:
    """The message of the first error of a failed step; empty if the run was canceled.

    The log has the tracebacks.
    """
    error = event.step_failure_data.error
    while error is not None and error.cause is not None:
        error = error.cause
    if error is None or error.cls_name == "DagsterExecutionInterruptedError":
        return ""
    return error.message.strip()


def asset_line(entry: EventLogEntry) -> str:
    """``code_arrays [asterisk_en]  train_samples 486, …`` of one materialization."""
    event = entry.dagster_event
    assert event is not None and event.asset_key is not None
    metadata = event.step_materialization_data.materialization.metadata
    figures = [
        f"{name} {value.value}" if isinstance(value.value, str) else f"{name} {value.value:,.4g}"
        for name, value in metadata.items()
        if name in FIRST or isinstance(value.value, (int, float))
        if not isinstance(value.value, bool) and name not in NOT_FIGURES
    ]
    partition = f" [{event.partition}]" if event.partition else ""
    if "experiment" in metadata:
        partition += f" (experiment: {metadata['experiment'].value})"
    done = "unchanged" if metadata["reused"].value else ", ".join(figures[:FIGURES_SHOWN])
    return f"{event.asset_key.to_user_string()}{partition}  {done}"


def check_lines(evaluation: AssetCheckEvaluation) -> str:
    """A failed check: its name, and on further lines its description and its metadata.

    Lists, such as those of ids, have their first :data:`ITEMS_SHOWN` items.
    """
    partition = f" [{evaluation.partition}]" if evaluation.partition else ""
    asset = evaluation.asset_key.to_user_string() + partition
    kind = "warns" if evaluation.severity == AssetCheckSeverity.WARN else "FAILED"
    lines = [f"  {asset}  check {evaluation.check_name} {kind}"]
    if evaluation.description:
        lines.append(f"    {evaluation.description}")
    for name, metadata in evaluation.metadata.items():
        value = metadata.value
        if isinstance(value, dict):
            value = [f"{key}: {item}" for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            first = [
                one if isinstance(one, str) else json.dumps(one) for one in value[:ITEMS_SHOWN]
            ]
            rest = f", … ({len(value)} in all)" if len(value) > ITEMS_SHOWN else ""
            value = ", ".join(first) + rest or "none"
        lines.append(f"    {name}: {value}")
    return "\n".join(lines)


def latest_progress(work: Path, since: float = 0.0) -> str:
    """The last line of the newest progress file, as a bar.

    Files that were last written before ``since`` are those of canceled runs.
    """
    written = {path: path.stat().st_mtime for path in work.glob("*/progress.jsonl")}
    newest = max(written, key=lambda path: written[path], default=None)
    if newest is None or written[newest] < since:
        return ""
    lines = newest.read_text().splitlines()
    last = json.loads(lines[-1]) if lines else {}
    if not last.get("total"):
        return f"    {last['what']}: {progress_line(last)}" if last else ""
    share = last["done"] / last["total"]
    bar = "█" * round(30 * share) + "░" * (30 - round(30 * share))
    return f"    {last['what']:16} {bar} {progress_line(last)}"
