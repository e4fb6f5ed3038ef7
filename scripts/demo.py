"""``make demo``, ``make codec-demo``, ``make base``: whole jobs in the instance of the UI.

    python -m scripts.demo          runs refresh (once per corpus), retrain and align
    python -m scripts.demo codec    runs train_codec (profile codec_demo)
    python -m scripts.demo base     runs prepare (once per corpus), train_codec, refresh, retrain
                                    (profile base)

The command shows one line per finished asset and a progress bar. The demo ends with the metrics of
all reports and the paths of the listening pages. Assets that exist are not built again, and
interrupted programs resume.

The codec demo trains the codec of the embedded profile from scratch, in an hour and a half on two
cores. The result is another version of the asset ``codec``; ``make demo`` afterwards returns to the
vendored checkpoint. ``make base`` makes the codec and the base model that this repository carries,
in about a day of two cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    DagsterEventType,
    DagsterInstance,
    EventLogEntry,
    RunsFilter,
)

from jobs.asset_jobs import ALIGN, IMPORT, PREPARE, REFRESH, RETRAIN, TRAIN_CODEC
from tts_assets.core.artifacts import ArtifactError, ArtifactStore, Handle
from tts_assets.evaluation.compare import FIGURES_FILE
from tts_assets.evaluation.results import COMPARISON_PAGE
from tts_assets.orchestration.partitions import corpus_partitions
from tts_assets.settings import Settings, load_settings

FIGURES_SHOWN = 4  # numbers on the line of an asset; the UI has all
NOT_FIGURES = ("sample_rate", "token_rate", "hop_length", "codebook_size", "seconds")
ITEMS_SHOWN = 10  # ids, and other items of a list, in the lines of a failed check
LOG_SECONDS = 30.0  # between two progress lines if stdout is no terminal


class RunView:
    """Prints the events of the run with ``tags``, and the progress of programs below ``work``."""

    def __init__(self, instance: DagsterInstance, tags: dict[str, str], work: Path) -> None:
        self._instance = instance
        self._tags = tags
        self._work = work
        self._run_id: str | None = None
        self._cursor: str | None = None
        self._started: dict[str, float] = {}
        self.failed_checks: list[str] = []
        self._bar = ""
        self._last_log = time.monotonic()

    def update(self) -> None:
        """Print the events since the last call."""
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
        elif event.event_type == DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed:
                text = check_lines(evaluation)
                self.failed_checks.append(text)
                self._line(text)
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


def latest_progress(work: Path) -> str:
    """The last line of the newest progress file, as a bar."""
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


LAUNCH_TAG = "tts/demo"


def main(arguments: list[str]) -> None:
    """Run the demo, or what the argument names."""
    modes = {"demo": run_demo, "codec": run_codec_demo, "base": run_base}
    mode = "".join(arguments) or "demo"
    if mode not in modes:
        sys.exit(f"usage: python -m scripts.demo [{' | '.join(modes)}]")
    with DagsterInstance.get() as instance:
        modes[mode](instance, load_settings())


def run_demo(instance: DagsterInstance, settings: Settings) -> None:
    """All corpora, SFT and RLHF recipes and their reports."""
    started = time.monotonic()
    for corpus in register_corpora(instance, settings):
        run_job(instance, settings, REFRESH, {"dagster/partition": corpus})
    for corpus in settings.arrays.imported:
        run_job(instance, settings, IMPORT, {"dagster/partition": corpus})
    run_job(instance, settings, RETRAIN, {})
    if settings.rlhf:
        run_job(instance, settings, ALIGN, {})
    print(f"\nfinished in {(time.monotonic() - started) / 60:.1f} minutes\n")
    print_summary(settings)


def run_codec_demo(instance: DagsterInstance, settings: Settings) -> None:
    """The codec of a profile with ``[codec.train]``."""
    if settings.codec.train is None:
        sys.exit("this profile has no [codec.train]; run: make codec-demo")
    register_corpora(instance, settings)
    for corpus in settings.codec.train.corpora:
        run_job(instance, settings, TRAIN_CODEC, {"dagster/partition": corpus})
    codec = ArtifactStore(settings.storage).current("codec")
    print(f"\ncodec: {codec.path}\nmeasure it with: benchmarks/codec_quality.py --codec …")


def run_base(instance: DagsterInstance, settings: Settings) -> None:
    """The codec and the base model of a profile with ``[codec.train]``."""
    if settings.codec.train is None:
        sys.exit("this profile has no [codec.train]; run: make base")
    corpora = register_corpora(instance, settings)
    for corpus in corpora:
        run_job(instance, settings, PREPARE, {"dagster/partition": corpus})
    run_job(instance, settings, TRAIN_CODEC, {"dagster/partition": corpora[0]})
    for corpus in corpora:
        run_job(instance, settings, REFRESH, {"dagster/partition": corpus})
    run_job(instance, settings, RETRAIN, {})
    print_summary(settings)


def register_corpora(instance: DagsterInstance, settings: Settings) -> list[str]:
    """Add a partition for each corpus. Returns the corpora that have recordings."""
    corpora, problems = settings.all_corpora.find()
    for problem in problems:
        print(problem, file=sys.stderr)
    assert corpus_partitions.name is not None
    added = [*corpora, *settings.arrays.imported]
    instance.add_dynamic_partitions(corpus_partitions.name, added)
    return list(corpora)


def run_job(instance: DagsterInstance, settings: Settings, job: str, tags: dict[str, str]) -> None:
    """Run ``dagster job execute`` in a subprocess. Exits with the end of its log if it fails."""
    launch = uuid.uuid4().hex
    settings.storage.mkdir(parents=True, exist_ok=True)
    log = settings.storage / f"{job}.log"
    command = [
        *(sys.executable, "-m", "dagster", "job", "execute"),
        *("--module-name", "tts_assets.definitions", "--job", job),
        *("--tags", json.dumps({**tags, LAUNCH_TAG: launch})),
    ]
    print(f"job {job} {' '.join(tags.values())} (log: {log})".replace("  ", " "), flush=True)
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    view = RunView(instance, {LAUNCH_TAG: launch}, settings.storage / ".work")
    try:
        while process.poll() is None:
            view.update()
            time.sleep(0.5)
    except KeyboardInterrupt:
        view.close()
        print("stopping: programs save their state, and make demo resumes", flush=True)
        process.wait()
        sys.exit(130)
    view.update()
    view.close()
    if process.returncode:
        failed = "".join(f"\n{text}" for text in view.failed_checks)
        failed = f"\n\nchecks that did not pass:{failed}" if failed else ""
        sys.exit(f"job {job} failed; the end of {log}:\n{tail(log)}{failed}")


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def print_summary(settings: Settings) -> None:
    """Print the metrics of all reports and comparisons, and the paths of their pages."""
    store = ArtifactStore(settings.storage)
    for recipe in (*settings.sft, *settings.rlhf):
        report = store.current(f"report/{recipe}")
        print(f"{recipe}: WER by category, transcribed by Whisper")
        for category, wer in report.facts.wer_by_category.items():
            print(f"  {category:12} {wer:7.1%}")
        print(f"  listen: {report.path / 'report.html'}")
    for recipe in settings.rlhf:
        print(describe_comparison(store.current(f"comparison/{recipe}")))
    print(f"\nartifacts: {settings.storage}\nlineage:   make ui, then http://127.0.0.1:3000/assets")


def describe_comparison(comparison: Handle) -> str:
    """WER of both models by category, with the 95 % interval of the difference."""
    facts = comparison.facts
    categories = json.loads((comparison.path / FIGURES_FILE).read_text())["categories"]
    lines = [f"{facts.baseline} -> {facts.candidate}: change of the WER, 95 % interval"]
    for name, row in categories.items():
        lines.append(
            f"  {name:12} {row['baseline']:7.1%} -> {row['candidate']:6.1%}  "
            f"{row['difference']:+7.1%} ({row['low']:+.1%} to {row['high']:+.1%})"
        )
    return "\n".join([*lines, f"  listen: {comparison.path / COMPARISON_PAGE}"])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ArtifactError as error:
        sys.exit(str(error))
