"""Rewards and reports use the speaker encoder that the configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tts_assets.core.audio import read_clip
from tts_assets.core.config import ConfigError
from tts_assets.definitions import build_assets
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.metric_runner import MetricRunner, SynthesizedUtterance
from tts_assets.evaluation.metrics import Setting
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.suite import SuiteText
from tts_assets.rlhf import rewards as completion
from tts_assets.rlhf.reward_config import SimilarityReward
from tts_assets.rlhf.rewards import build_reward
from tts_assets.settings import load_settings
from tts_assets.speakers.config import PUBLISHED, RESEMBLYZER
from tts_assets.speakers.encoder import VoiceEncoder

CLIPS = ("agent-incorrect.g722", "conf-invalid.g722")


@pytest.fixture
def cosine(trained: Path, clips: Path) -> float:
    """The similarity of the two clips by the trained encoder."""
    a, b = VoiceEncoder.load(trained).wavs_to_embeddings([clips / "audio" / c for c in CLIPS])
    return float(a @ b)


def test_the_reward_uses_the_named_encoder(trained: Path, clips: Path, cosine: float) -> None:
    prompt, clip = (read_clip(clips / "audio" / name) for name in CLIPS)
    decoded = completion.DecodedCompletion("", clip.wave, clip.rate, True, reference=prompt.wave)
    scores = {
        name: build_reward(SimilarityReward(encoder=name))([decoded])[0].value
        for name in (RESEMBLYZER, str(trained))
    }
    assert scores[str(trained)] == pytest.approx((cosine + 1) / 2, abs=1e-4)
    assert abs(scores[RESEMBLYZER] - scores[str(trained)]) > 0.01


def test_reports_cache_by_encoder(
    trained: Path, clips: Path, cosine: float, tmp_path: Path
) -> None:
    """One cache, one audio file, two encoders: two values."""
    clip = read_clip(clips / "audio" / CLIPS[1])
    write_flac(tmp_path / "clip.flac", clip.wave, clip.rate)
    text = SuiteText(id="a", category="c", text="Invalid.", language="en")
    utterance = SynthesizedUtterance(text, 1, None, tmp_path / "clip.flac", ended=True)
    found = {}
    for name in (RESEMBLYZER, str(trained), RESEMBLYZER):
        config = EvaluationConfig(
            suite=Path("suite.jsonl"),
            metrics=("words", "similarity"),
            speaker_encoder=name,
            window_seconds=5,
        )
        setting = Setting(config, references=(clips / "audio" / CLIPS[0],))
        (row,) = MetricRunner(setting, tmp_path / "cache.sqlite").measure([utterance])
        value = row.values["speaker_similarity"]
        assert found.setdefault(name, value) == value
    assert found[str(trained)] == pytest.approx(cosine, abs=2e-4)  # FLAC rounds, figures too
    assert abs(found[RESEMBLYZER] - cosine) > 0.01


def test_the_published_encoder_is_an_input() -> None:
    """Of reports and of RLHF, where they name it; without [speakers] they are refused."""
    speakers = {"corpora": ["asterisk_en"], "checkpoint": RESEMBLYZER}
    rewards = [{"kind": "similarity", "encoder": PUBLISHED}]
    prompts = {"corpora": ["asterisk_en"]}

    def inputs(overrides: dict[str, Any]) -> dict[str, set[str]]:
        settings = load_settings(environment={}, overrides=overrides)
        base = next(iter(settings.sft))
        rlhf = {"likelier": {"base": base, "prompts": prompts, "rewards": rewards}}
        settings = load_settings(environment={}, overrides={**overrides, "rlhf": rlhf})
        return {
            key.to_user_string(): {d.to_user_string() for d in found}
            for one in build_assets(settings)
            for key, found in getattr(one, "asset_deps", {}).items()
        }

    found = inputs({"speakers": speakers, "evaluation": {"speaker_encoder": PUBLISHED}})
    users = {name for name, above in found.items() if PUBLISHED in above}
    assert {"rlhf/likelier", "report/likelier", "speaker_report"} <= users
    found = inputs({"speakers": speakers})
    users = {name for name, above in found.items() if PUBLISHED in above}
    assert users == {"rlhf/likelier", "speaker_report"}
    with pytest.raises(ConfigError, match=r"names 'speaker_encoder', the asset that a table \[sp"):
        inputs({})
