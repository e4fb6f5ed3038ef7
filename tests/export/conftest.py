"""A serving model with random weights, and its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.promotion.conftest import FIGURES
from tests.support.speaking import Speaking, publish_all, result_folder
from tts_assets.core.artifacts import ArtifactStore, Build, Report
from tts_assets.core.audio import read_wave
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.results import SampleResult, write_samples


def publish_report(speaking: Speaking) -> Report:
    """A report of ``speaking.serving`` with one synthesis, a clip of the demo."""
    build = Build("report/tiny", {"serving": speaking.serving}, {}, "1")
    folder = result_folder(speaking.store, build)
    (folder / "audio").mkdir()
    wave = read_wave(speaking.clips / "audio" / "digits" / "1.g722", 16000)
    write_flac(folder / "audio" / "one.flac", wave, 16000)
    sample = SampleResult(
        id="one",
        category="digits",
        text="one <two>",
        seed=42,
        heard="one",
        word_errors=1,
        words=2,
        character_errors=0,
        characters=4,
        seconds=1.0,
        ended=True,
        audio="audio/one.flac",
        values={"wer": 0.5},
    )
    write_samples(folder / "samples.jsonl", [sample])
    facts = {"recipe": "tiny", "texts": 1, "wer_by_category": {"digits": 0.5}, **FIGURES}
    handle = speaking.store.publish(Report, build, folder, facts)
    assert isinstance(handle, Report)
    return handle


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Speaking:
    return publish_all(ArtifactStore(tmp_path_factory.mktemp("storage")), clips)


@pytest.fixture(scope="session")
def report(speaking: Speaking) -> Report:
    return publish_report(speaking)
