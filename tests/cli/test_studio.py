"""The studio: suspect clips first, their audio, and what other web pages cannot do."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_core_python
import numpy as np
import pytest
import soundfile
import uvicorn
from starlette.testclient import TestClient

from jobs.listening import Speaker
from tests.pipeline.test_ui import free_ports
from tests.support.browser import Browser
from tts_assets.cli.studio import current_settings, store_of_project, studio_app
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    Handle,
    RawCorpus,
    SampleManifest,
    SpeechSegments,
)
from tts_assets.corpora.config import MeasureProgram
from tts_assets.corpora.corrections import Corrections
from tts_assets.corpora.filter_corpus import filter_corpus
from tts_assets.corpora.index import usable_index
from tts_assets.corpora.segments.result import pass_through

ANN = """
[corpora.ann]
path = "clips"
reader = "jsonl"
language = "en"
consent = { who = "Ann Example", purpose = "tests" }
filters = { measure = ["clipping", "snr"] }
[sft.ann]
corpora = { ann = 1.0 }
[promotion.ann]
candidates = ["ann"]
"""
AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
STANDARD = '{ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] }'
ROOT = Path(__file__).resolve().parents[2]
RUN_SECONDS = 300  # on a busy machine
TOKEN = {"X-Studio-Token": "token"}


def publish(store: ArtifactStore, kind: type[Handle], build: Build, make: object) -> Handle:
    """Publish what ``make`` writes to the work folder of a build."""
    work = store.work_folder(build)
    (work / "result").mkdir(parents=True, exist_ok=True)
    assert callable(make)
    return store.publish(kind, build, work / "result", make(work))


def read_corpus(name: str) -> None:
    """Make ``filtered_samples`` of a corpus of the project, as the assets do, without Dagster."""
    settings, store = current_settings(), store_of_project()
    path, config = settings.all_corpora(name)
    filters = settings.filters.for_corpus(config.filters, name)

    def never(program: MeasureProgram) -> None:
        raise AssertionError("no metric of the test is expensive")

    raw = publish(
        store,
        RawCorpus,
        Build("raw_corpus", {}, {}, "1", partition=name),
        lambda work: usable_index(name, path, config, store, work / "result"),
    )
    assert isinstance(raw, RawCorpus)
    build = Build("speech_segments", {"raw_corpus": raw}, {}, "1", partition=name)
    segments = publish(
        store, SpeechSegments, build, lambda work: pass_through(raw, work / "result")
    )
    assert isinstance(segments, SpeechSegments)
    corrections = Corrections.of(settings.root, name)
    known = corrections.identity()
    build = Build("filtered_samples", {"speech_segments": segments}, known, "1", partition=name)
    publish(
        store,
        SampleManifest,
        build,
        lambda work: filter_corpus(
            segments, filters, settings.text, store, work, never, corrections
        ),
    )


@pytest.fixture
def ann(project: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose corpus has a clipped recording, and one with the text of another."""
    folder = project.parent / "clips"
    shutil.copytree(clips, folder)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    wave = np.sin(np.arange(16_000) / 20.0) * 4
    soundfile.write(folder / "loud.wav", np.clip(wave, -1, 1), 16_000)
    rows.append({"wav_path": "loud.wav", "transcript": "a loud tone"})
    rows[0]["transcript"] = "a text of far too many words for one short digit of a second"
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    project.write_text(project.read_text() + ANN)
    monkeypatch.setenv("TTS_PROJECT", str(project))
    monkeypatch.setenv("DAGSTER_HOME", str(project.parent / ".dagster"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return project


@pytest.fixture
def studio(ann: Path) -> TestClient:
    return TestClient(studio_app(token="token"), base_url="http://127.0.0.1:3002", headers=TOKEN)


def test_suspect_clips_come_first_with_audio_and_waveform(studio: TestClient) -> None:
    [corpus] = studio.get("/api/corpora").json()
    assert (corpus["name"], corpus["kept"]) == ("ann", None)
    assert corpus["consent"] == "Ann Example: tests"
    unread = studio.get("/api/corpora/ann/clips")
    assert (unread.status_code, "materialize it first" in unread.json()["error"]) == (409, True)
    read_corpus("ann")
    [corpus] = studio.get("/api/corpora").json()
    assert (corpus["kept"], corpus["rejected"]) == (13, 1)
    found = studio.get("/api/corpora/ann/clips").json()
    first, second, *rest = found["clips"]
    assert found["total"] == 14 and 2 <= found["suspect"] < 14
    assert first["text"] == "a loud tone" and "clipped: " in first["signs"][0]
    assert second["signs"][0] == "rejected: more text than speech"
    assert [row["suspicion"] for row in rest] == sorted(
        (row["suspicion"] for row in rest), reverse=True
    )
    one = studio.get("/api/corpora/ann/clips", params={"search": "loud", "offset": 0}).json()
    assert [row["id"] for row in one["clips"]] == [first["id"]]
    audio = studio.get(f"/api/corpora/ann/clips/{first['id']}.flac")
    assert audio.content.startswith(b"fLaC")
    part = {"Range": "bytes=0-3"}  # players seek
    assert studio.get(str(audio.url), headers=part).content == b"fLaC"
    assert studio.get(f"/api/corpora/ann/clips/{first['id']}.svg").text.startswith("<svg")
    assert studio.get("/api/corpora/ann/clips/0.flac").status_code == 404


def test_corrections_are_stored_beside_the_corpus(studio: TestClient, ann: Path) -> None:
    read_corpus("ann")
    source = (ann.parent / "clips" / "samples.jsonl").read_bytes()

    def change(**values: object) -> dict[str, Any]:
        answer = studio.post("/api/corpora/ann/corrections", json=values)
        return {"status": answer.status_code, **answer.json()}

    loud, long, *_ = studio.get("/api/corpora/ann/clips").json()["clips"]
    assert change(id=loud["id"], drop=True)["clip"]["dropped"]
    answer = change(id=long["id"], text="one")
    assert (answer["clip"]["text"], answer["clip"]["corrected"]) == ("one", True)
    assert answer["pending"]
    for refused, message in (
        ({"id": "0" * 16, "drop": True}, "has no clip"),
        ({"id": long["id"], "text": " "}, "the text is empty"),
        ({"id": long["id"], "txt": "one"}, "did you mean 'text'?"),
    ):
        assert message in change(**refused)["error"]
    read_corpus("ann")
    found = studio.get("/api/corpora/ann/clips").json()
    assert (found["corrected"], found["version"], found["pending"]) == (2, 2, False)
    rows = {row["id"]: row for row in found["clips"]}
    assert rows[loud["id"]]["reason"] == "dropped by a correction"
    assert (rows[long["id"]]["transcript"], rows[long["id"]]["signs"]) == ("one", [])
    restored = change(id=long["id"])  # shows the source's text at once
    assert (restored["clip"]["text"], restored["pending"]) == (long["text"], True)
    assert not change(id=long["id"], text="one")["pending"]
    assert not change(id=long["id"], text=long["text"])["clip"]["corrected"]
    assert (ann.parent / "clips" / "samples.jsonl").read_bytes() == source
    lines = (ann.parent / "corrections" / "ann.jsonl").read_text().splitlines()
    assert len(lines) == 5 and json.loads(lines[1])["was"] == long["text"]


@pytest.mark.slow
def test_a_corpus_is_read_by_a_run_of_dagster(studio: TestClient) -> None:
    with studio:
        assert studio.get("/api/runs").json() == {"command": {}, "runs": [], "ui": ""}
        [voice] = studio.get("/api/voices").json()
        assert voice == {"name": "ann", "recipes": ["ann"], "model": False, "corpora": ["ann"]}
        for asked in ({"voice": "--all"}, {"corpus": "a b"}, {}, {"voice": "a", "corpus": "a"}):
            assert studio.post("/api/runs", json=asked).status_code == 400
        command = studio.post("/api/runs", json={"corpus": "ann"}).json()
        assert (command["title"], command["status"]) == ("run prepare --corpus ann", None)
        refused = studio.post("/api/runs", json={"voice": "ann"}).json()
        assert "is running: wait for its end, or cancel it" in refused["error"]
        deadline = time.monotonic() + RUN_SECONDS
        while (state := studio.get("/api/runs").json())["command"]["status"] is None:
            assert time.monotonic() < deadline, state
            time.sleep(0.5)
        assert state["command"]["status"] == 0, state
        assert "filtered_samples [ann]" in state["command"]["lines"]
        [run] = state["runs"]
        assert (run["job"], run["corpus"], run["status"]) == ("prepare", "ann", "success")
        assert studio.get("/api/corpora/ann/clips").json()["total"] == 14


@pytest.fixture
def trained(ann: Path) -> Path:
    """A storage with pages, syntheses of a finished training, and of one that runs."""
    storage = ann.parent / "storage"
    for page in ("report/ann/all", "report/ann/german/all", "codec_report/all"):
        (storage / page / "current").mkdir(parents=True)
        (storage / page / "current" / "report.html").write_text(f"<h1>{page}</h1>")
    blind = storage / "comparison" / "ann_bob" / "all" / "current" / "blind.html"
    blind.parent.mkdir(parents=True)
    blind.write_text("votes")
    finished = storage / "sft" / "ann" / "all" / "current"
    for folder, last in ((finished, 20), (storage / ".work" / "sft.ann.all.0" / "result", 10)):
        listening = folder / "listening"
        listening.mkdir(parents=True)
        lines = []
        for step in range(0, last + 1, 10):
            name = f"step-{step}.flac"
            wave = 0.3 * np.sin(np.arange(8000) * (step + 10) / 100)
            soundfile.write(listening / name, wave, 16_000)
            lines.append({"audio": name, "number": 0, "step": step, "text": "one", "ended": True})
        (listening / "samples.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    os.utime(finished / "listening" / "samples.jsonl", (1, 1))
    return ann


def test_checkpoints_and_pages_are_listed(trained: Path) -> None:
    app = studio_app(token="token", files=":3003/")
    studio = TestClient(app, base_url="http://127.0.0.1:3002", headers=TOKEN)
    steps = [line["step"] for line in studio.get("/api/checkpoints/ann").json()]
    assert steps == [0, 10]  # the training that runs is newer
    audio = studio.get("/api/checkpoints/ann/step-10.flac")
    assert audio.content.startswith(b"fLaC")
    for name in ("step-20.flac", "samples.jsonl", "..%2f..%2fserving.json"):
        assert studio.get(f"/api/checkpoints/ann/{name}").status_code == 404
    assert studio.get("/api/checkpoints/bob").json() == []
    assert studio.get("/api/checkpoints/a*b").status_code == 400
    listed = {page["title"]: page["path"] for page in studio.get("/api/pages").json()["pages"]}
    assert listed == {
        "report ann": "report/ann/all/current/report.html",
        "report ann german": "report/ann/german/all/current/report.html",
        "codec_report": "codec_report/all/current/report.html",
        "comparison (blind test) ann_bob": "comparison/ann_bob/all/current/blind.html",
    }


@pytest.mark.slow
def test_a_voice_that_cannot_be_loaded_says_why(studio: TestClient, tmp_path: Path) -> None:
    assert studio.get("/api/speech").json() == {"voice": "", "state": "none"}
    refused = studio.post("/api/speech", json={"voice": "ann"}).json()["error"]
    assert "ann has no model yet" in refused
    spoken = studio.get("/api/speech/audio", params={"text": "one", "speaker_name": "default"})
    assert (spoken.status_code, "no voice is loaded" in spoken.text) == (400, True)
    speaker = Speaker()
    speaker.start("ann", tmp_path)
    try:
        while (state := speaker.state())["state"] == "starting":
            time.sleep(0.2)
        assert state["state"] == "failed" and str(tmp_path) in state["message"]
    finally:
        speaker.close()
    assert speaker.state() == {"voice": "", "state": "none"}


BOB = {"name": "bob", "language": "en", "consent": "person", "who": "Bob", "purpose": "tests"}


def test_an_upload_becomes_a_corpus(studio: TestClient, ann: Path, recordings: Path) -> None:
    for file in sorted(recordings.iterdir()):
        stored = studio.put(f"/api/uploads/bob/{file.name}", content=file.read_bytes())
        assert stored.json() == {"bytes": file.stat().st_size}
    project = ann.read_text()
    for changes, message in (
        ({"name": "ann"}, "nothing was uploaded for 'ann'"),
        ({"name": "../x"}, "is not a valid name of a corpus"),
        ({"who": ""}, "write who agreed, and to which use"),
        ({"language": "english"}, "is not a language tag"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"reader": "vctk"}, "the folder of VCTK's transcripts, is missing"),
    ):
        assert message in studio.post("/api/corpora", json={**BOB, **changes}).json()["error"]
    assert ann.read_text() == project and not (ann.parent / "recordings" / "bob").exists()
    added = studio.post("/api/corpora", json={**BOB, "until": "2030-12-31", "speaker": ""})
    assert added.json() == {
        "corpus": "bob",
        "reader": "folder",
        "entries": 6,
        "set_aside": {"no text file": 1},
    }
    settings = current_settings()
    assert str(settings.corpora["bob"].path) == "recordings/bob"
    assert settings.promotion["bob"].candidates == ("bob",)
    rows = {row["name"]: row for row in studio.get("/api/corpora").json()}
    assert rows["bob"]["consent"] == "Bob: tests, until 2030-12-31"
    again = studio.put("/api/uploads/bob/0.g722", content=b"x")
    assert again.status_code == 200
    assert "exists already" in studio.post("/api/corpora", json=BOB).json()["error"]
    studio.delete("/api/uploads/bob")
    assert sorted(path.name for path in (ann.parent / "recordings").iterdir()) == ["bob"]


@pytest.mark.parametrize(
    "path",
    [
        *("../../dagster_project.toml", "%2e%2e/x.wav", ".hidden.wav", "a/.b/c.wav", "a//b.wav"),
        *("run.py", "a%5C..%5Cb.wav", "a%0Ab.wav", f"{'x' * 500}.wav"),
    ],
)
def test_an_upload_stays_in_its_folder(studio: TestClient, ann: Path, path: str) -> None:
    before = sorted(ann.parent.rglob("*"))
    assert studio.put(f"/api/uploads/bob/{path}", content=b"x").status_code in (400, 404, 405)
    assert sorted(ann.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "example.org"}, 400),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),  # another port
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_other_web_pages_get_nothing(
    studio: TestClient, headers: dict[str, str], status: int
) -> None:
    assert studio.get("/api/corpora", headers=headers).status_code == status


