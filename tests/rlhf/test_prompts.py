from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.speaking import Speaking
from tts_assets.arrays.arrays import CodeTable
from tts_assets.rlhf.config import PromptsConfig
from tts_assets.rlhf.prompts import PromptError, collect, read_prompts, read_texts

ROOT = Path(__file__).resolve().parents[2]
FILE = PromptsConfig(texts=Path("x.txt"))


def test_file_texts_are_normalized_and_survive_the_disk(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("# a comment\nPress 1\n\n  goodbye \n")
    found = collect(FILE, read_texts(tmp_path / "x.txt"), {}, [])
    assert [prompt.text for prompt in found.prompts] == ["Press one", "goodbye"]
    found.write(tmp_path / "prompts.jsonl")
    assert read_prompts(tmp_path / "prompts.jsonl") == found.prompts


def test_text_of_the_suite_is_refused_whatever_its_form() -> None:
    with pytest.raises(PromptError, match=r"'3 7 1, nine\.'"):
        collect(FILE, ["goodbye", "3 7 1, nine."], {}, ["Three seven one nine"])


def test_the_demos_texts_are_not_in_its_suite() -> None:
    texts = read_texts(ROOT / "examples" / "texts" / "announcer_rlhf.txt")
    lines = (ROOT / "examples" / "suites" / "announcer.jsonl").read_text().splitlines()
    found = collect(FILE, texts, {}, [json.loads(line)["text"] for line in lines])
    assert len(found.prompts) == len(set(texts)) == 240


def test_too_long_and_too_short_are_counted() -> None:
    config = PromptsConfig(texts=Path("x.txt"), min_characters=4, max_characters=8)
    found = collect(config, ["one", "eleven", "eleven twelve", "?!"], {}, [])
    assert [prompt.text for prompt in found.prompts] == ["eleven"]
    assert found.left_out == {"shorter than min_characters": 2, "longer than max_characters": 1}


def test_transcripts_come_with_another_clip_of_the_speaker(speaking: Speaking) -> None:
    config = PromptsConfig(corpora=("clips",), voice_prompts=True)
    table = CodeTable.of_split(speaking.arrays.path, "train")
    examined = table.samples[0]["transcript"]
    found = collect(config, [], {"clips": speaking.arrays.path}, [examined])
    assert len(found.prompts) + found.left_out["in the evaluation suite"] == len(table)
    codes = {sample["id"]: tuple(own) for sample, own in table}
    for prompt in found.prompts:
        assert prompt.voice is not None
        assert prompt.voice.text != prompt.text
        assert prompt.voice.codes == codes[prompt.voice.source]


def test_no_prompt_left_is_an_error() -> None:
    with pytest.raises(PromptError, match="no prompt is left"):
        collect(PromptsConfig(texts=Path("x"), languages=("fr",)), ["one"], {}, [])
