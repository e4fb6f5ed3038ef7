from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.speaking import Speaking
from tts_assets.codec.model import Codec
from tts_assets.core.config import ConfigError
from tts_assets.rlhf.alarms import AlarmConfig, alarms
from tts_assets.rlhf.config import Combine, RlhfRecipe
from tts_assets.rlhf.reporting import rollout_record, step_metrics
from tts_assets.rlhf.reward_config import (
    DnsmosReward,
    EndReward,
    RateReward,
    RewardConfig,
    SimilarityReward,
    WerReward,
)
from tts_assets.rlhf.reward_executor import (
    EMPTY_WER,
    RewardExecutor,
    ThreadRunner,
    combine_rewards,
    prompt_waves,
)
from tts_assets.rlhf.rewards import (
    DecodedCompletion,
    RateRewardFunction,
    RewardResult,
    Score,
    WerRewardFunction,
)
from tts_assets.rlhf.rollouts import Rollout
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speechlm.generate import Completion, Request

RATE = 16_000
VENDORED_CODEC = Path(__file__).resolve().parents[2] / "examples/codecs/announcer-16khz"
WRONG = "weasels have eaten our phone system"
SILENCE = np.zeros(RATE, np.float32)
ALL = (WerReward(), RateReward(), EndReward(), DnsmosReward(), SimilarityReward())


@pytest.fixture(scope="module")
def wer_reward() -> WerRewardFunction:
    return WerRewardFunction(WerReward())


def changed(completion: DecodedCompletion, **values: object) -> DecodedCompletion:
    return replace(completion, **values)  # type: ignore[arg-type]


def values(scores: Sequence[Score]) -> list[float]:
    return [score.value for score in scores]


def test_correct_texts_score_high_and_wrong_ones_low(
    sentences: list[DecodedCompletion], wer_reward: WerRewardFunction
) -> None:
    assert len(sentences) >= 5
    true = values(wer_reward(sentences))
    wrong = values(wer_reward([changed(one, text=WRONG) for one in sentences]))
    assert np.mean(true) > 0.85
    assert max(wrong) < 0.2


def test_a_tag_with_a_region_is_scored_as_its_language(
    sentences: list[DecodedCompletion], wer_reward: WerRewardFunction
) -> None:
    british = [changed(one, language="en-GB") for one in sentences]
    assert values(wer_reward(british)) == values(wer_reward(sentences))
    chinese = changed(sentences[0], text="\u4f60\u597d", language="zh-CN")
    assert wer_reward.score(chinese, "\u4f60 \u597d").error_rate == 0


@pytest.mark.slow
def test_a_short_window_transcribes_like_the_full_one(sentences: list[DecodedCompletion]) -> None:
    narrow, whole = (
        [
            score.error_rate
            for score in WerRewardFunction(WerReward(window_seconds=seconds))(sentences)
        ]
        for seconds in (10, 30)
    )
    assert np.mean(narrow) == pytest.approx(np.mean(whole), abs=0.1)


def test_languages_without_spaces_use_the_cer(
    sentences: list[DecodedCompletion], wer_reward: WerRewardFunction
) -> None:
    completion = changed(sentences[0], text="\u65e5\u672c\u8a9e \u8a71", language="ja")
    score = wer_reward.score(completion, "\u65e5\u672c\u8a9e")
    assert score.error_rate == 0.25  # characters; as words it would be 1 or 0.5
    with pytest.raises(ValueError, match=r"'tiny.en' knows English only.*'ja'.*large-v3"):
        wer_reward([completion])


def test_the_rate_reward_falls_as_the_ratio_to_the_bound() -> None:
    score = RateRewardFunction(RateReward(slowest=10, fastest=20))
    seconds = {2.0: 1.0, 1.0: 1.0, 4.0: 0.5, 0.5: 0.5}  # 20 characters
    clips = [
        DecodedCompletion("x" * 20, np.ones(int(s * RATE), np.float32), RATE, True) for s in seconds
    ]
    assert values(score(clips)) == pytest.approx(list(seconds.values()))


@pytest.fixture(scope="module")
def synthesizer(speaking: Speaking, sentences: list[DecodedCompletion]) -> Synthesizer:
    """A serving model with a trained codec and a real voice."""
    opened = Synthesizer.open(speaking.serving.path)
    opened.codec = Codec.load(VENDORED_CODEC)  # an untrained codec decodes noise
    voice = opened.new_voice(sentences[1].wave, sentences[1].text)
    opened.card = opened.card.model_copy(update={"voices": {"real": voice}})
    return opened


@pytest.fixture(scope="module")
def executor(synthesizer: Synthesizer) -> RewardExecutor:
    runner = ThreadRunner(ALL, threads=2)
    return RewardExecutor(ALL, runner, prompt_waves(synthesizer), "harmonic")


def test_rewards_are_between_0_and_1_and_zero_if_unusable(
    executor: RewardExecutor, sentences: list[DecodedCompletion]
) -> None:
    unending = changed(sentences[0], ended=False)
    click = SILENCE.copy()
    click[100] = 0.9
    nothing = [changed(sentences[0], wave=wave) for wave in (SILENCE, SILENCE[:0], click)]
    real, *unusable = executor.score([sentences[0], unending, *nothing])
    assert set(real.rewards) == {"wer", "rate", "end", "dnsmos", "similarity"}
    assert all(0 < value <= 1 for value in real.rewards.values())
    assert real.rewards["dnsmos"] > 0.4
    assert real.transcript
    assert min(real.rewards.values()) < real.total < max(real.rewards.values())
    for result in unusable:
        assert set(result.rewards.values()) == {result.total} == {0.0}
        assert result.wer == EMPTY_WER


