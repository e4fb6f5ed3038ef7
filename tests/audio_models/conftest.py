"""Whisper, loaded once."""

from __future__ import annotations

import pytest

from tts_assets.audio_models.transcription import Transcriber


@pytest.fixture(scope="session")
def transcriber() -> Transcriber:
    return Transcriber(window_seconds=15, threads=1)
