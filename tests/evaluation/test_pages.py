"""The pages in a browser: playing, sorting, filtering, voting, and accessibility (axe-core)."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from dagster import AssetKey, AssetMaterialization, DagsterInstance

from jobs.ui import serve_files
from resources.artifact_store import asset_metadata
from tests.evaluation.conftest import LINEAGE, program_of
from tests.evaluation.test_compare import CONFIG, better_copy, compared
from tests.pipeline.test_ui import free_ports, wait_for
from tests.support.browser import Browser
from tts_assets.audio_models.wer import match
from tts_assets.core.artifacts import ArtifactStore, Build, Report
from tts_assets.core.artifacts.model_kinds import ReportFacts
from tts_assets.evaluation.blind_test import BlindKey, Votes, count_votes
from tts_assets.evaluation.config import EvaluationProgram
from tts_assets.evaluation.effect import SuiteReports, write_effect
from tts_assets.evaluation.history import path_to_storage
from tts_assets.evaluation.report import write_report
from tts_assets.evaluation.results import describe_report, read_samples

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
STANDARD = '{ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] }'


@pytest.fixture(scope="module")
def comparison(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of a comparison, and the effect of a training that made the model worse."""
    folder = tmp_path_factory.mktemp("compared")
    better = better_copy(report, folder)
    result = compared({"before": report, "after": better}, folder / "result")
    suites = {"main": SuiteReports({"better": better, "worse": report}, CONFIG)}
    write_effect(result, "voice", {"better": "", "worse": "better"}, suites, (LINEAGE,))
    return result


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as opened:
        yield opened


def listening(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def visible_rows(browser: Browser) -> list[str]:
    rows = "document.querySelectorAll('#syntheses tbody tr:not([hidden])')"
    return browser.run(f"[...{rows}].map((row) => row.querySelector('.text').textContent)")


def read_aloud(browser: Browser) -> str:
    """The texts of the accessibility tree in order."""
    nodes = {n["nodeId"]: n for n in browser.send("Accessibility.getFullAXTree")["nodes"]}

    def texts(node: dict[str, Any]) -> Iterator[str]:
        if node["role"]["value"] == "StaticText":
            yield node["name"]["value"]
            return
        for child in node["childIds"]:
            yield from texts(nodes[child])

    return " ".join(texts(next(n for n in nodes.values() if "parentId" not in n)))


DEFINITIONS = """
from dagster import AssetSpec, Definitions
defs = Definitions(assets=[AssetSpec(["report", "recordings"])])
"""


def linked_program(root: Path) -> EvaluationProgram:
    """The program of a report whose page has links to the storage and the UI."""
    suite = root / "evaluation_suite" / "all" / "4567" / "suite.jsonl"
    suite.parent.mkdir(parents=True)
    suite.write_text('{"id": "a", "category": "right", "text": "Any words."}\n')
    row = LINEAGE.model_copy(update={"fingerprint": "0123"})
    storage = path_to_storage("report/recordings")
    return program_of("recordings", suite=suite, lineage=(row,), storage=storage)


@pytest.fixture
def asset_page(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Report]]:
    """The page of a published report in the Dagster UI, with the files of its storage beside it."""
    port = free_ports()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("TTS_FILES_URL", f"http://127.0.0.1:{port + 1}")
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    (tmp_path / "defs.py").write_text(DEFINITIONS)
    store = ArtifactStore(tmp_path / "storage")
    build = Build("report/recordings", {}, {}, "1")
    result = store.work_folder(build) / "result"
    shutil.copytree(report, result, dirs_exist_ok=True)
    write_report(result, linked_program(store.root), read_samples(report))
    facts = ReportFacts(recipe="recordings", texts=3, wer=0.4, wer_by_category={"wrong": 1.0})
    published = store.publish(Report, build, result, facts)
    assert isinstance(published, Report)
    serve_files(store.root, port + 1)
    metadata = asset_metadata(published, store.root, describe_report(published), {})
    with DagsterInstance.get() as instance:
        key = AssetKey(["report", "recordings"])
        instance.report_runless_asset_event(AssetMaterialization(key, metadata=metadata))
    command = [sys.executable, "-m", "dagster_webserver", "-f", str(tmp_path / "defs.py")]
    server = subprocess.Popen([*command, "-h", "127.0.0.1", "-p", str(port)])
    try:
        wait_for(f"http://127.0.0.1:{port}/server_info", server)
        yield f"http://127.0.0.1:{port}/assets/report/recordings", published
    finally:
        server.terminate()
        server.wait(timeout=120)


def click(browser: Browser, text: str) -> None:
    """Click the first element that has this text and no element in it."""
    leaves = "[...document.querySelectorAll('*')].filter((e) => !e.children.length)"
    found = f"{leaves}.find((e) => e.textContent.trim() === '{text}')"
    browser.wait(found)
    browser.run(f"{found}.click()")


