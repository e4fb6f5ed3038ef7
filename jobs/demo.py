"""``make demo``: the whole graph on all corpora, in the UI's own instance.

Runs the jobs ``refresh`` (once a corpus), ``retrain`` and ``align`` as anyone would from the
command line, shows how far they are, and ends with the figures and where to listen. What was
built already is not built again; what was interrupted goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

from dagster import DagsterInstance

from jobs.asset_jobs import ALIGN, IMPORT, REFRESH, RETRAIN
from jobs.run_view import RunView
from tts_assets.artifacts import ArtifactError, ArtifactStore, Handle
from tts_assets.evaluation.compare import FIGURES_FILE, PAGE_FILE
from tts_assets.partitions import corpus_partitions
from tts_assets.settings import Settings, load_settings

LAUNCH_TAG = "tts/demo"


def main() -> None:
    settings = load_settings()
    started = time.monotonic()
    with DagsterInstance.get() as instance:
        for corpus in register_corpora(instance, settings):
            run_job(instance, settings, REFRESH, {"dagster/partition": corpus})
        for corpus in settings.arrays.imported:
            run_job(instance, settings, IMPORT, {"dagster/partition": corpus})
        run_job(instance, settings, RETRAIN, {})
        if settings.rlhf:
            run_job(instance, settings, ALIGN, {})
    print(f"\nall of it took {(time.monotonic() - started) / 60:.1f} minutes\n")
    print_summary(settings)


def register_corpora(instance: DagsterInstance, settings: Settings) -> list[str]:
    """Each corpus is a partition from now on; the names of those that are declared or discovered,
    and so have recordings."""
    corpora, problems = settings.all_corpora.find()
    for problem in problems:
        print(problem, file=sys.stderr)
    assert corpus_partitions.name is not None
    added = [*corpora, *settings.arrays.imported]
    instance.add_dynamic_partitions(corpus_partitions.name, added)
    return list(corpora)


def run_job(instance: DagsterInstance, settings: Settings, job: str, tags: dict[str, str]) -> None:
    """``dagster job execute`` in a process of its own; leaves with its log's end if it fails."""
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
        print("stopping: saving what is under way (make demo goes on from there)", flush=True)
        process.wait()
        sys.exit(130)
    view.update()
    view.close()
    if process.returncode:
        sys.exit(f"job {job} failed; the end of {log}:\n{tail(log)}")


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def print_summary(settings: Settings) -> None:
    """The figures of every report and comparison, and what to open."""
    store = ArtifactStore(settings.storage)
    for recipe in (*settings.sft, *settings.rlhf):
        report = store.current(f"report/{recipe}")
        print(f"{recipe}: word error rate by kind of text (Whisper's ear)")
        for category, wer in report.facts.wer_by_category.items():
            print(f"  {category:12} {wer:7.1%}")
        print(f"  listen: {report.path / 'report.html'}")
    for recipe in settings.rlhf:
        print(describe_comparison(store.current(f"comparison/{recipe}")))
    print(f"\nartifacts: {settings.storage}\nlineage:   make ui, then http://127.0.0.1:3000/assets")


def describe_comparison(comparison: Handle) -> str:
    """Word errors before and after, by kind of text, with the interval of the difference."""
    facts = comparison.facts
    categories = json.loads((comparison.path / FIGURES_FILE).read_text())["categories"]
    lines = [f"{facts.baseline} -> {facts.candidate}: change of the word error rate, 95 % interval"]
    for name, row in categories.items():
        lines.append(
            f"  {name:12} {row['baseline']:7.1%} -> {row['candidate']:6.1%}  "
            f"{row['difference']:+7.1%} ({row['low']:+.1%} to {row['high']:+.1%})"
        )
    return "\n".join([*lines, f"  listen: {comparison.path / PAGE_FILE}"])


if __name__ == "__main__":
    try:
        main()
    except ArtifactError as error:
        sys.exit(str(error))
