"""Hugging Face Parquet with embedded audio, written by ``datasets`` itself from real clips."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.support.corpus_layouts import index, put
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.audio import read_clip
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.index import Utterance, index_corpus
from tts_assets.corpora.readers.files import Embedded
from tts_assets.corpora.samples import AudioFolders
from tts_assets.corpora.sources import EmbeddedAudio, suffix_of

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".g722")


@pytest.fixture(scope="module")
def samples(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Each clip in another format; audio, text and speaker as a data set has them."""
    folder = tmp_path_factory.mktemp("samples")
    rows = []
    for number, line in enumerate((clips / "samples.jsonl").read_text().splitlines()):
        sample = json.loads(line)
        suffix = SUFFIXES[number % len(SUFFIXES)]
        path = folder / f"{number}{suffix}"
        if suffix == ".g722":
            path.write_bytes((clips / sample["wav_path"]).read_bytes())
        else:
            put(clips / sample["wav_path"], path)
        rows.append({"audio": str(path), "text": sample["transcript"], "reader": f"r{number % 2}"})
    return rows


def save(samples: list[dict[str, str]], path: Path) -> None:
    """As ``push_to_hub`` writes Parquet: the audio's bytes within."""
    import datasets
    from datasets.table import embed_table_storage

    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = datasets.Dataset.from_list(samples)
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False)).with_format("arrow")
    dataset.map(embed_table_storage, batched=True).to_parquet(str(path))


def test_rows_of_all_files_become_utterances_in_the_pool(
    samples: list[dict[str, str]], tmp_path: Path
) -> None:
    save(samples[:7], tmp_path / "c" / "data" / "train-00000-of-00002.parquet")
    save(samples[7:], tmp_path / "c" / "data" / "train-00001-of-00002.parquet")
    rows, set_aside = index(
        tmp_path / "c", tmp_path / "out", "parquet", options={"columns": {"speaker": "reader"}}
    )
    assert not set_aside and all(rows["pooled"])
    assert set(rows["text"]) == {sample["text"] for sample in samples}
    assert set(rows["speaker"]) == {"r0", "r1"}
    by_text = {sample["text"]: Path(sample["audio"]) for sample in samples}
    pool = tmp_path / "storage" / "audio"
    for row in rows.iter_rows(named=True):
        source = by_text[row["text"]]
        assert (pool / row["audio"]).read_bytes() == source.read_bytes()
        assert Path(row["audio"]).suffix == source.suffix
        assert row["duration"] == pytest.approx(read_clip(source).seconds, abs=1e-6)
        assert json.loads(row["extra"])["original_data"] == {"path": source.name}


def test_utterances_are_found_in_the_pool(samples: list[dict[str, str]], tmp_path: Path) -> None:
    save(samples[:1], tmp_path / "one.parquet")
    config = CorpusConfig(path=tmp_path / "one.parquet", reader="parquet", language="en")
    store = ArtifactStore(tmp_path / "storage")
    (tmp_path / "out").mkdir()
    index_corpus("c", config.path, config, store, tmp_path / "out")
    (row,) = pq.read_table(tmp_path / "out" / "utterances.parquet").to_pylist()
    assert Utterance(**row).path(AudioFolders("c", tmp_path, store.audio_pool)).is_file()


def test_rows_without_audio_are_set_aside(samples: list[dict[str, str]], tmp_path: Path) -> None:
    good = Path(samples[0]["audio"]).read_bytes()
    cells = [
        {"bytes": good, "path": "a.wav"},
        {"bytes": None, "path": "elsewhere.wav"},
        None,
        {"bytes": b"no audio at all", "path": None},
        {"bytes": good[:-5000], "path": None},
        {"bytes": good, "path": None},
    ]
    cells.append({"bytes": good, "path": None})
    texts = ["words", "b", "c", "d", "e", "words again", "word " * 300_000]
    table = pa.table({"audio": cells, "sentence": texts})
    (tmp_path / "c").mkdir()
    pq.write_table(table, tmp_path / "c" / "a.parquet")
    (tmp_path / "c" / "cut.parquet").write_bytes((tmp_path / "c" / "a.parquet").read_bytes()[:-200])
    rows, set_aside = index(
        tmp_path / "c", tmp_path / "out", "parquet", options={"columns": {"text": "sentence"}}
    )
    assert len(rows) == 1
    assert {record.what: record.reason for record in set_aside} == {
        "a.parquet:1": "no audio bytes",
        "a.parquet:2": "no audio bytes",
        "a.parquet:3": "not readable as audio",
        "a.parquet:4": "truncated",
        "a.parquet:5": "duplicate audio",
        "a.parquet:6": "text too long",
        "cut.parquet": "not readable as Parquet",
    }


