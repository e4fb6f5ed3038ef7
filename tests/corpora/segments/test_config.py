"""Invalid settings are rejected with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tts_assets.audio_models.whisper import model_folder
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig


@pytest.mark.parametrize(
    ("language", "segments", "remedy"),
    [
        ("de", {}, "segments.model = 'large-v3'"),
        ("es-MX", {"model": "small.en"}, "name a multilingual model"),
        ("en", {"detect_language": True}, "name a multilingual model"),
        ("en", {"min_seconds": 12.0}, "raise max_seconds"),
        ("en", {"margin": 1.0}, "write margin = 0.2"),
        ("en", {"longest_pause": 0.1}, "greater than or equal to 0.15"),
        ("en", {"loudness": -90.0}, r"write -23.0 \(EBU R128\)"),
        ("en", {"longest_pauze": 0.3}, "did you mean 'longest_pause'"),
    ],
)
def test_invalid_settings_are_rejected(
    language: str, segments: dict[str, Any], remedy: str
) -> None:
    values = {"path": "talks", "reader": "speakers", "language": language, "segments": segments}
    with pytest.raises(ConfigError, match=remedy):
        CorpusConfig.parse(values, "dagster_project.toml")


def test_a_multilingual_model_supports_every_language() -> None:
    values = {
        "path": "talks",
        "reader": "speakers",
        "language": "de",
        "segments": {"model": "large-v3", "loudness": "none"},
    }
    segments = CorpusConfig.parse(values, "dagster_project.toml").segments
    assert segments is not None
    assert segments.model == "large-v3"


def test_a_missing_model_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="name the folder of a CTranslate2 model"):
        model_folder("no-such-model", tmp_path)
    with pytest.raises(ValueError, match="name the folder of a CTranslate2 model"):
        model_folder("nobody/no-such-model", tmp_path)
