"""Fixtures of all tests: real utterances from the demo corpus, and an empty artifact store."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.audio import Clip, read_clip

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes of tests share the cores, and waiting OpenMP threads take them from each other: 180
    # short syntheses took 30 s with one thread, and over ten minutes with two on a busy core.
    # Programs that tests launch inherit this.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without bytecode, every process of tests rewrites the assertions of all modules again (6 of 20 s
# of the collection), and every program that a test launches compiles all of tts_assets.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

TESTS = Path(__file__).resolve().parent
CORPUS = TESTS.parent / "examples" / "corpora" / "asterisk_en"
# Five words of 0.7 to 1 s and eight sentences of 2 to 5 s: 32 s in all.
CLIPS = (
    *(f"digits/{number}" for number in range(1, 6)),
    "agent-incorrect",
    "agent-newlocation",
    "auth-incorrect",
    "cannot-complete-as-dialed",
    "check-number-dial-again",
    "conf-invalid",
    "conf-noempty",
    "demo-nomatch",
)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder of 13 utterances: ``audio/*.g722`` and ``samples.jsonl`` beside."""
    folder = tmp_path_factory.mktemp("clips")
    lines = (CORPUS / "samples.jsonl").read_text().splitlines()
    by_key = {json.loads(line)["original_data"]["key"]: line for line in lines}
    for key in CLIPS:
        source = Path(json.loads(by_key[key])["wav_path"])
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CORPUS / source, folder / source)
    (folder / "samples.jsonl").write_text("".join(by_key[key] + "\n" for key in CLIPS))
    return folder


@pytest.fixture(scope="session")
def recordings(clips: Path) -> dict[str, tuple[str, Clip]]:
    """Text and audio of each clip by its key."""
    rows = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    return {
        row["original_data"]["key"]: (row["transcript"], read_clip(clips / row["wav_path"]))
        for row in rows
    }


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "storage")


# The folders that take longest, in this order. They start first, so that no process ends long after
# the others: CPU seconds are 860, 600, 450, 320, 240 and 210 of 3,500 (2026-11-30).
LONG_FOLDERS = ("pipeline", "sft", "serving", "sensors", "rlhf", "evaluation")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start long folders first in several processes; skip ``gpu`` tests without a CUDA device."""
    if hasattr(config, "workerinput"):  # of pytest-xdist
        ranks = {name: rank for rank, name in enumerate(LONG_FOLDERS)}
        items.sort(key=lambda item: ranks.get(item.path.relative_to(TESTS).parts[0], len(ranks)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a folder of tests in one process, so that its fixtures are made once."""
    from xdist.scheduler import LoadScopeScheduling

    class FolderScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "/".join(nodeid.split("/")[:2])

    return FolderScheduling(config, log)
