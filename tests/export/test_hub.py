"""``tts-assets export hub``: plain transformers loads the folder; consent that allows it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.support.speaking import Speaking
from tts_assets.core.artifacts import Report
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import Consent, ConsentError, VoiceConsent
from tts_assets.export.hub import gather, write_repository
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request, generate

ANN = Consent(who="Ann Example", purpose="our | guide", publication=True)
TEXT = "good morning"


@pytest.fixture(scope="module")
def repository(
    report: Report, speaking: Speaking, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "a voice"
    source = gather(report, speaking.serving.content, {"clips": ANN}, "some/base")
    write_repository(source, folder)
    return folder


@pytest.mark.slow
def test_ten_lines_synthesize_without_this_project(repository: Path, tmp_path: Path) -> None:
    program = repository / "example.py"
    assert len(program.read_text().splitlines()) == 10
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-I", str(program), str(repository)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    wave, rate = soundfile.read(tmp_path / "speech.wav")
    assert rate == 16000 and len(wave) % 320 == 0 and len(wave) >= 10 * 320
    assert np.isfinite(wave).all() and np.abs(wave).max() > 0


def test_transformers_computes_what_the_serving_model_does(
    repository: Path, speaking: Speaking
) -> None:
    """Greedy tokens and waveforms are the same."""
    served = Synthesizer.open(speaking.serving.path)
    lm, prompts = served.engine.lm, served.prompts  # type: ignore[attr-defined]
    sampling = SamplingConfig(temperature=0, repetition_penalty=1.0, max_tokens=30)
    [expected] = generate(lm, [Request(prompts.inference(TEXT), 0)], sampling)
    tokenizer = AutoTokenizer.from_pretrained(repository)
    text = prompts.prompt_string(TEXT)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=prompts.adds_prefix)
    assert ids["input_ids"][0].tolist() == prompts.inference(TEXT).tolist()
    model: Any = AutoModelForCausalLM.from_pretrained(repository)
    output = model.generate(**ids, do_sample=False, repetition_penalty=1.0, max_new_tokens=30)
    assert output[0, ids["input_ids"].shape[1] :].tolist() == expected.token_ids.tolist()
    codec = AutoModel.from_pretrained(repository, subfolder="decoder")
    with torch.inference_mode():
        wave = codec.decode(torch.tensor(expected.codes)[None, None]).audio_values
    [own] = served.codec.decode([expected.codes])
    assert np.allclose(wave.numpy().ravel(), own, atol=1e-5)


def test_the_cards_say_whose_voice_it_is(repository: Path) -> None:
    card = (repository / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "other" and head["license_name"] == "CC-BY-SA-3.0"
    assert head["base_model"] == "some/base" and head["language"] == ["en"]
    assert "Ann Example: our \\| guide" in card and "| WER, digits | 50.0% |" in card
    [sample] = (repository / "samples").iterdir()
    assert f"[one &lt;two&gt;](samples/{sample.name})" in card
    data = (repository / "DATA.md").read_text()
    assert "| clips | 0.01 | 10 | 3 | 1 | CC-BY-SA-3.0 |" in data and "Ann Example" in data


def test_the_folder_is_a_serving_model_of_this_project(repository: Path) -> None:
    served = Synthesizer.open(repository)
    assert served.card.codec_path == Path("codec") and served.card.recipe == "tiny"
    assert served.codec.sample_rate == 16000


@pytest.mark.parametrize(
    ("consent", "message"),
    [
        (None, "corpora.clips has no consent"),
        (ANN.model_copy(update={"publication": False}), "Ann Example .* add publication = true"),
        (ANN.model_copy(update={"until": date(2026, 11, 29)}), "ended on 2026-11-29"),
    ],
)
def test_without_consent_nothing_is_written(
    report: Report,
    speaking: Speaking,
    tmp_path: Path,
    consent: VoiceConsent | None,
    message: str,
) -> None:
    source = gather(report, speaking.serving.content, {"clips": consent})
    with pytest.raises(ConsentError, match=message):
        write_repository(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_of_another_model_and_a_used_folder_are_refused(
    report: Report, speaking: Speaking, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="the report of tiny is of another model"):
        gather(report, "0" * 64, {})
    (tmp_path / "mine.txt").touch()
    source = gather(report, speaking.serving.content, {"clips": "synthetic"})
    with pytest.raises(ConfigError, match="has files: choose a new folder"):
        write_repository(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