def test_a_voice_is_most_similar_to_itself(
    executor: RewardExecutor, sentences: list[DecodedCompletion]
) -> None:
    itself, lower = executor.score(
        [sentences[1], changed(sentences[1], rate=RATE * 3 // 4)]  # a lower pitch
    )
    assert itself.rewards["similarity"] > lower.rewards["similarity"] + 0.05


@pytest.mark.slow
def test_scores_do_not_depend_on_order_or_batch(
    executor: RewardExecutor, sentences: list[DecodedCompletion]
) -> None:
    order = np.random.default_rng(0).permutation(len(sentences))
    together, shuffled = executor.score(sentences), executor.score([sentences[i] for i in order])
    alone = executor.score(sentences[2:3])[0]
    for index, result in zip(order, shuffled, strict=True):
        assert result.transcript == together[index].transcript
        assert result.rewards == pytest.approx(together[index].rewards, abs=1e-5)
    assert alone.rewards == pytest.approx(together[2].rewards, abs=1e-5)


def test_the_harmonic_mean_is_low_if_one_reward_is() -> None:
    weights = {"wer": 2.0, "dnsmos": 1.0}
    assert combine_rewards({"wer": 0.5, "dnsmos": 0.5}, weights, "harmonic") == pytest.approx(0.5)
    assert combine_rewards({"wer": 0.5, "dnsmos": 1.0}, weights, "harmonic") == pytest.approx(0.6)
    assert combine_rewards({"wer": 0.0, "dnsmos": 1.0}, weights, "harmonic") == 0
    assert combine_rewards({"wer": 0.5, "dnsmos": 1.0}, weights, "sum") == pytest.approx(2.0)


@pytest.mark.parametrize("combine", ["sum", "harmonic"])
def test_a_reward_of_weight_0_changes_no_combination(combine: Combine) -> None:
    rewards, weights = {"wer": 0.3, "rate": 0.9}, {"wer": 2.0, "rate": 0.7}
    alone = combine_rewards(rewards, weights, combine)
    for dnsmos in (0.0, 0.7):
        watched = combine_rewards(
            {"dnsmos": dnsmos, **rewards}, {**weights, "dnsmos": 0.0}, combine
        )
        assert watched == alone > 0


def test_rewards_of_weight_0_raise_the_hacking_alarm(
    sentences: list[DecodedCompletion],
) -> None:
    """The WER improves and the sound degrades: wrong texts first, then correct texts in noise."""
    rewards = (WerReward(), DnsmosReward(weight=0))
    random = np.random.default_rng(0)
    misread = [changed(one, text=WRONG) for one in sentences[:3]]
    noisy = [
        changed(one, wave=one.wave + random.normal(0, 0.01, len(one.wave)).astype(np.float32))
        for one in sentences[:3]
    ]
    with closing(RewardExecutor(rewards, ThreadRunner(rewards, threads=1))) as executor:
        steps = [(decoded, executor.score(decoded)) for decoded in (misread, noisy)]
    for _, results in steps:
        assert all(result.total == result.rewards["wer"] for result in results)
    records = [
        step_metrics([rollout_record(rollout(*pair)) for pair in zip(*step, strict=True)])
        for step in steps
    ]
    raised = alarms(records, AlarmConfig(window=1, rate=0))  # the wrong words are fewer
    assert [alarm.name for alarm in raised] == ["hacking_dnsmos"]


def rollout(decoded: DecodedCompletion, result: RewardResult) -> Rollout:
    codes = np.arange(50)
    completion = Completion(codes, True, codes, np.zeros(50, np.float32))
    return Rollout(Request(codes, seed=0), completion, decoded, result)


def open_executor(synthesizer: Synthesizer, *rewards: RewardConfig) -> RewardExecutor:
    return RewardExecutor(rewards, ThreadRunner(rewards, threads=1), prompt_waves(synthesizer))


def test_similarity_needs_a_voice(speaking: Speaking, sentences: list[DecodedCompletion]) -> None:
    synthesizer = Synthesizer.open(speaking.serving.path)
    synthesizer.card = synthesizer.card.model_copy(update={"voices": {}})
    with pytest.raises(ValueError, match=r"set serving\.voices"):
        open_executor(synthesizer, SimilarityReward()).score(sentences[:1])


def test_invalid_recipes_are_rejected() -> None:
    texts = {"base": "a", "prompts": {"texts": "x.txt"}}
    for values, message in (
        ({"rewards": []}, "nothing to learn"),
        ({"rewards": [{"kind": "wer"}, {"kind": "wer"}]}, "named twice"),
        ({"rewards": [{"kind": "wer", "weight": 0}]}, "every reward has weight 0"),
        ({"rewards": [{"kind": "wer", "backend": "transformers"}]}, "needs a model"),
        ({"reward_devices": ["cuda:1"]}, "set reward_workers"),
        ({"rewards": [{"kind": "function", "call": "brightness"}]}, "should match pattern"),
        ({"sampling": {"temperature": 0}}, "makes all completions"),
        ({"prompts": {"voice_prompts": True, "texts": "x"}}, "needs corpora"),
        ({"loss": "cispo", "clip_high": 0.28}, "Take more than 1, or leave it out for 5"),
        ({"step": 5}, "did you mean 'steps'"),
    ):
        with pytest.raises(ConfigError, match=message):
            RlhfRecipe.parse(texts | values, "test")
