from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tts_assets.core.audio import Clip, resample
from tts_assets.serving.config import Voice
from tts_assets.serving.served_model import SynthesisError
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.serving.voices import VoiceRegistry


def audio(wave: np.ndarray, form: str = "WAV", rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=form)
    return buffer.getvalue()


@pytest.fixture
def registry(synthesizer: Synthesizer) -> VoiceRegistry:
    return VoiceRegistry(synthesizer, None, 10)


def test_long_uploads_are_not_decoded_whole(registry: VoiceRegistry) -> None:
    """The 20 minutes are 77 MB of samples. The allowed 30 s are 2 MB."""
    bomb = audio(np.zeros(20 * 60 * 16_000, dtype=np.int16), "FLAC")
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(SynthesisError, match="more than 30 s; cut it"):
            registry.make(bomb, "one", "en")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_voice_from_each_file_format(
    registry: VoiceRegistry, recordings: dict[str, tuple[str, Clip]], form: str
) -> None:
    text, clip = recordings["agent-incorrect"]
    wave = resample(clip.wave, clip.rate, 24_000)
    voice = registry.make(audio(wave, form, 24_000), text, "en")
    assert 0 <= len(voice.codes) - 50 * clip.seconds <= 9  # mp3 pads with up to 0.15 s


def test_upload_formats_are_checked_by_content(registry: VoiceRegistry, clips: Path) -> None:
    """FFmpeg can read the first two, and would open the file that the playlist names."""
    recording = (clips / "audio" / "digits" / "1.g722").resolve()
    playlist = f"ffconcat version 1.0\nfile '{recording}'\n".encode()
    for bytes_ in (recording.read_bytes(), playlist, audio(np.ones(32_000), "AIFF")):
        with pytest.raises(SynthesisError, match="not readable as audio"):
            registry.make(bytes_, "one", "en")


def test_implausible_sample_rate_is_rejected(registry: VoiceRegistry) -> None:
    with pytest.raises(SynthesisError, match="1000000 Hz"):
        registry.make(audio(np.ones(32_000), rate=1_000_000), "one", "en")


def test_stored_voices_are_restored_for_the_same_codec_only(
    synthesizer: Synthesizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    VoiceRegistry(synthesizer, tmp_path, 10).add("ann", Voice(text="one", codes=(1, 2, 255)))
    kept = (tmp_path / "ann.json").read_text()
    assert VoiceRegistry(synthesizer, tmp_path, 10)["ann"].codes == (1, 2, 255)  # type: ignore[union-attr]
    assert not caplog.records

    codec, taken = synthesizer.card.codec, next(iter(synthesizer.card.voices))
    wrong = {
        "other": (kept.replace(codec, "f" * 64), "codec ffffffffffff"),
        "beyond": (kept.replace("255", "256"), "codes beyond the 256"),
        "old": (kept.replace(f'"codec": "{codec}",', ""), "codec: Field required"),
        "torn": (kept[:20], "not JSON"),
        taken: (kept, "has a voice of this name"),
        "default": (kept, "has a voice of this name"),
    }
    for name, (text, _) in wrong.items():
        (tmp_path / f"{name}.json").write_text(text)
    registry = VoiceRegistry(synthesizer, tmp_path, 10)
    assert set(registry.voices) == {"default", "ann", *synthesizer.card.voices}
    assert registry[taken] == synthesizer.card.voices[taken] and registry["default"] is None
    for name, (_, reason) in wrong.items():
        assert any(f"{name}.json" in line and reason in line for line in caplog.messages), name
