"""Runs a job, or a selection of assets, in the foreground.

One line is printed per finished asset, and a progress bar; the log of Dagster goes to a file. No
webserver and no daemon is needed. The run has the code location of ``workspace.yaml``, so the UI
shows it on the landing page, in the timeline and in the bars of its job; runs of ``dg launch`` have
none, and are under *Runs* only. Ctrl-C cancels the run; programs save their state first.

A selection has the syntax of the UI. A name that does not exist is an error: Dagster itself would
run all assets.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    AssetKey,
    AssetSelection,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    EventLogEntry,
    JobDefinition,
    UrlMetadataValue,
)
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.errors import DagsterError
from dagster._core.origin import JobPythonOrigin
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster._grpc.types import ExecuteRunArgs

from resources.artifact_store import FIRST
from tts_assets.core.program import progress_line
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.settings import Settings, load_settings

FIGURES_SHOWN = 4  # numbers on the line of an asset; the UI has all
NOT_FIGURES = ("sample_rate", "token_rate", "hop_length", "codebook_size", "seconds")
ITEMS_SHOWN = 10  # ids, and other items of a list, in the lines of a failed check
LOG_SECONDS = 30.0  # between two progress lines if stdout is no terminal
WORKSPACE = "workspace.yaml"
DEFINITIONS = "tts_assets.definitions"
POLL_SECONDS = 0.5
TERM = re.compile(r'\b(?:key|group|kind|owner|tag)\s*:\s*(?:"[^"]*"|[^\s()"+]+)')
QUOTED_KEY = re.compile(r'key\s*:\s*"?([^"*\s]+)"?')


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


def latest_record(work: Path, since: float = 0.0) -> dict[str, Any] | None:
    """The last line of the newest progress file below ``work``: what, done, total, metrics.

    Files that were last written before ``since`` are those of canceled runs.
    """
    written = {path: path.stat().st_mtime for path in work.glob("*/progress.jsonl")}
    newest = max(written, key=lambda path: written[path], default=None)
    if newest is None or written[newest] < since:
        return None
    lines = newest.read_text().splitlines()
    last: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return last


def latest_progress(work: Path, since: float = 0.0) -> str:
    """:func:`latest_record` as a bar; empty without one."""
    last = latest_record(work, since)
    if not last:
        return ""
    if not last.get("total"):
        return f"    {last['what']}: {progress_line(last)}"
    share = last["done"] / last["total"]
    bar = "█" * round(30 * share) + "░" * (30 - round(30 * share))
    return f"    {last['what']:16} {bar} {progress_line(last)}"


class RequestError(ValueError):
    """A job, a selection or a corpus that does not exist, or that do not fit together."""


@dataclass(frozen=True)
class Request:
    """What to run: a job, or assets. ``config`` is the run configuration of the launchpad."""

    job: str | None = None
    select: str | None = None
    corpus: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        what = f"job {self.job}" if self.job else f"assets {self.select}"
        return f"{what} of {self.corpus}" if self.corpus else what


@contextmanager
def project_instance() -> Iterator[tuple[DagsterInstance, Settings, list[str]]]:
    """The instance of ``DAGSTER_HOME``, the settings, and the corpora that have recordings."""
    settings = load_settings()
    with DagsterInstance.get() as instance:
        yield instance, settings, register_corpora(instance, settings)


def register_corpora(instance: DagsterInstance, settings: Settings) -> list[str]:
    """Add a partition for each corpus. Returns the corpora that have recordings."""
    corpora, problems = settings.all_corpora.find()
    for problem in problems:
        print(problem, file=sys.stderr)
    assert corpus_partitions.name is not None
    added = [*corpora, *settings.arrays.imported]
    instance.add_dynamic_partitions(corpus_partitions.name, added)
    return list(corpora)


def run_shown(instance: DagsterInstance, settings: Settings, request: Request) -> dict[str, Any]:
    """Run ``request``, and print the pages that it made and its address in the UI.

    Returns its id (``run``), its title (``what``) and its pages by asset (``pages``).
    """
    view = run(instance, settings, request)
    for asset, page in view.pages.items():
        print(f"open {page}  ({asset})")
    print(f"the run in the UI: {ui_address()}/runs/{view.run_id}")
    return {"run": view.run_id, "what": request.title, "pages": view.pages}


def run(
    instance: DagsterInstance, settings: Settings, request: Request, module: str = DEFINITIONS
) -> RunView:
    """Run ``request`` to its end. Exits with the end of its log if it fails.

    Returns what the run made. Raises :class:`RequestError` if there is no such job, asset or
    corpus.
    """
    created = create_run(instance, settings, request, module)
    settings.storage.mkdir(parents=True, exist_ok=True)
    log = settings.storage / f"{request.job or 'assets'}.log"
    print(f"{request.title} (log: {log})", flush=True)
    view = RunView(instance, created.run_id, settings.storage / ".work")
    assert created.job_code_origin is not None
    arguments = ExecuteRunArgs(created.job_code_origin, created.run_id, instance.get_ref(), True)
    with log.open("w") as stream:
        # A session of its own: Ctrl-C reaches this process only, which first marks the run as one
        # that is canceled. Dagster reports a run that is interrupted without this as failed.
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments.get_command_args()],  # dagster api execute_run …
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with ended_by_signals():
        status = follow(instance, created, process, view)
    if status == DagsterRunStatus.CANCELED:
        print("canceled: the same command resumes from the last checkpoint", flush=True)
        sys.exit(130)
    if status != DagsterRunStatus.SUCCESS:
        failed = "".join(f"\n{text}" for text in view.failed_checks)
        failed = f"\n\nchecks that did not pass:{failed}" if failed else ""
        sys.exit(f"{request.title} failed; the end of {log}:\n{tail(log)}{failed}")
    return view


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP, such as that of a closed terminal, act as Ctrl-C does."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # background jobs ignore SIGINT
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(
    instance: DagsterInstance, created: DagsterRun, process: subprocess.Popen[bytes], view: RunView
) -> DagsterRunStatus:
    """Show the run until its process ends. Cancels it on Ctrl-C, and if the UI terminates it."""
    told = False
    while process.poll() is None:
        try:
            view.update()
            if not told and status_of(instance, created) in STOPPING:
                process.send_signal(signal.SIGINT)
                told = True
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if not told:
                view.close()
                print("stopping: programs save their state, which can take a minute", flush=True)
                instance.report_run_canceling(created)
    view.update()
    view.close()
    return status_of(instance, created)


STOPPING = (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED)


def status_of(instance: DagsterInstance, created: DagsterRun) -> DagsterRunStatus:
    """The status of the run now."""
    found = instance.get_run_by_id(created.run_id)
    assert found is not None
    return found.status


def create_run(
    instance: DagsterInstance, settings: Settings, request: Request, module: str = DEFINITIONS
) -> DagsterRun:
    """A run of ``request`` that is not started. Raises :class:`RequestError`."""
    root = str(settings.root)
    repository = ReconstructableRepository.for_module(module, "defs", working_directory=root)
    definition = repository.get_definition()
    if request.select is not None:
        selected = select_assets(request.select, definition.asset_graph)
        job = definition.get_implicit_job_def_for_assets(selected)
        assert job is not None
    else:
        names = [name for name in definition.job_names if not name.startswith("__")]
        if request.job not in names:
            raise RequestError(f"there is no job {request.job!r}; jobs: {', '.join(sorted(names))}")
        job, selected = definition.get_job(request.job), set()
    tags = {**job.run_tags, **partition_tags(instance, job, selected, request)}
    [location] = location_origins_from_yaml_paths([str(settings.root / WORKSPACE)])
    origin = RemoteRepositoryOrigin(location, definition.name)
    return instance.create_run_for_job(
        job_def=job,
        run_config=request.config,
        tags=tags,
        asset_selection=frozenset(selected) or None,
        remote_job_origin=origin.get_job_origin(job.name),
        job_code_origin=JobPythonOrigin(job.name, repository.get_python_origin()),
        repository_load_data=definition.repository_load_data,
    )


def select_assets(text: str, graph: AssetGraph) -> set[AssetKey]:
    """The keys of a selection. Raises :class:`RequestError` if any part of it selects nothing."""
    known = sorted(key.to_user_string() for key in graph.materializable_asset_keys)
    try:
        for term in TERM.findall(text):
            if not AssetSelection.from_string(term).resolve(graph):
                raise RequestError(f"{term} selects no asset{similar(term, known)}")
        found = AssetSelection.from_string(text).resolve(graph)
    except DagsterError as error:
        raise RequestError(f"the selection {text!r} is invalid: {error}") from None
    found = set(found & graph.materializable_asset_keys)
    if not found:
        raise RequestError(f"{text!r} selects no asset")
    return found


def similar(term: str, known: Iterable[str]) -> str:
    """``; did you mean …`` with asset keys like the one of ``term``."""
    key = QUOTED_KEY.match(term)
    near = difflib.get_close_matches(key.group(1), known) if key else []
    return f"; did you mean {', '.join(near)}?" if near else "; dg list defs lists all"


def partition_tags(
    instance: DagsterInstance, job: JobDefinition, selected: set[AssetKey], request: Request
) -> dict[str, str]:
    """The tags of the run's corpus. Raises :class:`RequestError` if it has to be named or does not
    exist."""
    layer = job.asset_layer
    keys = selected or layer.selected_asset_keys
    partitioned = sorted(key.to_user_string() for key in keys if layer.get(key).partitions_def)
    assert corpus_partitions.name is not None
    corpora = ", ".join(known := instance.get_dynamic_partitions(corpus_partitions.name)) or "none"
    if not partitioned:
        if request.corpus is not None:
            raise RequestError(f"{request.title}: nothing of it is partitioned by corpus")
        return {}
    if request.corpus is None:
        raise RequestError(
            f"{', '.join(partitioned)} need a corpus: add --corpus with one of {corpora}"
        )
    if request.corpus not in known:
        raise RequestError(f"there is no corpus {request.corpus!r}; corpora: {corpora}")
    return dict(job.get_tags_for_partition_key(request.corpus, selected_asset_keys=keys))


def ui_address() -> str:
    """The address of the running or last ``tts-assets ui``."""
    path = Path(os.environ["DAGSTER_HOME"]) / "ui.address"
    return (
        path.read_text().strip() if path.is_file() else "tts-assets ui, then http://127.0.0.1:3000"
    )


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
