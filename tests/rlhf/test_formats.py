"""GRPO and the speech server with each prompt format, on bases with random weights."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file

from tests.rlhf.test_train import metrics, run
from tests.support.scripted_server import PolicyTokenEngine, scripted_server
from tests.support.speaking import Speaking, with_format
from tts_assets.core.artifacts import CheckpointFacts
from tts_assets.rlhf.config import RlhfProgram
from tts_assets.serving.config import SERVING_FILE
from tts_assets.serving.synthesis import SynthesisLine, Synthesizer
from tts_assets.speechlm.formats import FORMATS, SpeechFormat
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.vocabulary import declare_lexicon

every_format = pytest.mark.parametrize(
    "form",
    [pytest.param(one, marks=pytest.mark.slow) if one.frame else one for one in FORMATS.values()],
    ids=list(FORMATS),
)


@pytest.mark.slow
@every_format
def test_grpo_makes_two_steps(
    form: SpeechFormat, speaking: Speaking, program: Callable[..., RlhfProgram], tmp_path: Path
) -> None:
    base = with_format(speaking, form, tmp_path).serving
    made = program("run", steps=2, beta=0.04, prompts_per_step=2, generations=4)
    made = made.model_copy(update={"serving_model": base.path})
    (made.run_dir / "run.json").write_text(made.to_json())
    run(made)
    assert len(metrics(made)) == 2
    facts = CheckpointFacts.from_json(made.run_dir / "result.json")
    lm = SpeechLM.load(made.run_dir / "result", facts.codebook_size)
    assert lm.vocabulary.format is form
    assert facts.vocabulary == lm.vocabulary.digest == base.facts.vocabulary
    before, after = (
        load_file(folder / "model.safetensors") for folder in (base.path, made.run_dir / "result")
    )
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)


@every_format
def test_the_server_speaks(form: SpeechFormat, speaking: Speaking, tmp_path: Path) -> None:
    """The prompt is that of the format, and the audio that of the synthesizer."""
    synthesizer = Synthesizer.open(with_format(speaking, form, tmp_path).serving.path)
    line = SynthesisLine("I have 2 apples.", seed=4)
    with scripted_server(synthesizer, engine=PolicyTokenEngine) as server, server.http as client:
        body = {"model": "tiny", "input": line.text, "seed": line.seed, "response_format": "wav"}
        answer = client.post("/v1/audio/speech", json=body)
        assert answer.status_code == 200, answer.text
        prompt = server.engine.prompts[0]
    prompts = synthesizer.prompts
    (units,) = prompts.units(["I have two apples."])
    assert ("ˈ" in units) == bool(form.phonemes)
    written = prompts.tokenizer(
        prompts.prompt_string(units), add_special_tokens=prompts.adds_prefix
    )
    assert prompt.tolist() == written["input_ids"]
    (speech,) = synthesizer.synthesize([line], retries=1)
    sent, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    assert rate == synthesizer.sample_rate and len(sent) == len(speech.wave) > 0
    assert np.abs(sent - np.clip(speech.wave, -1, 1)).max() < 1e-3


@pytest.mark.slow
def test_rewards_compare_written_words_and_the_policy_reads_the_lexicon(
    speaking: Speaking, program: Callable[..., RlhfProgram], tmp_path: Path
) -> None:
    """Every prompt has a word of the lexicon; saved completions have the words as written."""
    base = with_format(speaking, FORMATS["plain"], tmp_path)
    lm = SpeechLM.load(base.checkpoint.path, base.checkpoint.facts.codebook_size)
    lexicon = {"two": "too", "three": "thrie", "six": "siks", "seven": "sevn", "nine": "nyne"}
    lm.vocabulary = declare_lexicon(lm.tokenizer, lm.vocabulary.codebook_size, lexicon)
    folder = tmp_path / "respelled"
    lm.save(folder)
    card = json.loads((base.serving.path / SERVING_FILE).read_text())
    card |= {"vocabulary": lm.vocabulary.digest, "codec_path": str(base.codec.path)}
    (folder / SERVING_FILE).write_text(json.dumps(card))
    synthesizer = Synthesizer.open(folder)
    request = synthesizer.request(SynthesisLine("One two."), 0)
    spelled = synthesizer.prompts.plain_ids("One too.").tolist()
    assert "".join(map(chr, spelled)) in "".join(map(chr, request.prompt.tolist()))
    made = program("run", steps=1, prompts_per_step=2, generations=4)
    made = made.model_copy(update={"serving_model": folder})
    (made.run_dir / "run.json").write_text(made.to_json())
    run(made)
    (kept,) = (made.run_dir / "result" / "rollouts").glob("*.json")
    texts = {record["text"] for record in json.loads(kept.read_text())}
    assert texts and not any(spelled in text for text in texts for spelled in lexicon.values())
    result = SpeechLM.load(made.run_dir / "result", lm.vocabulary.codebook_size)
    assert result.vocabulary == lm.vocabulary
