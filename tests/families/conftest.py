"""The environment with coqui-tts, where there is one, and real clips as filtered samples."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tts_assets.artifacts import ArtifactStore, Build, SampleManifest

VARIABLE = "COQUI_PYTHON"


@pytest.fixture(scope="session")
def coqui() -> Path:
    """The interpreter that ``COQUI_PYTHON`` names; tests that train with it skip without."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"{VARIABLE} names no interpreter with coqui-tts (docs/families.md)")
    return Path(named)


@pytest.fixture
def kept(clips: Path, tmp_path: Path) -> Path:
    """``kept.jsonl`` of the clips, as the filters write it: absolute paths, and ids."""
    rows = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    lines = [
        json.dumps(row | {"wav_path": str(clips / row["wav_path"]), "id": row["wav_path"]}) + "\n"
        for row in rows
    ]
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(lines))
    return path


def publish_samples(store: ArtifactStore, kept: Path, corpus: str) -> SampleManifest:
    build = Build("filtered_samples", {}, {}, "1", partition=corpus)
    folder = store.work_folder(build) / "result"
    folder.mkdir()
    (folder / "kept.jsonl").write_text(kept.read_text())
    count = len(kept.read_text().splitlines())
    facts = {"corpus": corpus, "samples_in": count, "kept": count, "rejected": 0, "reasons": {}}
    handle = store.publish(SampleManifest, build, folder, facts | {"hours": 0.01, "speakers": 1})
    assert isinstance(handle, SampleManifest)
    return handle
