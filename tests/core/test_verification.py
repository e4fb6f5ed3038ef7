"""Verification of artifacts: before use, on reuse, by servers, and by the scrub."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from dagster import AssetIn, AssetsDefinition, DagsterInstance, ExecuteInProcessResult, materialize

from jobs.storage import build_scrub_job
from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.core.test_artifacts import FACTS, build, publish
from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Checkpoint,
    EvaluationSuite,
    handle,
    verify,
    verify_folder,
)
from tts_assets.core.artifacts.verification import scrub
from tts_assets.core.audio import AudioPool
from tts_assets.doctor import __main__ as command
from tts_assets.orchestration.program_asset import Plan, Request, artifact_asset

CHECKPOINT = {
    "stage": "sft",
    "recipe": "voice",
    "steps": 1,
    "tokens": 1,
    "train_loss": 1.0,
    "parameters": 1,
    "vocabulary": "v",
    "codec": "c",
    "sample_rate": 16000,
    "token_rate": 50.0,
    "codebook_size": 256,
}
WEIGHTS = "weights " * 1000


def train(request: Request) -> Plan[Checkpoint]:
    def make(work: Path) -> dict[str, Any]:
        (work / "result" / "model.safetensors").write_text(WEIGHTS)
        return CHECKPOINT

    return Plan({"steps": 1}, make)


def convert(request: Request, checkpoint: Checkpoint) -> Plan[EvaluationSuite]:
    def make(work: Path) -> dict[str, Any]:
        weights = (checkpoint.path / "model.safetensors").read_text()
        (work / "result" / "suite.jsonl").write_text(weights)
        return {"texts": 1, "categories": {}}

    return Plan({}, make)


SFT = artifact_asset(["sft", "voice"], train, code_version="1")
SERVING = artifact_asset(
    ["serving", "voice"],
    convert,
    code_version="1",
    ins={"checkpoint": AssetIn(["sft", "voice"])},
)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "storage")


def run(store: ArtifactStore, made: AssetsDefinition) -> ExecuteInProcessResult:
    root = str(store.root)
    resources = {
        "store": ArtifactStoreResource(root=root),
        "io_manager": ArtifactIOManager(root=root),
    }
    with DagsterInstance.ephemeral() as instance:
        return materialize(
            [SFT, SERVING], instance=instance, resources=resources, selection=[made.key]
        )


def flip_byte(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(17)
        byte = stream.read(1)[0]
        stream.seek(17)
        stream.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("converted_before", [False, True])
def test_a_flipped_byte_in_a_checkpoint_stops_the_next_stage_until_the_remedy_is_followed(
    store: ArtifactStore, converted_before: bool
) -> None:
    run(store, SFT)
    if converted_before:
        run(store, SERVING)
    checkpoint = store.current("sft/voice")
    flip_byte(checkpoint.path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"model\.safetensors has changed since") as raised:
        run(store, SERVING)
    message = str(raised.value)
    assert message.startswith("sft/voice is damaged")
    with pytest.raises(ArtifactError, match="sft/voice is damaged"):
        run(store, SFT)  # reused

    followed = re.search(r"delete the folder (\S+) and materialize (\S+) again", message)
    assert followed is not None and followed[2] == "sft/voice"
    shutil.rmtree(followed[1])
    with pytest.raises(ArtifactError, match="sft/voice was deleted: materialize sft/voice again"):
        run(store, SERVING)
    run(store, SFT)
    run(store, SERVING)
    assert (store.current("serving/voice").path / "suite.jsonl").read_text() == WEIGHTS
    assert store.current("sft/voice").path == checkpoint.path


def test_the_second_verification_reads_no_file(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = publish(store, build())
    assert verify(store, found) == 4
    monkeypatch.setattr(handle, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
    assert verify(store, found) == 0
    assert verify_folder(found.path).content == found.content
    moved = ArtifactStore(store.root.rename(store.root.with_name("moved")))
    assert verify(moved, moved.current("evaluation_suite")) == 0


@pytest.mark.parametrize("change", ["time", "inode"])
def test_a_file_with_other_metadata_is_read_again(store: ArtifactStore, change: str) -> None:
    found = publish(store, build())
    verify(store, found)
    file = found.path / "suite.jsonl"
    before = file.stat()
    if change == "inode":
        shutil.copy2(file, file.with_name("copy"))
        file.with_name("copy").replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + (change == "time")))
    assert verify(store, found) == 4


def test_added_files_and_a_changed_manifest_are_noticed(store: ArtifactStore) -> None:
    found = publish(store, build())
    verify(store, found)
    added = found.path / "notes" / "README.md"
    added.parent.mkdir()
    added.write_text("mine")
    (found.path / "link").symlink_to(store.root)
    with pytest.raises(ArtifactError, match=r"README.md was added.*; delete this file") as raised:
        verify(store, found)
    assert "link was added to evaluation_suite" in str(raised.value)
    added.unlink()
    (found.path / "link").unlink()
    verify(store, found)
    manifest = found.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(found.content, "0" * 64))
    with pytest.raises(ArtifactError, match=r"manifest.json has changed"):
        verify_folder(found.path)


def test_a_copy_of_an_artifact_outside_of_a_store_is_verified(
    store: ArtifactStore, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(publish(store, build()).path, copy)
    verify_folder(copy)
    file = copy / "suite.jsonl"
    file.write_text("eno\n")
    with pytest.raises(ArtifactError, match=r"suite\.jsonl has changed"):
        verify_folder(copy)
    assert not list(tmp_path.rglob(".cache"))


def test_a_store_without_room_for_the_cache_is_verified(store: ArtifactStore) -> None:
    found = publish(store, build())
    store.caches.write_text("no folder")
    assert verify(store, found) == verify(store, found) == 4


def damage_unseen(file: Path) -> None:
    """Change a byte as a disk does: no metadata of the file shows it."""
    before = file.stat()
    file.write_text("eno\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_scrub_reports_all_damage_and_what_to_do(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, last = publish(store, build()), publish(store, build(partition="en"))
    new = publish(store, build(config={"a": 2}))
    for found in (old, new, last):
        verify(store, found)
    assert scrub(store).summary.startswith("3 artifacts, 0.00 GB: all files are")
    for found in (old, new):
        damage_unseen(found.path / "suite.jsonl")
    (last.path / "suite.jsonl").unlink()
    assert verify(store, new) == 0  # this damage shows in no metadata

    monkeypatch.setenv("TTS__PROJECT__STORAGE", str(store.root))
    assert command.main(["scrub"]) == 1
    shown = capsys.readouterr().out
    assert f"delete the folder {new.path} and materialize evaluation_suite again" in shown
    assert f"nothing current was made from: delete {old.path}" in shown
    assert "suite.jsonl is missing" in shown and "materialize evaluation_suite[en] again" in shown
    with pytest.raises(ArtifactError, match="has changed"):
        verify(store, new)
    for found in (old, new, last):
        shutil.rmtree(found.path)
    publish(store, build(config={"a": 2}))
    assert command.main(["scrub", "--asset", "evaluation_suite"]) == 0
    assert "1 artifacts" in capsys.readouterr().out


def test_the_job_scrub_fails_with_the_damaged_artifacts(store: ArtifactStore) -> None:
    job, resources = build_scrub_job(), {"store": ArtifactStoreResource(root=str(store.root))}
    found = publish(store, build())
    assert job.execute_in_process(resources=resources).success
    damage_unseen(found.path / "suite.jsonl")
    result = job.execute_in_process(resources=resources, raise_on_error=False)
    error = result.failure_data_for_node("read_storage")
    assert error is not None and "materialize evaluation_suite again" in str(error)


def test_a_scrub_covers_the_audio_pool(store: ArtifactStore) -> None:
    pool = AudioPool(store.audio_pool)
    name, unused = pool.put(b"clip", ".flac"), pool.put(b"another", ".flac")
    made = build()
    result = store.work_folder(made) / "result"
    result.mkdir()
    pl.DataFrame({"audio": ["x", name], "id": [1, 2]}).write_parquet(result / "clips.parquet")
    owner = store.publish(EvaluationSuite, made, result, FACTS)
    assert not scrub(store).problems
    for one in (name, unused):
        pool.path(one).write_bytes(b"noise")
    problems = dict.fromkeys(scrub(store).problems["the audio pool"])
    assert problems.keys() == {
        f"{pool.path(name)} has changed; delete this file, the folder {owner.path} and "
        "materialize evaluation_suite again",
        f"{pool.path(unused)} has changed; delete this file",
    }
    for one in (name, unused):
        pool.path(one).unlink()
    assert pool.put(b"clip", ".flac") == name
    assert not scrub(store).problems
