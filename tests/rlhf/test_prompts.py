from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.speaking import Speaking
from tts_assets.arrays.arrays import CodeTable
from tts_assets.evaluation.suite import SuiteText, write_suite
from tts_assets.rlhf.config import PromptsConfig
from tts_assets.rlhf.prompts import (
    Limits,
    PromptError,
    PromptSet,
    RolloutPrompt,
    check_languages,
    collect,
    read_prompts,
    read_texts,
    suite_texts,
)
from tts_assets.rlhf.reward_config import WerReward

ROOT = Path(__file__).resolve().parents[2]
FILE = PromptsConfig(texts=Path("x.txt"))
ROOMY = Limits(tokens=10_000, token_rate=50.0)


def test_file_texts_are_normalized_and_read_back(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("# a comment\nPress 1\n\n  goodbye \n")
    found = collect(FILE, read_texts(tmp_path / "x.txt"), {}, [], ROOMY)
    assert [prompt.text for prompt in found.prompts] == ["Press one", "goodbye"]
    found.write(tmp_path / "prompts.jsonl")
    assert read_prompts(tmp_path / "prompts.jsonl") == found.prompts


def test_line_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    text = "Press\u2028one\x85now"
    PromptSet([RolloutPrompt(text=text)]).write(tmp_path / "prompts.jsonl")
    assert [prompt.text for prompt in read_prompts(tmp_path / "prompts.jsonl")] == [text]
    write_suite(tmp_path / "suite.jsonl", [SuiteText(id="a", category="x", text=text)])
    assert suite_texts(tmp_path / "suite.jsonl") == [text]


def test_texts_of_the_suite_are_rejected_in_any_notation() -> None:
    with pytest.raises(PromptError, match=r"'3 7 1, nine\.'"):
        collect(FILE, ["goodbye", "3 7 1, nine."], {}, ["Three seven one nine"], ROOMY)


def test_the_demos_texts_are_not_in_its_suite() -> None:
    texts = read_texts(ROOT / "examples" / "texts" / "announcer_rlhf.txt")
    lines = (ROOT / "examples" / "suites" / "demo.jsonl").read_text().splitlines()
    found = collect(FILE, texts, {}, [json.loads(line)["text"] for line in lines], ROOMY)
    assert len(found.prompts) == len(set(texts)) == 240


def test_texts_that_are_too_long_are_counted() -> None:
    found = collect(FILE, ["one", "eleven", "eleven " * 60, "?!"], {}, [], ROOMY)
    assert [prompt.text for prompt in found.prompts] == ["one", "eleven"]
    assert found.left_out == {"no words to recognize": 1, "longer than 400 characters": 1}


def test_texts_without_words_are_left_out() -> None:
    found = collect(FILE, ["Mhm.", "<laugh>", "well"], {}, [], ROOMY)
    assert [prompt.text for prompt in found.prompts] == ["well"]
    assert found.left_out == {"no words to recognize": 2}


def voiced(speaking: Speaking, limits: Limits = ROOMY, **values: Any) -> PromptSet:
    config = PromptsConfig(corpora=("clips",), voice_prompts=True, **values)
    return collect(config, [], {"clips": speaking.arrays.path}, [], limits)


def test_a_suite_changes_the_digest_only_if_it_removes_a_prompt(speaking: Speaking) -> None:
    config = PromptsConfig(corpora=("clips",))
    arrays = {"clips": speaking.arrays.path}
    whole, other = (collect(config, [], arrays, suite, ROOMY) for suite in ([], ["unheard of"]))
    assert whole.digest == other.digest
    held_out = collect(config, [], arrays, [whole.prompts[0].text], ROOMY)
    assert held_out.left_out["in the evaluation suite"] > 0
    assert held_out.digest != whole.digest


def test_the_voice_prompt_is_another_clip_of_the_speaker(speaking: Speaking) -> None:
    table = CodeTable.of_split(speaking.arrays.path, "train")
    found = voiced(speaking, voice_seconds=(0.1, 60.0))
    assert len(found.prompts) == len(table)
    codes = {sample["id"]: tuple(own) for sample, own in table}
    for prompt in found.prompts:
        assert prompt.voice is not None
        assert prompt.voice.text != prompt.text
        assert prompt.voice.codes == codes[prompt.voice.source]


def test_voice_prompts_have_the_configured_length(speaking: Speaking) -> None:
    table = CodeTable.of_split(speaking.arrays.path, "train")
    middle = float(np.median(np.diff(table.bounds))) / 50.0
    found = voiced(speaking, voice_seconds=(0.1, middle))
    lengths = [len(prompt.voice.codes) / 50.0 for prompt in found.prompts if prompt.voice]
    assert len(lengths) == len(table) and max(lengths) <= middle
    nothing = {"no clip for its voice prompt": len(table)}
    with pytest.raises(PromptError, match=re.escape(str(nothing))):
        voiced(speaking, voice_seconds=(500.0, 600.0))


def test_a_voice_prompt_of_any_speaker(speaking: Speaking, tmp_path: Path) -> None:
    """If each speaker has one clip, the voice prompt is a clip of another speaker."""
    folder = tmp_path / "arrays"
    shutil.copytree(speaking.arrays.path, folder)
    lines = (folder / "train_samples.jsonl").read_text().splitlines()
    alone = [json.loads(line) | {"speaker_id": str(row)} for row, line in enumerate(lines)]
    (folder / "train_samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in alone))
    config = PromptsConfig(corpora=("clips",), voice_prompts=True, voice_seconds=(0.1, 60.0))
    with pytest.raises(PromptError, match="no clip for its voice prompt"):
        collect(config, [], {"clips": folder}, [], ROOMY)
    config = config.model_copy(update={"voice_speaker": "any"})
    found = collect(config, [], {"clips": folder}, [], ROOMY)
    assert len(found.prompts) == len(lines)
    assert all(prompt.voice and prompt.voice.text != prompt.text for prompt in found.prompts)


def test_prompts_without_room_for_an_answer_are_left_out(speaking: Speaking) -> None:
    everything = voiced(speaking, voice_seconds=(0.1, 60.0)).prompts
    sizes = sorted(len(p.voice.codes) for p in everything if p.voice)
    found = voiced(speaking, Limits(sizes[len(sizes) // 2] + 100, 50.0), voice_seconds=(0.1, 60.0))
    assert found.left_out["no room for an answer"] > 0
    assert max(len(p.voice.codes) for p in found.prompts if p.voice) < sizes[-1]


def test_language_tags_may_have_a_region() -> None:
    config = FILE.model_copy(update={"language": "en-GB", "languages": ("en",)})
    found = collect(config, ["three colours"], {}, [], ROOMY)
    check_languages(found.prompts, [WerReward()])


def test_languages_unknown_to_whisper_are_rejected() -> None:
    prompts = [RolloutPrompt(text="well", language="unknown")]
    with pytest.raises(PromptError, match="unknown, which Whisper does not know"):
        check_languages(prompts, [WerReward(model="large-v3")])


def test_no_prompt_left_is_an_error() -> None:
    with pytest.raises(PromptError, match="no prompt is left"):
        collect(PromptsConfig(texts=Path("x"), languages=("fr",)), ["one"], {}, [], ROOMY)
