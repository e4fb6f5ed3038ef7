"""A report of real clips: its figures, the content of the page, earlier reports."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import av

from tests.evaluation.conftest import LINEAGE, program_of
from tts_assets.core.audio import Clip, statement
from tts_assets.evaluation.config import EarlierReport, EvaluationConfig
from tts_assets.evaluation.history import path_to_storage
from tts_assets.evaluation.metrics.metric import columns_of
from tts_assets.evaluation.page import Embedder, opus, write_flac
from tts_assets.evaluation.report import write_report
from tts_assets.evaluation.results import figures, read_samples
from tts_assets.evaluation.suite import SuiteText

COLUMNS = columns_of(EvaluationConfig(suite=Path("suite.jsonl")))


def test_figures_of_recordings(report: Path) -> None:
    samples = read_samples(report)
    right = figures([s for s in samples if s.category == "right"], COLUMNS).metrics
    wrong = figures([s for s in samples if s.category == "wrong"], COLUMNS).metrics
    assert right["wer"].value <= 0.1
    assert wrong["wer"].value > 0.5
    assert right["dnsmos_p808"].value > 3.3
    assert right["speaker_similarity"].value > 0.75
    assert 150 < right["f0_median"].value < 230, "a female voice"
    assert 0.7 < right["duration_ratio"].value < 1.4
    written = json.loads((report / "report.json").read_text())
    assert written["total"] == figures(samples, COLUMNS).model_dump()
    for figure in written["total"]["metrics"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert written["not_given"] == {"utmos": "not given: [evaluation] utmos names no ONNX file"}


def test_the_page_is_self_contained(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page), "without a storage no links"
    assert "@import" not in page
    assert "url(" not in page
    assert "<del>" in page
    assert "8d1f0c2b77aa" in page
    assert "utmos: not given" in page


def test_links_of_a_published_report_work_offline(report: Path, tmp_path: Path) -> None:
    clips = tmp_path / "code_arrays" / "clips" / "0123"
    clips.mkdir(parents=True)
    (clips / "manifest.json").write_text("{}")
    samples = read_samples(report)
    near = samples[0].text.upper() + "!"
    rows = [{"id": "x", "transcript": "nothing"}, {"id": "near", "transcript": near}]
    (clips / "train_samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    folder = tmp_path / "report" / "recordings" / "all" / "4567"
    shutil.copytree(report / "audio", folder / "audio")
    row = LINEAGE.model_copy(update={"asset": "code_arrays", "fingerprint": "0123"})
    program = program_of(
        "recordings",
        lineage=(row,),
        storage=path_to_storage("report/recordings"),
        training=(clips / "train_samples.jsonl",),
    )
    write_report(folder, program, samples)
    (folder / "manifest.json").write_text("{}")
    page = (folder / "report.html").read_text()
    links = re.findall(r'href="(?!data:|#)([^"]+)"', page)
    assert len(links) == 3 + 2 * len(samples) + 1, "files; audio and training text; lineage"
    assert all((folder / unquote(link)).is_file() for link in links)
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert {s.anchor for s in samples} <= set(anchors) and all(f'id="{a}"' in page for a in anchors)
    found = json.loads((folder / "report.json").read_text())["nearest_training"][samples[0].id]
    assert (found["id"], found["similarity"]) == ("near", 1.0)


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
    shutil.copytree(report / "audio", tmp_path / "audio")
    write_report(tmp_path, program_of("recordings"), read_samples(report))
    for name in ("report.html", "report.json", "samples.jsonl", "listening.ipynb"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()


def test_each_emotion_and_style_has_separate_figures(report: Path, tmp_path: Path) -> None:
    shutil.copytree(report / "audio", tmp_path / "audio")
    first, *others = read_samples(report)
    sad = [other.model_copy(update={"manner": "sad, whispered"}) for other in others]
    write_report(tmp_path, program_of("recordings"), [first, *sad])
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["manners"] == {"sad, whispered": figures(sad, COLUMNS).model_dump()}
    assert "By emotion and style" in (tmp_path / "report.html").read_text()
    assert "By emotion and style" not in (report / "report.html").read_text()
    text = SuiteText(id="a", category="c", text="a", emotion="sad", style="whispered")
    assert text.manner == "sad, whispered"


def test_the_page_compares_with_an_earlier_report(report: Path, tmp_path: Path) -> None:
    shutil.copytree(report / "audio", tmp_path / "audio")
    better = [
        s.model_copy(update={"values": s.values | {"wer": 0.0}}) for s in read_samples(report)
    ]
    earlier = EarlierReport(model="0123456789abcdef", folder=report)
    write_report(tmp_path, program_of("recordings", earlier=[earlier]), better)
    (row,) = json.loads((tmp_path / "report.json").read_text())["earlier"]
    change = row["differences"]["wer"]
    assert change["candidate"] == 0
    assert change["difference"] == -change["baseline"] < 0
    assert "0123456789ab" in (tmp_path / "report.html").read_text()


def test_a_large_page_has_opus_and_omits_what_does_not_fit(
    report: Path, recordings: dict[str, tuple[str, Clip]], tmp_path: Path
) -> None:
    clip = recordings["conf-invalid"][1]
    assert opus(clip.wave, clip.rate) == opus(clip.wave, clip.rate)
    file = tmp_path / "clip.flac"
    write_flac(file, clip.wave, clip.rate, statement("sft/one", "Ann"))
    embedded = Embedder([file] * 10_000)(file)
    assert embedded is not None
    with av.open(io.BytesIO(base64.b64decode(embedded.partition(",")[2]))) as file:
        assert file.streams.audio[0].metadata["comment"] == statement("sft/one", "Ann")
    paths = sorted((report / "audio").iterdir())
    embed = Embedder(paths * 1000)
    uri = embed(paths[0])
    assert uri is not None and uri.startswith("data:audio/ogg;base64,")
    embed.left = len(uri)
    assert embed(paths[0]) is not None
    assert embed(paths[0]) is None
