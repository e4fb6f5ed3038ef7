"""``tts-assets run``: what it refuses, what the UI finds of its runs, and Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.workspace.load import load_workspace_process_context_from_yaml_paths

from jobs.foreground import Request, RequestError, create_run, register_corpora, run
from tts_assets.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
JOBS = "tests.support.run_jobs"
PATIENCE = 120.0
BARS = """{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name }
pipelines { name runs(limit: 5) { status } } } } } }"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(ROOT / ".dagster" / "dagster.yaml", folder)
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    monkeypatch.setenv("TTS__PROJECT__STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # the environment is not activated
    return folder


@pytest.fixture
def instance(home: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.get() as found:
        yield found


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("retrian"), "there is no job 'retrian'; jobs: align, "),
        (Request("refresh"), "raw_corpus, .* need a corpus: add --corpus with one of asterisk_en"),
        (Request("refresh", corpus="x"), "there is no corpus 'x'; corpora: asterisk_en"),
        (Request("retrain", corpus="asterisk_en"), "nothing of it is partitioned"),
        (Request(select='key:"sft/mine"'), 'key:"sft/mine" selects no asset'),
        (Request(select='key:"sft/anouncer"+'), "did you mean sft/announcer"),
        (Request(select='key:"codec" or group:sfft'), "group:sfft selects no asset"),
        (Request(select="codec and"), "is invalid"),
    ],
)
def test_names_that_do_not_exist_are_refused(
    instance: DagsterInstance, request_: Request, message: str
) -> None:
    """Dagster runs all assets if a selection matches none."""
    assert register_corpora(instance, load_settings()) == ["asterisk_en"]
    with pytest.raises(RequestError, match=message):
        create_run(instance, load_settings(), request_)
    assert instance.get_runs_count() == 0


def test_a_selection_is_the_run(instance: DagsterInstance) -> None:
    request_ = Request(select='key:"sft/announcer"+1')
    created = create_run(instance, load_settings(), request_)
    assert {key.to_user_string() for key in created.asset_selection or ()} == {
        "sft/announcer",
        "serving/announcer",
    }


@pytest.mark.slow
def test_runs_are_in_the_bars_of_their_job(home: Path, instance: DagsterInstance) -> None:
    """The query is that of the page of jobs, for the workspace that ``make ui`` serves."""
    from dagster_graphql.cli import execute_query  # takes a second to import

    command = [sys.executable, "-m", "tts_assets.cli", "run", "--select", "evaluation_suite"]
    shown = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert "  evaluation_suite  texts 175" in shown
    [made] = instance.get_runs()
    last = f"the run in the UI: tts-assets ui, then http://127.0.0.1:3000/runs/{made.run_id}"
    assert shown.splitlines()[-1] == last
    workspace = load_workspace_process_context_from_yaml_paths(
        instance, [str(ROOT / "workspace.yaml")]
    )
    with workspace:
        answer = execute_query(workspace, BARS)
    [node] = answer["data"]["repositoriesOrError"]["nodes"]
    runs = {one["name"]: one["runs"] for one in node["pipelines"]}
    assert node["location"]["name"] == "tts"
    assert runs["__ASSET_JOB"] == [{"status": "SUCCESS"}]


@pytest.mark.slow
def test_a_failed_job_ends_with_its_failed_checks(instance: DagsterInstance) -> None:
    """After the end of the log, which is long."""
    with pytest.raises(SystemExit) as caught:
        run(instance, load_settings(), Request("check"), JOBS)
    message = str(caught.value)
    assert "job check failed; the end of" in message
    assert "\n\nchecks that did not pass:\n  checked  check held_out FAILED\n" in message
    assert "    known: text-1, text-2" in message
    [made] = instance.get_runs()
    assert made.status == DagsterRunStatus.FAILURE
    assert made.tags["purpose"] == "test"


@pytest.mark.slow
@pytest.mark.parametrize("who", [signal.SIGINT, signal.SIGHUP, "ui"])
def test_a_canceled_run_is_canceled(
    home: Path, instance: DagsterInstance, who: signal.Signals | str
) -> None:
    script = (
        "from dagster import DagsterInstance; from tts_assets.settings import load_settings;"
        "from jobs.foreground import Request, run;"
        f"run(DagsterInstance.get(), load_settings(), Request('wait'), {JOBS!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + PATIENCE
    while not (home / "started").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    if isinstance(who, str):
        instance.report_run_canceling(instance.get_runs()[0])
    else:
        process.send_signal(who)
    shown, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert shown.endswith("canceled: the same command resumes from the last checkpoint\n")
    assert "FAILED" not in shown and "Traceback" not in shown
    assert [one.status for one in instance.get_runs()] == [DagsterRunStatus.CANCELED]
