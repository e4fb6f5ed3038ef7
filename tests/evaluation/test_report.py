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
from tts_assets.evaluation.metrics import columns_of
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


def test_the_page_needs_only_its_own_folder(report: Path) -> None:
    page = (report / "report.html").read_text()
    named = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page)
    assert sorted(named) == sorted(s.audio for s in read_samples(report) if s.audio)
    assert all((report / unquote(name)).is_file() for name in named)
    assert "data:audio" not in page, "audio is loaded when a player starts"
    assert "@import" not in page
    assert "url(" not in page
    assert "<del>" in page
    assert "8d1f0c2b77aa" in page
    assert "utmos: not given" in page


def test_links_of_a_published_report_work_offline(report: Path, tmp_path: Path) -> None:
    clips = tmp_path / "code_arrays" / "clips" / "0123"
    clips.mkdir(parents=True)
    samples = read_samples(report)
    near = samples[0].text.upper() + "!"
    audio = [str(report / sample.audio) for sample in samples[:2] if sample.audio]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF" + bytes(100))
    rows = [
        {"id": "x", "transcript": "nothing", "wav_path": audio[0]},
        {"id": "near", "transcript": near, "wav_path": audio[1]},
        {"id": "gone", "transcript": "nothing", "wav_path": "/nowhere.wav"},
        {"id": "broken", "transcript": "nothing", "wav_path": str(broken)},
    ]
    (clips / "train_samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    folder = tmp_path / "report" / "recordings" / "all" / "4567"
    shutil.copytree(report / "audio", folder / "audio")
    row = LINEAGE.model_copy(update={"asset": "code_arrays", "fingerprint": "0123"})
    suite = tmp_path / "evaluation_suite" / "all" / "89ab"
    (suite / "wavs").mkdir(parents=True)
    shutil.copyfile(audio[0], suite / "wavs" / "prompt.flac")
    prompted = {"prompt_wav": "wavs/prompt.flac", "prompt_text": "Any words."}
    line = {"id": samples[0].id, "category": "right", "text": samples[0].text} | prompted
    (suite / "suite.jsonl").write_text(json.dumps(line) + "\n")
    program = program_of(
        "recordings",
        suite=suite / "suite.jsonl",
        run_dir=tmp_path,
        lineage=(row,),
        storage=path_to_storage("report/recordings"),
        training=(clips / "train_samples.jsonl",),
    )
    write_report(folder, program, samples)
    (clips / "manifest.json").write_text("{}")
    (folder / "manifest.json").write_text("{}")
    page = (folder / "report.html").read_text()
    links = re.findall(r'href="(?!data:|#)([^"]+)"', page)
    assert len(links) == 3 + 3 * len(samples) + 1 + 1, (
        "files; audio, training text and voice; a voice prompt; lineage"
    )
    assert all((folder / unquote(link)).is_file() for link in links)
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert {s.anchor for s in samples} <= set(anchors) and all(f'id="{a}"' in page for a in anchors)
    written = json.loads((folder / "report.json").read_text())
    found = written["nearest_training"][samples[0].id]
    assert (found["id"], found["similarity"]) == ("near", 1.0)
    voices = written["nearest_voice"]
    assert [voices[s.audio]["id"] for s in samples[:2]] == ["x", "near"]
    assert voices[samples[0].audio]["similarity"] > 0.999


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
