"""Pages made of real clips: their figures, and that a browser can play them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tts_assets.evaluation.compare import ComparisonError, compare
from tts_assets.evaluation.results import figures, read_samples, write_samples

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const all = [...document.querySelectorAll("audio")];
  document.body.dataset.durations = JSON.stringify(all.map((audio) => audio.duration));
  document.body.dataset.ready = document.querySelectorAll(".player.ready button").length;
  document.body.dataset.width = document.documentElement.scrollWidth - innerWidth;
}, 3000));
</script>"""


def in_browser(page: Path, folder: Path) -> dict[str, str]:
    """What a browser of a phone's width finds in the page: the probe's data attributes."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    probed = folder / "probed.html"
    probed.write_text(page.read_text() + PROBE)
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={folder / 'profile'}", "--window-size=500,900"),
        *("--virtual-time-budget=15000", "--dump-dom", probed.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body is not None
    unescaped = body[0].replace("&quot;", '"')
    return dict(re.findall(r"data-(\w+)=\"(\[.*?\]|[^\"]*)\"", unescaped))


def test_figures_of_recordings(report: Path) -> None:
    samples = read_samples(report)
    right = figures([s for s in samples if s.category == "right"])
    wrong = figures([s for s in samples if s.category == "wrong"])
    assert right.wer <= 0.1
    assert wrong.wer > 0.5
    assert right.dnsmos_p808 > 3.3
    assert right.speaker_similarity > 0.75
    total = json.loads((report / "report.json").read_text())["total"]
    assert total["wer_low"] <= total["wer"] <= total["wer_high"]
    assert total == figures(samples).model_dump()


def test_the_page_is_complete_in_itself(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "@import" not in page
    assert "url(" not in page
    assert "<del>" in page
    assert "8d1f0c2b77aa" in page


@pytest.mark.slow
def test_a_browser_plays_every_clip(report: Path, tmp_path: Path) -> None:
    seen = in_browser(report / "report.html", tmp_path)
    durations = json.loads(seen["durations"])
    expected = [sample.seconds for sample in read_samples(report)]
    assert durations == pytest.approx(expected, abs=0.05)
    assert int(seen["ready"]) == len(expected)
    assert int(seen["width"]) <= 0, "the page must not scroll sideways on a phone"


def test_the_notebook_holds_a_player_for_each_clip(report: Path) -> None:
    notebook = json.loads((report / "listening.ipynb").read_text())
    html = "".join(
        output["data"]["text/html"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
    )
    assert html.count('<audio controls preload="metadata"') == 3
    assert html.count("data:audio/flac;base64,") == 3


def test_the_same_rows_make_the_same_bytes(report: Path, tmp_path: Path) -> None:
    from tests.evaluation.conftest import LINEAGE
    from tts_assets.evaluation.config import EvaluationConfig
    from tts_assets.evaluation.report import write_report

    shutil.copytree(report / "audio", tmp_path / "audio")
    config = EvaluationConfig(suite=Path("suite.jsonl"))
    write_report(tmp_path, "recordings", read_samples(report), config, [LINEAGE])
    for name in ("report.html", "report.json", "samples.jsonl", "listening.ipynb"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()


def better_copy(report: Path, folder: Path) -> Path:
    """The report of a model whose every word is understood."""
    copy = folder / "better"
    shutil.copytree(report, copy)
    rows = [s.model_copy(update={"word_errors": 0, "heard": s.text}) for s in read_samples(report)]
    write_samples(copy / "samples.jsonl", rows)
    return copy


@pytest.mark.slow
def test_comparison(report: Path, tmp_path: Path) -> None:
    result = tmp_path / "comparison"
    result.mkdir()
    better = better_copy(report, tmp_path)
    facts = compare(report, better, ("before", "after"), "en", (), result)
    assert facts["wer_candidate"] == 0
    assert facts["wer_difference"] == -facts["wer_baseline"]
    assert facts["ci_low"] <= facts["wer_difference"] <= facts["ci_high"] <= 0
    seen = in_browser(result / "comparison.html", tmp_path)
    assert len(json.loads(seen["durations"])) == 6
    assert min(json.loads(seen["durations"])) > 0
    assert int(seen["width"]) <= 0


def test_reports_of_other_suites_are_refused(report: Path, tmp_path: Path) -> None:
    other = better_copy(report, tmp_path)
    write_samples(other / "samples.jsonl", read_samples(report)[1:])
    with pytest.raises(ComparisonError, match=r"1 texts differ.*'agent-newlocation'"):
        compare(report, other, ("a", "b"), "en", (), tmp_path)
