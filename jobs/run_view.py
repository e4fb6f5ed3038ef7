"""What a person sees of a Dagster run in the terminal: one line an asset, and a bar."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from dagster import DagsterEventType, DagsterInstance, EventLogEntry, RunsFilter

FIGURES_SHOWN = 4  # numbers of an asset on its line; the rest is in the UI
NOT_FIGURES = ("sample_rate", "token_rate", "hop_length", "codebook_size", "seconds")
LOG_SECONDS = 30.0  # between two progress lines where there is no terminal to redraw


class RunView:
    """Follows the run that carries ``tags``, and the programs working below ``work``."""

    def __init__(self, instance: DagsterInstance, tags: dict[str, str], work: Path) -> None:
        self._instance = instance
        self._tags = tags
        self._work = work
        self._run_id: str | None = None
        self._cursor: str | None = None
        self._started: dict[str, float] = {}
        self._bar = ""
        self._last_log = time.monotonic()

    def update(self) -> None:
        """Print what has happened since the last call."""
        if self._run_id is None:
            runs = self._instance.get_runs(RunsFilter(tags=self._tags), limit=1)
            self._run_id = runs[0].run_id if runs else None
        if self._run_id is not None:
            records = self._instance.get_records_for_run(self._run_id, cursor=self._cursor)
            self._cursor = records.cursor
            for record in records.records:
                self._show(record.event_log_entry)
        self._show_bar()

    def close(self) -> None:
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
        elif event.event_type == DagsterEventType.STEP_FAILURE:
            self._line(f"  {event.step_key} FAILED: {event.step_failure_data.error_display_string}")

    def _show_bar(self) -> None:
        progress = latest_progress(self._work)
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


def asset_line(entry: EventLogEntry) -> str:
    """``code_arrays [asterisk_en]  train_samples 486, …`` of one materialization."""
    event = entry.dagster_event
    assert event is not None and event.asset_key is not None
    metadata = event.step_materialization_data.materialization.metadata
    figures = [
        f"{name} {value.value:,.4g}"
        for name, value in metadata.items()
        if isinstance(value.value, (int, float)) and not isinstance(value.value, bool)
        if name not in NOT_FIGURES
    ]
    partition = f" [{event.partition}]" if event.partition else ""
    done = "unchanged" if metadata["reused"].value else ", ".join(figures[:FIGURES_SHOWN])
    return f"{event.asset_key.to_user_string()}{partition}  {done}"


def latest_progress(work: Path) -> str:
    """The last line of the progress file that was written last, as a bar."""
    files = sorted(work.glob("*/progress.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        return ""
    lines = files[-1].read_text().splitlines()
    last = json.loads(lines[-1]) if lines else {}
    if not last.get("total"):
        return f"    {last['what']}: {last['done']}" if last else ""
    share = last["done"] / last["total"]
    bar = "█" * round(30 * share) + "░" * (30 - round(30 * share))
    return f"    {last['what']:16} {bar} {last['done']}/{last['total']}"
