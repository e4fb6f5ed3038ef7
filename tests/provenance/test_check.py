"""The command that looks for the watermark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tts_assets.audio_models.watermark import mark
from tts_assets.core.audio import Clip
from tts_assets.provenance.__main__ import main


def test_marked_files_and_recordings(
    recordings: dict[str, tuple[str, Clip]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = recordings["auth-incorrect"][1]
    plain, marked, mixed = (tmp_path / name for name in ("plain.wav", "marked.mp3", "mixed.flac"))
    soundfile.write(plain, clip.wave, clip.rate)
    synthetic = mark(clip.wave, clip.rate)
    soundfile.write(marked, synthetic, clip.rate)
    repeats = round(10 / clip.seconds)
    long = [*[clip.wave] * repeats, *[synthetic] * repeats]
    soundfile.write(mixed, np.concatenate(long), clip.rate)

    short = tmp_path / "short.wav"
    soundfile.write(short, synthetic[: clip.rate], clip.rate)
    assert main(["check", str(short)]) == 0
    assert "too short for a proof)" in capsys.readouterr().out
    assert main(["check", str(marked)]) == 0
    assert "watermark found (score" in capsys.readouterr().out
    assert main(["check", str(plain), str(marked)]) == 1
    assert f"{plain}: no watermark" in capsys.readouterr().out
    assert main(["check", str(mixed), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["windows"], found["marked"]) == (2, 1)


def test_files_that_cannot_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16_000), 16_000)
    assert main(["check", str(silent)]) == 1
    assert "too short to judge" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "none.wav")]) == 2
    assert "no such file" in capsys.readouterr().err
