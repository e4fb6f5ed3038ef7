"""Artifacts: fingerprints, atomic publishing under kill -9, verification, the current pointer."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Build,
    EvaluationSuite,
    atomic_write,
    open_artifact,
)

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"texts": 1, "categories": {"digits": 1}}


def build(**changes: object) -> Build:
    values: dict[str, object] = {"config": {"a": 1}, "code_version": "1", **changes}
    return Build(asset="evaluation_suite", inputs={}, **values)  # type: ignore[arg-type]


def publish(store: ArtifactStore, made: Build, text: str = "one\n") -> EvaluationSuite:
    result = store.work_folder(made) / "result"
    result.mkdir(exist_ok=True)
    (result / "suite.jsonl").write_text(text)
    handle = store.publish(EvaluationSuite, made, result, FACTS)
    assert isinstance(handle, EvaluationSuite)
    return handle


def test_published_is_found_and_current(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert store.find(build()) is None
    handle = publish(store, build())
    assert handle.facts.texts == 1
    assert store.find(build()).content == handle.content
    assert store.current("evaluation_suite").path == handle.path
    handle.verify()


def test_content_depends_on_bytes_and_fingerprint_on_inputs_and_configuration(
    tmp_path: Path,
) -> None:
    store = ArtifactStore(tmp_path)
    first = publish(store, build())
    second = publish(store, build(config={"a": 2}))
    other = publish(store, build(config={"a": 3}), "two\n")
    assert first.path != second.path
    assert first.content == second.content != other.content
    for changed in ({"config": {"a": 9}}, {"code_version": "2"}, {"seed": 1}, {"partition": "p"}):
        assert build(**changed).fingerprint != build().fingerprint
    downstream = [
        Build(asset="b", inputs={"suite": item}, config={}, code_version="1").fingerprint
        for item in (first, second, other)
    ]
    assert downstream[0] == downstream[1] != downstream[2]


def test_current_without_an_artifact_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"code_arrays\[x\].*materialize it first"):
        ArtifactStore(tmp_path).current("code_arrays", "x")


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    file = publish(ArtifactStore(tmp_path), build()).path / "suite.jsonl"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("on" if damage == "cut" else "eno\n")
    with pytest.raises(ArtifactError, match=r"suite\.jsonl"):
        open_artifact(file.parent).verify()


def test_an_empty_result_is_rejected(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    result = store.work_folder(build()) / "result"
    result.mkdir()
    with pytest.raises(ArtifactError, match="nothing was written"):
        store.publish(EvaluationSuite, build(), result, FACTS)


def test_another_kind_is_rejected(tmp_path: Path) -> None:
    from tts_assets.core.artifacts import CodeArrays

    handle = publish(ArtifactStore(tmp_path), build())
    with pytest.raises(ArtifactError, match=r"'evaluation_suite'.*'code_arrays'"):
        CodeArrays.open(handle.path)


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def test_files_atomic_write_have_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    """safetensors and tempfile create files of mode 0600 and folders of mode 0700."""
    with atomic_write(tmp_path / "model.safetensors") as aside:
        save_file({"w": numpy.zeros(2)}, aside)
    with atomic_write(tmp_path / "folder") as aside:
        (aside / "part").mkdir(0o700, parents=True)
        save_file({"w": numpy.zeros(2)}, aside / "part" / "model.safetensors")
        (aside / "run.sh").touch(0o700)
    assert permissions(tmp_path / "model.safetensors") == 0o666 & ~umask
    assert permissions(tmp_path / "folder" / "part" / "model.safetensors") == 0o666 & ~umask
    assert permissions(tmp_path / "folder" / "part") == 0o777 & ~umask
    assert permissions(tmp_path / "folder" / "run.sh") == 0o700 | 0o666 & ~umask


def test_published_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    store = ArtifactStore(tmp_path)
    result = store.work_folder(build()) / "result"
    result.mkdir(0o700)
    save_file({"w": numpy.zeros(2)}, result / "model.safetensors")
    (result / "clips").mkdir(0o700)
    (result / "clips" / "here.flac").touch(0o600)
    (result / "link").symlink_to("nowhere")
    published = store.publish(EvaluationSuite, build(), result, FACTS).path
    assert permissions(published) == permissions(published / "clips") == 0o777 & ~umask
    for name in ("model.safetensors", "clips/here.flac", "manifest.json"):
        assert permissions(published / name) == 0o666 & ~umask


def test_temporary_files_of_a_killed_writer_are_not_published(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    result = store.work_folder(build()) / "result"
    for left in (".model.safetensors.4711.4711.tmp", "audio/.clips.4711.4712.tmp/one.flac"):
        (result / left).parent.mkdir(parents=True, exist_ok=True)
        (result / left).write_text("half")
    (result / "audio/.hidden").write_text("whole")
    handle = publish(store, build())
    assert set(handle.manifest.files) == {"suite.jsonl", "audio/.hidden"}
    handle.verify()


PUBLISH_FOR_EVER = """
import sys
from pathlib import Path
from tests.core.test_artifacts import build, publish
from tts_assets.core.artifacts import ArtifactStore

store = ArtifactStore(Path(sys.argv[1]))
first = int(sys.argv[2])
for number in range(first, first + 100_000):
    publish(store, build(config={"number": number}), f"{number}\\n" * 2000)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_time_leaves_complete_artifacts(tmp_path: Path) -> None:
    """Ten kills at different moments: whatever lies under its final name is complete."""
    store = ArtifactStore(tmp_path)
    for attempt in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISH_FOR_EVER, str(tmp_path), str(attempt * 100_000)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()  # one is published, the next under way
        time.sleep(0.003 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    published = [path for path in store.folder("evaluation_suite").iterdir() if path.is_dir()]
    finals = [path for path in published if not path.is_symlink()]
    assert len(finals) >= 10
    for path in finals:
        open_artifact(path).verify()
    store.current("evaluation_suite").verify()