def test_changes_need_the_token_of_the_page(studio: TestClient) -> None:
    answer = studio.get("/")
    assert 'name="studio-token" content="token"' in answer.text
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    refused = studio.post("/api/corpora", headers={"X-Studio-Token": "other"})
    assert (refused.status_code, "token" in refused.json()["error"]) == (403, True)
    assert studio.get("/static/studio.py").status_code == 404


def test_elsewhere_a_key_is_needed(ann: Path) -> None:
    app = studio_app(key="secret", token="token")
    client = TestClient(app, base_url="http://studio.example:3002")
    assert client.get("/").status_code == 401
    assert client.get("/?key=wrong").status_code == 401
    assert client.get("/api/corpora", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/?key=secret").text.startswith("<!doctype html>")  # sets the cookie
    assert client.get("/api/corpora").status_code == 200


@pytest.fixture
def address(ann: Path) -> Iterator[str]:
    """The address of a served studio."""
    port = free_ports()
    app = studio_app(files=f":{port + 1}/")
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


def faults(browser: Browser) -> list[tuple[str, str]]:
    """What axe-core finds in the page, light and dark."""
    browser.run(AXE)
    found = []
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        violations = browser.run(f"axe.run(document, {STANDARD}).then((r) => r.violations)")
        found += [(v["id"], v["nodes"][0]["html"][:200]) for v in violations]
    return found


def press(browser: Browser, key: str, *, control: bool = False) -> None:
    """Press and release a key."""
    for kind in ("keyDown", "keyUp"):
        modifiers = 2 if control else 0
        browser.send("Input.dispatchKeyEvent", type=kind, key=key, modifiers=modifiers)


@pytest.mark.slow
def test_a_suspect_clip_is_heard_and_corrected_by_keyboard(address: str, tmp_path: Path) -> None:
    read_corpus("ann")
    with Browser(tmp_path) as browser:
        browser.send("Page.navigate", url=address)
        clips = "document.querySelector('#corpora [aria-label=\"Clips of ann\"]')"
        browser.wait(clips)
        browser.run(f"{clips}.click()")
        browser.wait("document.querySelectorAll('#clips > li').length === 14")
        assert browser.run("document.activeElement.id") == "clips-title"
        assert "clipped" in browser.run("document.querySelector('#clips .signs').textContent")
        browser.wait("document.querySelector('#clips img').naturalWidth > 0")
        browser.run("document.querySelector('#clips audio').play()")
        browser.wait("document.querySelector('#clips audio').currentTime > 0.2")
        typed = "document.querySelector('#clips li:nth-child(2) textarea')"
        browser.run(f"{typed}.value = 'one'; {typed}.focus()")
        press(browser, "Enter", control=True)
        browser.wait("document.querySelector('#clips li:nth-child(2) .state').textContent")
        browser.wait("document.activeElement === document.querySelectorAll('#clips textarea')[2]")
        browser.run("document.querySelector('#clips .drop').click()")
        browser.wait("document.querySelector('#clips > li').classList.contains('dropped')")
        assert (
            browser.run("document.querySelector('#status').textContent") == "Dropped: a loud tone"
        )
        assert faults(browser) == []
        browser.screenshot(tmp_path / "page.png")


def drop(browser: Browser, folder: Path) -> None:
    """Drop a folder on the page, as a file manager does."""
    box = "document.querySelector('#drop').getBoundingClientRect()"
    browser.run("document.querySelector('#drop').scrollIntoView()")
    x, y = browser.run(f"[{box}.x + 20, {box}.y + 20]")
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)


