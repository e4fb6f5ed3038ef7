"""Discovery: layouts are recognized or declared in ``corpus.toml``, and problems are reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.corpus_layouts import put, write
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig, DiscoveryConfig
from tts_assets.corpora.discovery import Corpora, check_name
from tts_assets.corpora.index import read_entries
from tts_assets.corpora.readers.files import Entry

WORDS = "the number is one"


@pytest.fixture
def clip(clips: Path) -> Path:
    return clips / "audio" / "digits" / "1.g722"


def corpora(
    root: Path, declared: dict[str, CorpusConfig] | None = None, **defaults: str
) -> Corpora:
    discovery = DiscoveryConfig(root=Path("corpora"), **{"language": "en", **defaults})
    return Corpora(declared or {}, discovery, root)


def jsonl(folder: Path, clip: Path) -> None:
    put(clip, folder / "a.wav")
    write(folder / "samples.jsonl", '{"wav_path": "a.wav", "transcript": "one"}\n')


def ljspeech(folder: Path, clip: Path) -> None:
    put(clip, folder / "wavs" / "LJ001-0001.wav")
    write(folder / "metadata.csv", f"LJ001-0001|{WORDS}|{WORDS}\n")


def coqui(folder: Path, clip: Path) -> None:
    put(clip, folder / "wavs" / "a.wav")
    write(folder / "metadata.csv", f"audio_file|text|speaker_name\nwavs/a.wav|{WORDS}|ann\n")


def vits(folder: Path, clip: Path) -> None:
    put(clip, folder / "wavs" / "a.wav")
    write(folder / "metadata.csv", f"wavs/a.wav|ann|{WORDS}\n")


def vctk(folder: Path, clip: Path) -> None:
    put(clip, folder / "wav48" / "p225" / "p225_001.wav")
    write(folder / "txt" / "p225" / "p225_001.txt", WORDS)


def common_voice(folder: Path, clip: Path) -> None:
    put(clip, folder / "clips" / "a.mp3")
    write(folder / "validated.tsv", f"client_id\tpath\tsentence\nabc\ta.mp3\t{WORDS}\n")


def librispeech(folder: Path, clip: Path) -> None:
    put(clip, folder / "train-clean" / "103" / "1240" / "103-1240-0000.flac")
    write(folder / "train-clean/103/1240/103-1240.trans.txt", f"103-1240-0000 {WORDS}\n")


def libritts(folder: Path, clip: Path) -> None:
    put(clip, folder / "103" / "1241" / "103_1241_000000.wav")
    write(folder / "103/1241/103_1241_000000.original.txt", WORDS)


def plain(folder: Path, clip: Path) -> None:
    put(clip, folder / "deep" / "down" / "a.wav")
    write(folder / "deep" / "down" / "a.txt", WORDS)


LAYOUTS: list[tuple[Callable[[Path, Path], None], str]] = [
    (jsonl, "jsonl"),
    (ljspeech, "ljspeech"),
    (coqui, "pipe_list"),
    (vits, "pipe_list"),
    (vctk, "vctk"),
    (common_voice, "common_voice"),
    (librispeech, "librispeech"),
    (libritts, "libritts"),
    (plain, "folder"),
]


@pytest.mark.parametrize(("lay_out", "reader"), LAYOUTS)
def test_layouts_are_recognized_and_read(
    tmp_path: Path, clip: Path, lay_out: Callable[[Path, Path], None], reader: str
) -> None:
    lay_out(tmp_path / "corpora" / "voice", clip)
    found, problems = corpora(tmp_path, licence="CC0", speaker="ann").find()
    assert (list(found), problems) == (["voice"], [])
    path, config = found["voice"]
    assert (config.reader, config.language, config.licence) == (reader, "en", "CC0")
    (entry,) = read_entries(path, config)
    assert isinstance(entry, Entry)
    assert entry.audio.is_file()
    assert entry.licence == "CC0"


def test_corpus_toml_takes_precedence(tmp_path: Path, clip: Path) -> None:
    folder = tmp_path / "corpora" / "voice"
    plain(folder, clip)
    write(folder / "corpus.toml", "language = 'es'\nspeaker = 'eva'\n")
    config = corpora(tmp_path)("voice").config
    assert (config.reader, config.language, config.speaker) == ("folder", "es", "eva")
    write(folder / "corpus.toml", "reader = 'speakers'\n")
    config = corpora(tmp_path)("voice").config
    assert (config.reader, config.language) == ("speakers", "en")


REFUSED = [
    ("", "layout is not recognized; write reader = .* jsonl, ljspeech"),
    ("reader = 'folder'\npath = '/data'", "path is the folder itself; drop it"),
    ("reader = 'foldr'", "corpus.toml: reader: .*'folder'"),
    ("reader = 'folder'\nlicense = 'MIT'", "unknown key 'license'.*did you mean 'licence'"),
    ("reader = ", "corpus.toml: not TOML"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_an_unusable_folder_is_reported_and_others_are_found(
    tmp_path: Path, clip: Path, text: str, message: str
) -> None:
    plain(tmp_path / "corpora" / "good", clip)
    write(tmp_path / "corpora" / "bad" / "notes.md", "no corpus")
    if text:
        write(tmp_path / "corpora" / "bad" / "corpus.toml", text)
    found, (problem,) = corpora(tmp_path).find()
    assert list(found) == ["good"]
    assert str(tmp_path / "corpora" / "bad") in problem
    with pytest.raises(ConfigError, match=message) as caught:
        corpora(tmp_path)("bad")
    assert str(caught.value) in problem


def test_a_language_is_required(tmp_path: Path, clip: Path) -> None:
    plain(tmp_path / "corpora" / "voice", clip)
    unsaid = Corpora({}, DiscoveryConfig(root=Path("corpora")), tmp_path)
    assert "write language = 'en' to" in unsaid.find()[1][0]
    write(tmp_path / "corpora" / "voice" / "corpus.toml", "language = 'en'")
    assert unsaid.find()[1] == []


@pytest.mark.parametrize("name", ["my voice", "Stimme-ä", "a...b", "-v", "x" * 101, "a,b", "[a]"])
def test_an_invalid_name_is_refused_with_a_valid_one(tmp_path: Path, clip: Path, name: str) -> None:
    plain(tmp_path / "corpora" / name, clip)
    found, (problem,) = corpora(tmp_path).find()
    assert not found
    assert "is not a valid name of a corpus" in problem
    check_name(problem.rsplit("'")[-2])


def test_a_declared_corpus_is_not_discovered_again(tmp_path: Path, clip: Path) -> None:
    for name in ("here", "there"):
        plain(tmp_path / "corpora" / name, clip)
    plain(tmp_path / "elsewhere", clip)
    common = {"reader": "folder", "language": "de"}
    declared = {
        "mine": CorpusConfig.model_validate({"path": "corpora/here", **common}),
        "there": CorpusConfig.model_validate({"path": "elsewhere", **common}),
    }
    found, (problem,) = corpora(tmp_path, declared).find()
    assert {name: corpus.config.language for name, corpus in found.items()} == {
        "mine": "de",
        "there": "de",
    }
    assert "a declared corpus of another folder has the same name" in problem


def test_files_and_hidden_folders_are_ignored(tmp_path: Path, clip: Path) -> None:
    plain(tmp_path / "elsewhere", clip)
    (tmp_path / "corpora" / ".trash").mkdir(parents=True)
    write(tmp_path / "corpora" / "README.md", "corpora of the team")
    (tmp_path / "corpora" / "linked").symlink_to(tmp_path / "elsewhere")
    found, problems = corpora(tmp_path).find()
    assert (list(found), problems) == (["linked"], [])
    assert found["linked"].path == tmp_path / "elsewhere"


def test_a_missing_corpus_or_root(tmp_path: Path, clip: Path) -> None:
    plain(tmp_path / "corpora" / "voice", clip)
    shutil.rmtree(tmp_path / "corpora" / "voice")
    with pytest.raises(ConfigError, match=r"add \[corpora.voice\] .* or put its folder there"):
        corpora(tmp_path)("voice")
    (tmp_path / "corpora").rmdir()
    found, (problem,) = corpora(tmp_path).find()
    assert not found
    assert "correct root in [discovery]" in problem


def test_defaults_without_a_root_are_refused() -> None:
    with pytest.raises(ValueError, match="write root = 'corpora'"):
        DiscoveryConfig.model_validate({"language": "en"})
