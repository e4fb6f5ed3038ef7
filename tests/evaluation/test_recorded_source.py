"""The evaluation program scores a folder of clips of another TTS system."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tts_assets.core.artifacts.model_kinds import ReportFacts
from tts_assets.core.audio import Clip
from tts_assets.core.config import ConfigError
from tts_assets.evaluation.compare import compare
from tts_assets.evaluation.config import EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.evaluate import main
from tts_assets.evaluation.metric_runner import AUDIO_FOLDER, Synthesis, write_syntheses
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.results import read_samples
from tts_assets.evaluation.suite import SuiteText, write_suite

KEY = "conf-invalid"


def program(
    folder: Path, transcript: str, silent: bool = True, **evaluation: Any
) -> EvaluationProgram:
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
            suite=folder / "suite.jsonl",
            **{"metrics": ("words",), "window_seconds": 6.0} | evaluation,
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


def test_a_report_without_an_asr_model_omits_the_wer_and_states_it(
    recordings: dict[str, tuple[str, Clip]], tmp_path: Path
) -> None:
    transcript, clip = recordings[KEY]
    results = []
    for name in ("a", "b"):
        folder = tmp_path / name
        write_flac(folder / AUDIO_FOLDER / "elsewhere.flac", clip.wave, clip.rate)
        config = program(
            folder, transcript, whisper="none", metrics=("words", "pace", "truncation")
        )
        main([str(config.run_dir / "run.json")])
        results.append(config.run_dir / "result")
        facts = json.loads((config.run_dir / "result.json").read_text())
        assert facts["wer"] is None and facts["wer_by_category"] == {}
        assert ReportFacts.parse(facts, "facts").metrics["speaking_rate"] > 0
    audible, silent = read_samples(results[0])
    assert "wer" not in audible.values and audible.heard == "" and not audible.transcribed
    assert (audible.values["truncated"], silent.values["truncated"]) == (0.0, 1.0)
    page = (results[0] / "report.html").read_text()
    assert "No ASR model is configured: WER is not measured" in page
    assert "ASR transcript: no errors" not in page and ">WER<" not in page
    out = tmp_path / "comparison"
    out.mkdir()
    compared = compare(dict(zip(("a", "b"), results, strict=True)), config.evaluation, [], out)
    assert compared == {"baseline": "a", "candidate": "b"}
    assert "WER by category" not in (out / "comparison.html").read_text()


def test_a_missing_synthesis_is_reported(
    recordings: dict[str, tuple[str, Clip]], tmp_path: Path
) -> None:
    transcript, clip = recordings[KEY]
    write_flac(tmp_path / AUDIO_FOLDER / "elsewhere.flac", clip.wave, clip.rate)
    config = program(tmp_path, transcript, silent=False)
    with pytest.raises(ConfigError, match="'silent' was not synthesized with seed 42"):
        main([str(config.run_dir / "run.json")])
