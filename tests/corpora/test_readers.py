"""Readers of public corpora's layouts, each on a tree of real clips laid out as that corpus is."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from tests.support.corpus_layouts import index, put, write
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig

Recordings = list[tuple[Path, str]]  # audio, words


@pytest.fixture(scope="module")
def recordings(clips: Path) -> Recordings:
    """Four clips and their words."""
    lines = (clips / "samples.jsonl").read_text().splitlines()[5:9]
    samples = [json.loads(line) for line in lines]
    return [(clips / sample["wav_path"], sample["transcript"]) for sample in samples]


def texts(rows: pl.DataFrame) -> set[str]:
    return set(rows["text"])


def speakers(rows: pl.DataFrame) -> dict[str, str]:
    return {Path(row["audio"]).stem: row["speaker"] for row in rows.iter_rows(named=True)}


CONVERTED = pytest.mark.parametrize("suffix", [".flac", ".wav"])


@CONVERTED
def test_librispeech(recordings: Recordings, tmp_path: Path, suffix: str) -> None:
    chapter = tmp_path / "c" / "dev-clean" / "84" / "121123"
    lines = []
    for number, (audio, words) in enumerate(recordings):
        put(audio, chapter / f"84-121123-{number:04}{suffix}")
        lines.append(f"84-121123-{number:04} {words.upper()}")
    lines.append("84-121123-9999 WITHOUT AUDIO")
    write(chapter / "84-121123.trans.txt", "\n".join(lines) + "\n")
    rows, set_aside = index(tmp_path / "c", tmp_path / "out", "librispeech")
    assert texts(rows) == {words.upper() for _, words in recordings}
    assert set(rows["speaker"]) == {"84"}
    (record,) = set_aside
    assert record.reason == "no such file" and record.what.endswith("84-121123.trans.txt:5")


@CONVERTED
def test_libritts_reads_the_original_text(
    recordings: Recordings, tmp_path: Path, suffix: str
) -> None:
    for number, (audio, words) in enumerate(recordings):
        stem = tmp_path / "c" / "dev" / "251" / "136532" / f"251_136532_00000{number}_000000"
        put(audio, stem.with_suffix(suffix))
        if number:
            write(Path(f"{stem}.normalized.txt"), "as it was normalized")
        if number > 1:
            write(Path(f"{stem}.original.txt"), words)
    rows, set_aside = index(tmp_path / "c", tmp_path / "out", "libritts")
    expected = {words for _, words in recordings[2:]}
    assert texts(rows) == {"as it was normalized", *expected}
    assert set(rows["speaker"]) == {"251"}
    assert [record.reason for record in set_aside] == ["no text file"]


@pytest.mark.parametrize(
    ("tree", "suffix"),
    [
        ("wav48_silence_trimmed", "_mic1.flac"),
        ("wav48_silence_trimmed", "_mic1.wav"),
        ("wav48", ".wav"),
        ("wav48", ".flac"),
    ],
)
def test_vctk(recordings: Recordings, tmp_path: Path, tree: str, suffix: str) -> None:
    root = tmp_path / "c"
    for number, (audio, words) in enumerate(recordings):
        name = f"p{225 + number % 2}_{number:03}"
        put(audio, root / tree / name[:4] / f"{name}{suffix}")
        write(root / "txt" / name[:4] / f"{name}.txt", words + "\n")
    rows, set_aside = index(root, tmp_path / "out", "vctk")
    assert texts(rows) == {words for _, words in recordings} and not set_aside
    assert all(stem.startswith(speaker) for stem, speaker in speakers(rows).items())


def test_common_voice(recordings: Recordings, tmp_path: Path) -> None:
    root = tmp_path / "c"
    rows_in = ["client_id\tpath\tsentence\tup_votes\tlocale"]
    for number, (audio, words) in enumerate(recordings):
        put(audio, root / "clips" / f"cv_{number}.mp3")
        rows_in.append(f'speaker{number}\tcv_{number}.mp3\t"{words}\t2\ten')
    rows_in += ["speaker9\t\tno clip\t2\ten", "speaker9\t../../secret.mp3\tout\t2\ten"]
    write(root / "validated.tsv", "\n".join(rows_in) + "\n")
    rows, set_aside = index(root, tmp_path / "out", "common_voice")
    assert texts(rows) == {f'"{words}' for _, words in recordings}  # a quotation mark is text
    assert set(rows["speaker"]) == {f"speaker{number}" for number in range(4)}
    assert json.loads(rows["extra"][0]) == {"original_data": {"up_votes": "2"}}
    reasons = {record.what: record.reason for record in set_aside}
    assert reasons == {
        "validated.tsv:6": "columns are missing",
        "validated.tsv:7": "path outside the corpus",
    }
    write(root / "train.tsv", "path\tsentence\n")
    with pytest.raises(ConfigError, match="no columns client_id"):
        index(root / "train.tsv", tmp_path / "none", "common_voice")


def test_pipe_lists_with_and_without_a_header(recordings: Recordings, tmp_path: Path) -> None:
    for number, (audio, _) in enumerate(recordings):
        put(audio, tmp_path / "c" / "wavs" / f"{number}.wav")
    plain = [f"wavs/{n}.wav|s{n % 2}|{words}" for n, (_, words) in enumerate(recordings)]
    write(tmp_path / "c" / "vits.txt", "\n".join([*plain, "wavs/0.wav", "a|b|c|d"]) + "\n")
    rows, set_aside = index(tmp_path / "c" / "vits.txt", tmp_path / "out", "pipe_list")
    assert texts(rows) == {words for _, words in recordings}
    assert speakers(rows) == {str(n): f"s{n % 2}" for n in range(4)}
    assert [record.what for record in set_aside] == ["vits.txt:5", "vits.txt:6"]
    coqui = ["audio_file|text|speaker_name"]
    coqui += [f"wavs/{n}.wav|{words}|speaker{n}" for n, (_, words) in enumerate(recordings)]
    write(tmp_path / "c" / "metadata.csv", "\ufeff" + "\r\n".join(coqui) + "\r\n")
    rows, set_aside = index(tmp_path / "c", tmp_path / "again", "pipe_list")
    assert texts(rows) == {words for _, words in recordings} and not set_aside
    assert speakers(rows) == {str(n): f"speaker{n}" for n in range(4)}


def test_a_text_without_audio_is_set_aside(recordings: Recordings, tmp_path: Path) -> None:
    audio, words = recordings[0]
    put(audio, tmp_path / "corpus" / "clips" / "a.wav")
    write(tmp_path / "corpus" / "clips" / "a.txt", words)
    write(tmp_path / "corpus" / "clips" / "b.txt", words)
    write(tmp_path / "corpus" / "notes" / "licence.txt", "of another folder")
    rows, set_aside = index(tmp_path / "corpus", tmp_path / "out", "folder")
    assert len(rows) == 1
    assert [(record.what, record.reason) for record in set_aside] == [
        ("clips/b.txt", "text without audio")
    ]


def test_folders_of_speakers_need_no_text(recordings: Recordings, tmp_path: Path) -> None:
    root = tmp_path / "c"
    for number, (audio, _) in enumerate(recordings[:3]):
        put(audio, root / f"id1000{number}" / "1zcIwhmdeo4" / "00001.wav")
    put(recordings[3][0], root / "stray.wav")
    rows, set_aside = index(root, tmp_path / "out", "speakers")
    assert set(rows["speaker"]) == {"id10000", "id10001", "id10002"} and texts(rows) == {""}
    assert json.loads(rows["extra"][0])["original_data"] == {"session": "1zcIwhmdeo4"}
    assert [record.reason for record in set_aside] == ["no speaker folder"]


def test_recordings_of_any_depth_need_no_text(recordings: Recordings, tmp_path: Path) -> None:
    root = tmp_path / "c"
    for number, (audio, _) in enumerate(recordings):
        put(
            audio, root / ("show/season 1", "interview", "interview", ".")[number] / f"{number}.mp3"
        )
    rows, set_aside = index(root, tmp_path / "out", "recordings")
    assert speakers(rows) == {"0": "season 1", "1": "interview", "2": "interview", "3": ""}
    assert texts(rows) == {""} and not set_aside and not any(rows["pooled"])
    rows, _ = index(root, tmp_path / "again", "recordings", speaker="ann")
    assert set(rows["speaker"]) == {"ann"}


def test_another_layout_is_an_error(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="librispeech reader finds nothing"):
        index(clips, tmp_path / "out", "librispeech")


def test_style_emotion_and_voice_description_of_a_corpus(
    recordings: Recordings, tmp_path: Path
) -> None:
    """They are defaults of samples, and unset they do not change fingerprints."""
    audio, words = recordings[0]
    put(audio, tmp_path / "folder" / "a.wav")
    write(tmp_path / "folder" / "a.txt", words)
    rows, _ = index(tmp_path / "folder", tmp_path / "out", "folder", style="calm", emotion="joy")
    assert json.loads(rows["extra"][0]) == {"style": "calm", "emotion": "joy"}
    sample = {"wav_path": str(tmp_path / "folder" / "a.wav"), "transcript": words, "style": "loud"}
    write(tmp_path / "lines" / "samples.jsonl", json.dumps(sample) + "\n")
    rows, _ = index(tmp_path / "lines", tmp_path / "own", style="calm", voice_description="deep")
    extra = json.loads(rows["extra"][0])
    assert (extra["style"], extra["voice_description"]) == ("loud", "deep")
    values = {"path": tmp_path, "reader": "folder", "language": "en"}
    plain = CorpusConfig.model_validate(values).as_indexed().canonical()
    assert sorted(plain) == [
        "consent",
        "filters",
        "language",
        "licence",
        "options",
        "path",
        "reader",
        "segments",
        "speaker",
    ]
    styled = CorpusConfig.model_validate(values | {"style": "calm"}).as_indexed()
    assert styled.canonical() == plain | {"style": "calm"}
