from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from tests.support.speaking import SAMPLING, Speaking, publish_all, publish_serving
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.corpora.config import Consent
from tts_assets.provenance.manifest import Keys, make_keys
from tts_assets.serving.config import ServingConfig
from tts_assets.serving.verify import Sources

ANN = Consent(who="Ann Ü", purpose="tests", until=date(2999, 1, 1), basis="contract 7")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path / "keys", "Museum of Tests")


@pytest.fixture
def speaking(tmp_path: Path, clips: Path) -> Speaking:
    """A storage with a serving model of the corpus ``clips``, for which Ann gave her consent."""
    made = publish_all(ArtifactStore(tmp_path / "storage"), clips)
    sources = Sources(made.checkpoint, made.codec, {"clips": made.arrays})
    config = ServingConfig(sampling=SAMPLING, check_texts=("one",))
    serving = publish_serving(made.store, sources, config, {"clips": ANN})
    return Speaking(made.store, made.codec, made.arrays, made.checkpoint, serving, clips)