@pytest.mark.slow
def test_a_dropped_folder_becomes_a_corpus_and_a_run(
    address: str, recordings: Path, tmp_path: Path
) -> None:
    folder = recordings.rename(recordings.with_name("Bob B"))
    (folder / "notes.odt").write_text("not used")
    (folder / ".hidden").write_text("not used")
    with Browser(tmp_path) as browser:
        browser.send("Page.navigate", url=address)
        browser.wait("document.querySelector('#corpora button, #corpora tr')")
        drop(browser, folder)
        browser.wait("document.querySelector('#chosen').textContent === '12 files chosen.'")
        form = "document.querySelector('#add').elements"
        assert browser.run(f"{form}.name.value") == "bob_b"
        browser.run(f"[...{form}.consent].find((one) => one.value === 'person').click()")
        browser.run(f"{form}.who.value = 'Bob'; {form}.purpose.value = 'tests'")
        assert faults(browser) == []
        browser.screenshot(tmp_path / "add.png")
        browser.run("document.querySelector('#add button:not([type])').click()")
        browser.wait("document.querySelectorAll('#corpora tr').length === 2")
        told = browser.run("document.querySelector('#status').textContent")
        assert told == (
            "Added bob_b with 6 entries (layout folder); 1 set aside: no text file; "
            "1 files are neither audio nor texts."
        )
        browser.run("document.querySelector('[aria-label=\"Read bob_b\"]').click()")
        state = "document.querySelector('#command-state').textContent"
        browser.wait(f"{state} === 'is running'")
        title = browser.run("document.querySelector('#command-title').textContent")
        assert title == "run prepare --corpus bob_b"
        assert faults(browser) == []
        browser.screenshot(tmp_path / "run.png")
        browser.run("document.querySelector('#cancel').click()")
        browser.wait(f"{state} === 'was canceled'")
    assert current_settings().corpora["bob_b"].speaker == "bob_b"


@pytest.mark.slow
def test_checkpoints_are_heard_and_reports_are_linked(
    trained: Path, address: str, tmp_path: Path
) -> None:
    with Browser(tmp_path) as browser:
        browser.send("Page.navigate", url=address)
        browser.wait("document.querySelectorAll('#pages a').length === 4")
        link = browser.run("document.querySelector('#pages a').href")
        port = int(address.split(":")[2].strip("/")) + 1
        assert link == f"http://127.0.0.1:{port}/report/ann/all/current/report.html"
        checkpoints = "document.querySelector('[aria-label=\"Checkpoints of ann\"]')"
        browser.wait(checkpoints)
        browser.run(f"{checkpoints}.click()")
        browser.wait("document.activeElement.id === 'checkpoints-title'")
        assert browser.run("document.querySelector('#step').value") == "10"
        browser.run("document.querySelectorAll('#checkpoints audio')[1].play()")
        browser.wait("document.querySelectorAll('#checkpoints audio')[1].currentTime > 0.1")
        browser.run("document.querySelector('#speech-section').hidden = false")
        assert faults(browser) == []
        browser.screenshot(tmp_path / "voice.png")