def test_plain_bytes_without_text_are_read_too(
    samples: list[dict[str, str]], tmp_path: Path
) -> None:
    audio = [Path(sample["audio"]).read_bytes() for sample in samples[:3]]
    (tmp_path / "c").mkdir()
    pq.write_table(pa.table({"flac": pa.array(audio, pa.large_binary())}), tmp_path / "c/a.parquet")
    options = {"columns": {"audio": "flac", "text": ""}}
    rows, set_aside = index(tmp_path / "c", tmp_path / "out", "parquet", options=options)
    assert (len(rows), set(rows["text"]), set_aside) == (3, {""}, [])


def test_a_missing_column_is_reported_with_the_present_ones(
    samples: list[dict[str, str]], tmp_path: Path
) -> None:
    save(samples[:1], tmp_path / "c" / "a.parquet")
    for options, message in (
        ({"columns": {"text": "sentence"}}, "set options.columns.text to one of .*'reader'"),
        ({"columns": {"audio": "text"}}, "holds string instead of audio"),
    ):
        with pytest.raises(ConfigError, match=message):
            index(tmp_path / "c", tmp_path / str(len(message)), "parquet", options=options)


def test_options_of_another_reader_are_refused() -> None:
    values = {
        "path": "c",
        "reader": "jsonl",
        "language": "en",
        "options": {"columns": {"text": "a"}},
    }
    with pytest.raises(ConfigError, match="'jsonl' has no options"):
        CorpusConfig.parse(values, "test")


def test_columns_have_one_key_and_their_former_canonical_form() -> None:
    values = {"path": "c", "reader": "parquet", "language": "en"}
    with pytest.raises(ConfigError, match=r"write columns = \{ text = "):
        CorpusConfig.parse(values | {"options": {"text_column": "a"}}, "test")
    options = {"columns": {"text": "a"}}
    assert CorpusConfig.parse(values | {"options": options}, "test").canonical()["options"] == {
        "audio_column": "audio",
        "text_column": "a",
        "speaker_column": "",
    }


def test_audio_is_identified_by_its_first_bytes(clips: Path, tmp_path: Path) -> None:
    clip = read_clip(clips / "audio" / "demo-nomatch.g722")
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        soundfile.write(tmp_path / f"a{suffix}", clip.wave, clip.rate)
        assert suffix_of((tmp_path / f"a{suffix}").read_bytes(), "wrong.opus") == suffix
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=clip.rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(clip.wave[None], format="fltp", layout="mono")
        frame.sample_rate = clip.rate
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert suffix_of((tmp_path / "a.m4a").read_bytes()) == ".m4a"
    assert suffix_of(b"anything", "x.G722") == ".g722"
    assert suffix_of(b"anything", "x.txt") is None


def test_memory_does_not_grow_with_the_file(samples: list[dict[str, str]], tmp_path: Path) -> None:
    clip = Path(samples[0]["audio"]).read_bytes()
    table = pa.table({"audio": [clip + bytes([n]) for n in range(250)] * 4})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, use_dictionary=False)
    before, held, read = pa.total_allocated_bytes(), 0, 0
    reader = EmbeddedAudio()
    for row in range(1000):
        read += len(reader.read(Embedded(tmp_path / "a.parquet", "audio", row))[0])
        held = max(held, pa.total_allocated_bytes() - before)
    assert read > 20e6
    assert held < read / 4
