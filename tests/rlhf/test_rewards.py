from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.speaking import Speaking
from tts_assets.audio import read_wave
from tts_assets.codec.model import Codec
from tts_assets.config import ConfigError
from tts_assets.rlhf.config import (
    DnsmosReward,
    PromptsConfig,
    RateReward,
    RlhfRecipe,
    SimilarityReward,
    WerReward,
)
from tts_assets.rlhf.rewards import EMPTY_WER, Intelligibility, Panel, SpeakingRate, Spoken
from tts_assets.serving.synthesis import Synthesizer

RATE = 16_000
VENDORED_CODEC = Path(__file__).resolve().parents[2] / "examples/codecs/announcer-16khz"
WRONG = "weasels have eaten our phone system"
SILENCE = np.zeros(RATE, np.float32)


@pytest.fixture(scope="module")
def sentences(clips: Path) -> list[Spoken]:
    """The real sentences of the test clips, with what they say."""
    samples = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    return [
        Spoken(sample["transcript"], read_wave(clips / sample["wav_path"], RATE), RATE, True)
        for sample in samples
        if sample["duration"] > 2
    ]


@pytest.fixture(scope="module")
def ears() -> Intelligibility:
    return Intelligibility(WerReward(), threads=1)


def changed(spoken: Spoken, **values: object) -> Spoken:
    return Spoken(**{**spoken.__dict__, **values})  # type: ignore[arg-type]


def test_true_texts_score_high_and_wrong_ones_low(
    sentences: list[Spoken], ears: Intelligibility
) -> None:
    assert len(sentences) >= 5
    true = ears(sentences)
    wrong = ears([changed(one, text=WRONG) for one in sentences])
    assert np.mean(true) > 0.85
    assert max(wrong) < 0.2


def test_silence_and_no_audio_count_as_wer_5(
    sentences: list[Spoken], ears: Intelligibility
) -> None:
    quiet = changed(sentences[0], wave=SILENCE)
    nothing = changed(sentences[0], wave=SILENCE[:0])
    errors, heard = ears.error_rates([quiet, sentences[0], nothing])
    assert errors[0] == errors[2] == EMPTY_WER
    assert heard[0] == heard[2] == ""
    assert errors[1] < 0.3
    assert ears([quiet])[0] == pytest.approx(np.exp(-12.5))


def test_a_narrow_window_hears_what_the_whole_one_hears(sentences: list[Spoken]) -> None:
    narrow = Intelligibility(WerReward(window_seconds=10), threads=1).error_rates(sentences)[0]
    whole = Intelligibility(WerReward(window_seconds=30), threads=1).error_rates(sentences)[0]
    assert np.mean(narrow) == pytest.approx(np.mean(whole), abs=0.1)


def test_rate_falls_as_the_ratio_to_the_bound() -> None:
    score = SpeakingRate(RateReward(slowest=10, fastest=20))
    seconds = {2.0: 1.0, 1.0: 1.0, 4.0: 0.5, 0.5: 0.5}  # 20 characters
    clips = [Spoken("x" * 20, np.ones(int(s * RATE), np.float32), RATE, True) for s in seconds]
    assert score(clips) == pytest.approx(list(seconds.values()))


def test_all_rewards_are_between_0_and_1_and_zero_for_the_unusable(
    speaking: Speaking, sentences: list[Spoken]
) -> None:
    synthesizer = Synthesizer.open(speaking.serving.path)
    synthesizer.codec = Codec.load(VENDORED_CODEC)  # an untrained codec's voice is no voice
    voice = synthesizer.new_voice(sentences[1].wave, sentences[1].text)
    synthesizer.card = synthesizer.card.model_copy(update={"voices": {"real": voice}})
    rewards = (WerReward(), RateReward(), DnsmosReward(), SimilarityReward())
    panel = Panel(rewards, synthesizer)
    unending = changed(sentences[0], ended=False)
    silent = changed(sentences[0], wave=SILENCE)
    real, *unusable = panel.judge([sentences[0], unending, silent])
    assert set(real.rewards) == {"wer", "rate", "dnsmos", "similarity"}
    assert all(0 < value <= 1 for value in real.rewards.values())
    assert real.rewards["dnsmos"] > 0.4
    assert real.heard
    assert all(set(verdict.rewards.values()) == {0.0} for verdict in unusable)


def test_similarity_needs_a_voice(speaking: Speaking, sentences: list[Spoken]) -> None:
    synthesizer = Synthesizer.open(speaking.serving.path)
    synthesizer.card = synthesizer.card.model_copy(update={"voices": {}})
    with pytest.raises(ValueError, match=r"set serving\.voices"):
        Panel((SimilarityReward(),), synthesizer).judge(sentences[:1])


def test_recipe_refuses_what_cannot_be() -> None:
    texts = {"base": "a", "prompts": {"texts": "x.txt"}}
    for values, message in (
        ({"rewards": []}, "nothing to learn"),
        ({"rewards": [{"kind": "wer"}, {"kind": "wer"}]}, "named twice"),
        ({"sampling": {"temperature": 0}}, "makes all completions"),
        ({"prompts": {"voice_prompts": True, "texts": "x"}}, "needs corpora"),
        ({"step": 5}, "did you mean 'steps'"),
    ):
        with pytest.raises(ConfigError, match=message):
            RlhfRecipe.parse(texts | values, "test")
    assert PromptsConfig(texts=Path("x")).max_characters == 400
