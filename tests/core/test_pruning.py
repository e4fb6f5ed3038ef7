"""Deletion of old versions: what is kept, what a killed process leaves, the command and the job."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.storage import PruneConfig, build_prune_job
from resources.artifact_store import ArtifactStoreResource
from tts_assets.core.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    Build,
    EvaluationSuite,
    Handle,
    Promoted,
    open_artifact,
    pruning,
)
from tts_assets.core.artifacts.pruning import DAY, Retention, prune, unused_versions
from tts_assets.core.artifacts.verification import artifact_folders
from tts_assets.doctor import __main__ as command

RETENTION = Retention(days=10, versions=1)
PROMOTION = {
    **{"voice": "v", "recipe": "r", "model": "m", "event": "first", "why": "", "previous": None},
    "when": "2026-01-01T00:00:00+00:00",
}


class Versions:
    """Versions of chains ``a`` -> ``b`` -> ``c`` in a store, each by its name, such as ``b2``."""

    def __init__(self, root: Path) -> None:
        self.store = ArtifactStore(root)
        self.made: dict[str, Handle] = {}

    def add(self, name: str, *inputs: str, days: float, select: bool = True) -> Handle:
        """Publish the version ``name``, which is ``days`` old; promotions begin with ``promoted``.

        The asset is the name without its digits.
        """
        asset = name.rstrip("0123456789")
        kind: type[Handle] = Promoted if asset == "promoted" else EvaluationSuite
        facts: Any = PROMOTION if kind is Promoted else {"texts": 1, "categories": {}}
        build = Build(asset, {one: self.made[one] for one in inputs}, {"version": name}, "1")
        result = self.store.work_folder(build) / "result"
        result.mkdir()
        (result / "data").write_text(name * 100)
        self.made[name] = self.store.publish(kind, build, result, facts, select)
        shutil.rmtree(result.parent)
        stamp = time.time() - days * DAY
        os.utime(self.made[name].path / MANIFEST, (stamp, stamp))
        return self.made[name]

    def left(self) -> set[str]:
        """The names of the versions that are stored; each is whole, and so are its inputs."""
        found = set()
        for folder in artifact_folders(self.store.root, self.store.root):
            handle = open_artifact(folder)
            handle.verify()
            for ref in handle.manifest.inputs.values():
                open_artifact(self.store.folder(ref.asset, ref.partition) / ref.fingerprint)
            found.add(handle.manifest.config["version"])
        return found

    def prune(self, delete: bool = True, retention: Retention = RETENTION) -> set[str]:
        """Prune; returns the names of the versions that are stored then."""
        prune(self.store, retention, time.time(), delete)
        return self.left()


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    """Three versions of three assets, of which those of number 3 are current."""
    made = Versions(tmp_path / "storage")
    for number, days in ((1, 90), (2, 60), (3, 20)):
        made.add(f"a{number}", days=days)
        made.add(f"b{number}", f"a{number}", days=days)
        made.add(f"c{number}", f"b{number}", days=days)
    return made


def test_nothing_is_deleted_by_default(versions: Versions) -> None:
    every = versions.left()
    found = prune(versions.store, RETENTION, time.time())
    assert versions.left() == every and len(found.versions) == 6
    size = sum(
        path.stat().st_size
        for name in ("a1", "b1", "c1", "a2", "b2", "c2")
        for path in versions.made[name].path.iterdir()
    )
    assert sum(freed for _, freed in found.versions) == size
    assert found.summary == f"6 old versions, {size / 1e9:.3f} GB, can be deleted"
    assert versions.prune() == {"a3", "b3", "c3"}


def test_the_inputs_of_kept_versions_are_kept(versions: Versions) -> None:
    versions.add("c4", "b1", days=1)  # current, made from the oldest input
    versions.add("d1", "c2", days=5)
    versions.add("d2", days=1)
    assert versions.prune() == {"a1", "b1", "c4", "a2", "b2", "c2", "d1", "d2", "a3", "b3"}


def test_promotions_and_all_that_they_came_from_are_kept(versions: Versions) -> None:
    versions.add("promoted1", "c1", days=80)
    versions.add("promoted2", "c2", days=50)
    assert versions.prune() == versions.left() >= {"a1", "b1", "c1", "promoted1", "promoted2"}


def test_age_and_count(versions: Versions) -> None:
    assert versions.prune(retention=Retention(days=70, versions=1)) == versions.left()
    assert {"a2", "a3"} <= versions.left() and "a1" not in versions.left()
    assert versions.prune(retention=Retention(days=0, versions=2)) >= {"a2", "b2", "c2"}
    experiment = versions.add("a9", days=30, select=False)
    versions.add("a8", days=40, select=False)
    assert versions.prune() == {"a3", "b3", "c3", "a9"}, "experiments are counted by themselves"
    marks = [path.name for path in experiment.path.parent.glob(".*.experiment")]
    assert marks == [f".{experiment.path.name}.experiment"]


def test_an_unfinished_program_keeps_its_inputs(versions: Versions) -> None:
    run = versions.store.root / ".work" / "c.all.123" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text(f'{{"arrays": {{"x": "{versions.made["b1"].path}"}}}}')
    assert versions.prune() == {"a1", "b1", "a3", "b3", "c3"}


def test_a_damaged_current_version_prevents_deletion(versions: Versions) -> None:
    (versions.made["c3"].path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="is current and cannot be read"):
        versions.prune()
    assert versions.made["a1"].path.is_dir()


@pytest.mark.parametrize("deleted", [0, 1, 4])
@pytest.mark.parametrize("instant", ["before", "within", "after"])
def test_a_killed_deletion_leaves_whole_versions(
    versions: Versions, monkeypatch: pytest.MonkeyPatch, deleted: int, instant: str
) -> None:
    """The process ends before, within or after the deletion of a folder in the trash."""
    remove, calls = shutil.rmtree, []

    def killed(folder: Path) -> None:
        calls.append(folder)
        if len(calls) <= deleted:
            remove(folder)
            return
        if instant == "within":
            (folder / MANIFEST).unlink()
        if instant == "after":
            remove(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(pruning.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        versions.prune()
    monkeypatch.undo()
    assert len(versions.left()) == 8 - deleted  # their inputs are whole, too
    assert versions.prune() == {"a3", "b3", "c3"}
    assert not list((versions.store.root / ".trash").iterdir())


def test_a_version_that_becomes_current_meanwhile_is_kept(versions: Versions) -> None:
    found = unused_versions(versions.store, RETENTION, time.time())
    users = [version for version in found if version.manifest.asset == "c"]
    assert found[: len(users)] == users, "users come first"
    versions.store.select(versions.made["c1"])
    with pruning.trash(versions.store) as folder:
        assert [pruning.discard(version, folder) for version in users].count(True) == 1
    assert {"c1", "c3"} <= versions.left() and "c2" not in versions.left()
    with pytest.raises(ArtifactError, match="was deleted as an old version: materialize c again"):
        versions.store.select(versions.made["c2"])


def test_the_command_and_the_job(
    versions: Versions, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTS__PROJECT__STORAGE", str(versions.store.root))
    monkeypatch.setenv("TTS__RETENTION__VERSIONS", "1")
    assert command.main(["prune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[-1].endswith("can be deleted")
    assert any(line.endswith(f"90 days  a {versions.made['a1'].path.name}") for line in lines)
    assert command.main(["prune", "--days", "70", "--delete"]) == 0
    assert "3 old versions" in capsys.readouterr().out and len(versions.left()) == 6
    assert command.main(["prune", "--versions", "0"]) == 1
    assert "greater than or equal to 1" in capsys.readouterr().err

    job = build_prune_job(Retention(days=30, versions=1))
    resources = {"store": ArtifactStoreResource(root=str(versions.store.root))}
    assert job.execute_in_process(resources=resources).success and len(versions.left()) == 6
    config = {"ops": {"old_versions": {"config": PruneConfig(delete=True).model_dump()}}}
    assert job.execute_in_process(config, resources=resources).success
    assert versions.left() == {"a3", "b3", "c3"}
