"""The script that made the demo corpus, on a small tree in the form of its packages."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CORPUS

SCRIPT = CORPUS.parents[2] / "scripts" / "make_asterisk_corpus.py"
TEXTS = """; a comment: not a prompt
hello: Hello.
letters/dash: dash [-]
vm-intro: Please leave your message after the tone. (simple tone sound plays)
digits/1: 1
invalid: Sorry, [that] is not valid.
beep: [this is a simple beep tone]
silence/1: (1 second of silence)
conf-full:
no-such-sound: text without a sound
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Real prompts under the paths of the Debian packages; some have names of others."""
    root = tmp_path / "tree"
    sounds = root / "usr/share/asterisk/sounds/en_US_f_Allison"
    documents = root / "usr/share/doc/asterisk-core-sounds-en"
    documents.mkdir(parents=True)
    for key in ("hello", "letters/dash", "vm-intro", "digits/1", "invalid", "conf-full"):
        (sounds / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CORPUS / "audio" / f"{key}.g722", sounds / f"{key}.g722")
    (sounds / "silence").mkdir()
    for key in ("beep", "silence/1"):
        shutil.copyfile(sounds / "hello.g722", sounds / f"{key}.g722")
    with gzip.open(documents / "core-sounds-en.txt.gz", "wb") as stream:
        stream.write(b"\xef\xbb\xbf" + TEXTS.encode())
    (documents / "copyright").write_text("the licence")
    return root


def make(source: Path, corpus: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(source), str(corpus)]
    return subprocess.run(command, capture_output=True, text=True)


def test_prompts_with_a_sure_text_are_taken_byte_for_byte(tree: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    assert make(tree, corpus).returncode == 0
    samples = [json.loads(line) for line in (corpus / "samples.jsonl").read_text().splitlines()]
    assert {sample["original_data"]["key"]: sample["transcript"] for sample in samples} == {
        "digits/1": "1",
        "hello": "Hello.",
        "letters/dash": "dash",
        "vm-intro": "Please leave your message after the tone.",
    }
    for sample in samples:
        assert (corpus / sample["wav_path"]).read_bytes() == (
            CORPUS / sample["wav_path"]
        ).read_bytes()
    files = {str(path.relative_to(corpus)) for path in corpus.rglob("*") if path.is_file()}
    assert files == {"samples.jsonl", "LICENSE", *(sample["wav_path"] for sample in samples)}


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs Debian's dpkg-deb")
def test_packages_are_unpacked(tree: Path, tmp_path: Path) -> None:
    control = "Version: 1\nArchitecture: all\nMaintainer: nobody\nDescription: test\n"
    for name, below in (
        ("asterisk-core-sounds-en", "usr/share/doc"),
        ("asterisk-core-sounds-en-g722", "usr/share/asterisk"),
    ):
        shutil.copytree(tree / below, tmp_path / name / below)
        (tmp_path / name / "DEBIAN").mkdir()
        (tmp_path / name / "DEBIAN" / "control").write_text(f"Package: {name}\n{control}")
        package = tmp_path / f"{name}_1_all.deb"
        subprocess.run(
            ["dpkg-deb", "-b", str(tmp_path / name), str(package)], check=True, capture_output=True
        )
    make(tree, tmp_path / "from_tree")
    made = make(tmp_path, tmp_path / "from_packages")
    assert made.returncode == 0, made.stderr
    samples = [
        (tmp_path / name / "samples.jsonl").read_bytes() for name in ("from_tree", "from_packages")
    ]
    assert samples[0] == samples[1]


def test_a_missing_package_is_named_with_what_fetches_it(tmp_path: Path) -> None:
    made = make(tmp_path, tmp_path / "corpus")
    assert made.returncode == 1
    assert "apt-get download asterisk-core-sounds-en" in made.stderr


def test_the_vendored_corpus_is_small_and_whole() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    samples = [json.loads(line) for line in (CORPUS / "samples.jsonl").read_text().splitlines()]
    assert {CORPUS / sample["wav_path"] for sample in samples} == {
        path for path in files if path.suffix == ".g722"
    }
    licence = (CORPUS / "LICENSE").read_text()
    assert "Allison Smith" in licence
    assert "THE WORK (AS DEFINED BELOW) IS PROVIDED UNDER THE TERMS" in licence