@pytest.mark.slow
def test_from_the_wer_of_an_asset_to_an_utterance_in_two_clicks(
    asset_page: tuple[str, Report], browser: Browser
) -> None:
    url, report = asset_page
    worst, *_ = sorted(read_samples(report.path), key=lambda s: -s.values["wer"])
    browser.send("Page.navigate", url=url)
    browser.wait("document.body?.innerText.includes('worst')")
    page = browser.run("document.body.innerText")
    assert re.search(r"wer\s.*?\d+\.\d % \(\d+\.\d to \d+\.\d\)", page, re.DOTALL)
    assert page.index("wer") < page.index("worst") < page.index("bookkeeping")
    if worst.id not in page:
        click(browser, "[Show Markdown]")
    browser.wait(f"document.body.innerText.includes('{worst.id}')")
    link = f"[...document.querySelectorAll('a')].find((e) => e.innerText === '{worst.id}')"
    browser.send("Page.navigate", url=browser.run(f"{link}.href"))
    browser.wait(f"location.hash === '#{worst.anchor}' && document.readyState === 'complete'")
    row = f"document.getElementById('{worst.anchor}')"
    assert browser.run(f"{row}.querySelector('.text').textContent") == worst.text
    assert browser.run(f"Math.abs({row}.getBoundingClientRect().top) < innerHeight")
    ui = browser.run("document.querySelector('a[data-asset]:not([hidden])').href")
    assert ui == f"{url.partition('/assets')[0]}/assets/raw_corpus?partition=clips"


@pytest.mark.slow
def test_the_speed_is_shown_where_the_page_is_served(
    report: Path, tmp_path: Path, browser: Browser
) -> None:
    """It is a fact of the machine, which is in the manifest and not in the page."""
    shutil.copytree(report, tmp_path / "served")
    ends = {"": 0.5, "_low": 0.4, "_high": 0.61}
    metrics = {f"real_time_factor{end}": value for end, value in ends.items()}
    manifest = json.dumps({"facts": {"metrics": metrics}})
    (tmp_path / "served" / "manifest.json").write_text(manifest)
    port = free_ports()
    serve_files(tmp_path, port)
    while not listening(port):
        time.sleep(0.1)
    browser.send("Page.navigate", url=f"http://127.0.0.1:{port}/served/report.html")
    tile = "document.querySelector('[data-fact=real_time_factor]')"
    browser.wait(f"{tile} && !{tile}.hidden")
    assert "0.50" in browser.run(f"{tile}.innerText")
    assert "0.40 to 0.61" in browser.run(f"{tile}.innerText")
    unknown = "document.querySelector('[data-fact=first_audio_seconds]')"
    assert browser.run(f"getComputedStyle({unknown}).display") == "none"


@pytest.mark.slow
def test_every_clip_plays(report: Path, browser: Browser) -> None:
    browser.open(report / "report.html")
    every = "[...document.querySelectorAll('audio')]"
    assert browser.run(f"{every}.every((audio) => audio.readyState === 0)"), "nothing is loaded yet"
    browser.run(f"{every}.forEach((audio) => audio.load())")
    browser.run("document.querySelectorAll('.seek')[2].click()")
    browser.wait(f"{every}[2].currentTime > 0 && !{every}[2].paused")
    browser.run(f"{every}.forEach((audio) => {{ audio.preload = 'metadata'; }})")
    browser.wait(f"{every}.every((audio) => audio.readyState > 0)")
    durations = browser.run(f"{every}.map((audio) => audio.duration)")
    assert sorted(durations) == pytest.approx(
        sorted(s.seconds for s in read_samples(report)), abs=0.05
    )
    browser.run("document.querySelectorAll('.player button')[0].click()")
    browser.wait(f"{every}[0].currentTime > 0.2")
    browser.run("document.querySelectorAll('.player button')[1].click()")
    browser.wait(f"{every}[1].currentTime > 0.2 && {every}[0].paused")


@pytest.mark.slow
def test_the_table_starts_with_the_worst_and_sorts(report: Path, browser: Browser) -> None:
    samples = read_samples(report)
    browser.open(report / "report.html")
    assert visible_rows(browser)[0] == max(samples, key=lambda s: s.values["wer"]).text
    heads = "[...document.querySelectorAll('#syntheses th')]"
    pitch = f"{heads}.find((th) => th.innerText.startsWith('Pitch'))"
    for order in ("descending", "ascending"):
        browser.run(f"{pitch}.querySelector('button').click()")
        assert browser.run(f"{pitch}.ariaSort") == order
        falling = order == "descending"
        expected = sorted(samples, key=lambda s: s.values["f0_median"], reverse=falling)
        assert visible_rows(browser) == [s.text for s in expected]


