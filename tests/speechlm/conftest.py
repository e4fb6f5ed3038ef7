from __future__ import annotations

import pytest

from tts_assets.speechlm.config import BaseModel, LlamaSize, VocabularyConfig
from tts_assets.speechlm.model import SpeechLM, build

TINY = LlamaSize(hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=1)


@pytest.fixture(scope="session")
def tiny() -> SpeechLM:
    """A two-layer model over 300 codes, untrained; tests must not change its weights."""
    return build(BaseModel(llama=TINY), 300, VocabularyConfig(), seed=5)
