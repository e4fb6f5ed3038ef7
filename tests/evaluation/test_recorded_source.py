"""The evaluation program scores a folder of clips of another TTS system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tts_assets.core.audio import Clip
from tts_assets.core.config import ConfigError
from tts_assets.evaluation.config import EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.evaluate import main
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.results import read_samples
from tts_assets.evaluation.speech_sources import AUDIO_FOLDER, Synthesis, write_syntheses
from tts_assets.evaluation.suite import SuiteText, write_suite

KEY = "conf-invalid"


def program(folder: Path, transcript: str, silent: bool = True) -> EvaluationProgram:
    texts = [SuiteText(id=name, category="c", text=transcript) for name in ("audible", "silent")]
    write_suite(folder / "suite.jsonl", texts)
    write_syntheses(
        folder,
        [
            Synthesis(id="audible", seed=42, audio="elsewhere.flac"),
            *([Synthesis(id="silent", seed=42, audio=None, ended=False)] if silent else []),
        ],
    )
    config = EvaluationProgram(
        run_dir=folder / "run",
        name="other",
        evaluation=EvaluationConfig(
            suite=folder / "suite.jsonl", metrics=("words",), window_seconds=6.0
        ),
        synthesized=folder,
        suite=folder / "suite.jsonl",
        references=(),
    )
    config.run_dir.mkdir()
    (config.run_dir / "run.json").write_text(config.to_json())
    return config


def test_clips_are_scored_and_copied(
    recordings: dict[str, tuple[str, Clip]], tmp_path: Path
) -> None:
    transcript, clip = recordings[KEY]
    write_flac(tmp_path / AUDIO_FOLDER / "elsewhere.flac", clip.wave, clip.rate)
    config = program(tmp_path, transcript)
    main([str(config.run_dir / "run.json")])
    result = config.run_dir / "result"
    audible, silent = read_samples(result)
    assert audible.values["wer"] <= 0.25
    assert audible.audio is not None and (result / audible.audio).is_file()
    assert (silent.audio, silent.ended, silent.values["wer"]) == (None, False, 1.0)
    facts = json.loads((config.run_dir / "result.json").read_text())
    assert "real_time_factor" not in facts["metrics"], "the computing time is unknown"


def test_a_missing_synthesis_is_reported(
    recordings: dict[str, tuple[str, Clip]], tmp_path: Path
) -> None:
    transcript, clip = recordings[KEY]
    write_flac(tmp_path / AUDIO_FOLDER / "elsewhere.flac", clip.wave, clip.rate)
    config = program(tmp_path, transcript, silent=False)
    with pytest.raises(ConfigError, match="'silent' was not synthesized with seed 42"):
        main([str(config.run_dir / "run.json")])