@pytest.mark.slow
def test_screen_readers_read_word_errors_as_such(report: Path, browser: Browser) -> None:
    (wrong,) = [s for s in read_samples(report) if s.category == "wrong"]
    aligned = match(wrong.text, wrong.heard)
    browser.open(report / "report.html")
    page = " ".join(read_aloud(browser).split())
    assert f"ASR transcript ({aligned.errors_by_kind}): " in page
    read = {
        "substitute": "(substitution: {0} transcribed as {1} )",
        "delete": "(deletion: {0} )",
        "insert": "(insertion: {1} )",
    }
    for span in aligned.spans:
        if span.change != "equal":
            words = " ".join(span.reference), " ".join(span.hypothesis)
            assert read[span.change].format(*words) in page


@pytest.mark.slow
def test_the_table_filters(report: Path, browser: Browser) -> None:
    browser.open(report / "report.html")
    form = "document.querySelector('form.filter')"

    def choose(field: str, value: str) -> list[str]:
        browser.run(f"{form}.elements.{field} = {value}")
        browser.run(f"{form}.dispatchEvent(new Event('input'))")
        return visible_rows(browser)

    wrong = [s.text for s in read_samples(report) if s.category == "wrong"]
    assert choose("kind.value", "'wrong'") == wrong
    assert browser.run(f"{form}.querySelector('output').textContent") == "1 of 3 syntheses"
    assert len(choose("kind.value", "''")) == 3
    found = [s.text for s in read_samples(report) if "number" in f"{s.text} {s.heard}".lower()]
    assert sorted(choose("words.value", "'Number'")) == sorted(found)
    assert len(choose("words.value", "'no such words'")) == 0


@pytest.mark.slow
def test_the_comparison_filters(comparison: Path, browser: Browser) -> None:
    browser.open(comparison / "comparison.html")
    form = "document.querySelector('form.filter')"
    shown = "document.querySelectorAll('#pairs li:not([hidden])').length"
    groups = "document.querySelectorAll('#pairs [data-group]:not(.empty)').length"
    assert (browser.run(shown), browser.run(groups)) == (3, 2)
    browser.run(f"{form}.elements.kind.value = 'wrong'")
    browser.run(f"{form}.dispatchEvent(new Event('input'))")
    assert (browser.run(shown), browser.run(groups)) == (1, 1)
    assert browser.run(f"{form}.querySelector('output').textContent") == "1 of 3 texts"


@pytest.mark.slow
def test_votes_are_not_lost_by_one_click(comparison: Path, browser: Browser) -> None:
    browser.open(comparison / "blind.html")
    disabled = "[...document.querySelectorAll('.bar button')].map((button) => button.disabled)"
    assert browser.run(disabled) == [True, True], "there is nothing to download or to delete"
    browser.run("document.querySelector('input[type=radio]').click()")
    assert browser.run(disabled) == [False, False]
    browser.run("window.confirm = () => false; document.querySelector('#delete').click()")
    assert browser.run("Object.keys(votes()).length") == 1
    browser.run("window.confirm = () => true; document.querySelector('#delete').click()")
    assert browser.run("Object.keys(votes()).length") == 0


@pytest.mark.slow
@pytest.mark.parametrize("page", ["report", "comparison", "blind", "effect"])
def test_pages_are_accessible(page: str, report: Path, comparison: Path, browser: Browser) -> None:
    browser.open((report if page == "report" else comparison) / f"{page}.html")
    browser.run(AXE)
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        found = browser.run(f"axe.run(document, {STANDARD}).then((r) => r.violations)")
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == []


@pytest.mark.slow
def test_no_page_scrolls_sideways_on_a_phone(
    report: Path, comparison: Path, tmp_path: Path
) -> None:
    with Browser(tmp_path, (390, 844)) as phone:
        for page in (
            report / "report.html",
            comparison / "comparison.html",
            comparison / "blind.html",
            comparison / "effect.html",
        ):
            phone.open(page)
            assert phone.run("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_votes_are_kept_and_counted(comparison: Path, browser: Browser) -> None:
    key = BlindKey.from_json(comparison / "blind_key.json")
    for trial in key.trials:
        choice = "first" if trial.first == "after" else "second"
        browser.open(comparison / "blind.html")
        browser.run(f"document.querySelector('[name=\"{trial.id}\"][value={choice}]').click()")
    browser.open(comparison / "blind.html")
    count = browser.run("document.querySelector('output').textContent")
    assert count == f"{len(key.trials)} of {len(key.trials)} chosen"
    browser.run(
        "URL.createObjectURL = (blob) => { window.saved = blob.text(); return '#'; };"
        "document.querySelector('#download').click()"
    )
    votes = Votes.model_validate_json(browser.run("window.saved"))
    (row,) = count_votes(key, [votes])
    assert (row.a, row.a_wins, row.b_wins) == ("after", len(key.trials), 0)
