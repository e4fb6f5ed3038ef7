"""A moved corpus, storage or checkout changes no bytes, and nothing is built again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from dagster import DagsterInstance, ExecuteInProcessResult, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.codec.conftest import VENDORED
from tts_assets.arrays import assets as arrays
from tts_assets.arrays.inworld import ArraysConfig
from tts_assets.codec import assets as codec
from tts_assets.codec.config import CodecConfig
from tts_assets.core.accounting import ValidationSplit, read_set_aside
from tts_assets.core.artifacts import ArtifactStore, Handle, RawCorpus
from tts_assets.core.audio import AudioPool
from tts_assets.core.compute import Shape
from tts_assets.corpora import assets as corpora
from tts_assets.corpora.config import CorpusConfig, DiscoveryConfig, FilterConfig, TextConfig
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.samples import (
    AudioFolders,
    Sample,
    located_samples,
    main,
    published_names,
    write_samples,
)

CORPUS = "clips"
DATA = ("raw_corpus", "speech_segments", "filtered_samples", "codec_shards", "code_arrays")
HALF = ValidationSplit(fraction=0.5)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", [CORPUS])
        yield instance


def build(instance: DagsterInstance, project: Path, ranks: int) -> ExecuteInProcessResult:
    """All data assets of ``project``, with its ``corpus`` and ``storage``."""
    config = CorpusConfig(path=Path("corpus"), reader="jsonl", language="en")
    shape, root = Shape(processes=ranks), str(project / "storage")
    found = Corpora({CORPUS: config}, DiscoveryConfig(), project)
    filters = FilterConfig(min_duration=0.75, min_snr=-10)
    codecs = CodecConfig(checkpoint=str(VENDORED), shard_samples=4)
    result = materialize(
        [
            *corpora.build_assets(found, filters, TextConfig(), shape),
            *codec.build_assets(codecs, HALF, shape, project),
            *arrays.build_assets(ArraysConfig(), HALF, None, project),
        ],
        instance=instance,
        partition_key=CORPUS,
        resources={
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
            "launcher": TorchrunLauncher(),
        },
    )
    assert all(check.passed for check in result.get_asset_check_evaluations())
    return result


def copy(clips: Path, project: Path) -> Path:
    """A project whose corpus has clips, a file that cannot be read, and one that is missing."""
    shutil.copytree(clips, project / "corpus")
    (project / "corpus" / "noise.wav").write_bytes(b"RIFF" + bytes(100))
    with (project / "corpus" / "samples.jsonl").open("a") as lines:
        for name in ("noise.wav", "missing.wav", "../outside.wav"):
            lines.write(json.dumps({"wav_path": name, "transcript": "nothing"}) + "\n")
    return project


def made(project: Path) -> dict[str, Handle]:
    store = ArtifactStore(project / "storage")
    return {asset: store.current(asset, CORPUS) for asset in DATA}


def flags(result: ExecuteInProcessResult, name: str) -> dict[str, bool]:
    return {
        asset: bool(result.asset_materializations_for_node(asset)[0].metadata[name].value)
        for asset in DATA
    }


@pytest.mark.slow
def test_two_paths_give_the_same_bytes_and_a_move_builds_nothing_again(
    instance: DagsterInstance, clips: Path, tmp_path: Path
) -> None:
    here, there = copy(clips, tmp_path / "here"), copy(clips, tmp_path / "far" / "away")
    first = build(instance, here, ranks=1)
    assert not any(flags(first, "unchanged").values())
    build(instance, there, ranks=2)
    ours, others = made(here), made(there)
    for asset in DATA:
        assert ours[asset].manifest.files == others[asset].manifest.files, asset
        assert ours[asset].content == others[asset].content
        if asset != "raw_corpus":  # its fingerprint has the folder, so that it is indexed again
            assert ours[asset].manifest.fingerprint == others[asset].manifest.fingerprint
    assert len(read_set_aside(ours["raw_corpus"].path / "set_aside.jsonl")) == 3
    for handle in ours.values():
        assert not [p for p in handle.path.iterdir() if holds(p, tmp_path)], handle

    moved = tmp_path / "moved"
    here.rename(moved)
    again = build(instance, moved, ranks=1)
    assert all(flags(again, "unchanged").values())
    assert flags(again, "reused") == {asset: asset != "raw_corpus" for asset in DATA}
    kept = made(moved)["filtered_samples"].path / "kept.jsonl"
    assert all(Path(s.wav_path).is_relative_to(moved) for s in located_samples(kept))
    assert all(Path(s.wav_path).is_file() for s in located_samples(kept))


def holds(path: Path, folder: Path) -> bool:
    """Whether a digested file names a folder."""
    return path.name != "manifest.json" and str(folder).encode() in path.read_bytes()


def test_a_missing_folder_is_an_error_with_corpus_path_and_remedy(tmp_path: Path) -> None:
    gone = AudioFolders("talks", tmp_path / "gone", tmp_path / "pool")
    with pytest.raises(
        FileNotFoundError, match=rf"'talks' .* {tmp_path}/gone, which does not"
    ) as e:
        gone.path("a.wav")
    assert "corpora.talks.path and materialize raw_corpus[talks]" in str(e.value)
    assert gone.path("/data/b.wav") == Path("/data/b.wav")
    assert gone.path("pool:ab/abc.flac") == tmp_path / "pool/ab/abc.flac"
    (tmp_path / "gone").mkdir()
    back = AudioFolders("talks", tmp_path / "gone", tmp_path / "pool")
    with pytest.raises(FileNotFoundError, match=r"gone/a\.wav, a clip of corpus 'talks', is gone"):
        back.existing("a.wav")
    with pytest.raises(FileNotFoundError, match="gone from the audio pool"):
        back.existing("pool:ab/abc.flac")
    with pytest.raises(FileNotFoundError, match=r"unknown: materialize raw_corpus\[imported\]"):
        AudioFolders("imported").path("a.wav")


def test_names_are_unambiguous(tmp_path: Path) -> None:
    name = AudioPool(tmp_path / "pool").put(b"RIFF", ".wav")
    rows = pl.DataFrame(
        {
            "audio": ["a b.wav", "/data/c.wav", "pool:own.wav", name],
            "pooled": [False, False, False, True],
        }
    ).with_columns(wav_path=published_names())
    audio = AudioFolders("c", tmp_path, tmp_path / "pool")
    wanted = [tmp_path / "a b.wav", Path("/data/c.wav"), tmp_path / "pool:own.wav"]
    wanted += [tmp_path / "pool" / name]
    assert [audio.path(name) for name in rows["wav_path"]] == wanted
    assert [Path(path) for path in rows.select(audio.paths("wav_path")).to_series()] == wanted


def test_a_list_is_printed_with_absolute_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_samples(tmp_path / "kept.jsonl", [Sample(id="a", wav_path="wavs/ä.wav", transcript="ä")])
    main([str(tmp_path / "kept.jsonl")])
    line = json.loads(capsys.readouterr().out)
    assert line == {
        **Sample(id="a", wav_path=str(tmp_path / "wavs/ä.wav"), transcript="ä").model_dump()
    }


def test_artifacts_of_another_version_are_named(store: ArtifactStore, clips: Path) -> None:
    from tests.corpora.segments.conftest import index_recordings
    from tts_assets.core.artifacts import ArtifactError, open_artifact

    corpus = index_recordings(clips, store)
    assert isinstance(corpus, RawCorpus)
    path = corpus.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["audio_pool"] = "/storage/audio"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"unknown key 'audio_pool'.*materialize raw_corpus"):
        open_artifact(corpus.path)
