from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.speaking import Speaking, publish_all
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.serving.synthesis import Synthesizer


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Speaking:
    return publish_all(ArtifactStore(tmp_path_factory.mktemp("storage")), clips)


@pytest.fixture(scope="session")
def synthesizer(speaking: Speaking) -> Synthesizer:
    return Synthesizer.open(speaking.serving.path)
