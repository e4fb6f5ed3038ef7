"""Metrics of real clips, custom metrics, and metrics that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tts_assets.audio_models.watermark import mark
from tts_assets.audio_models.wer import match
from tts_assets.core.audio import Clip
from tts_assets.core.config import ConfigError
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.metric_runner import MetricRunner, SynthesizedUtterance
from tts_assets.evaluation.metrics import (
    Column,
    Metric,
    Setting,
    Unmeasured,
    Utterance,
    Values,
    columns_of,
    load,
    metrics_of,
)
from tts_assets.evaluation.metrics.quality import Pace, Pitch
from tts_assets.evaluation.metrics.text import Words, is_truncated, repeated
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.suite import SuiteText

Recordings = dict[str, tuple[str, Clip]]
EXPECTED_MOS = 4.2206  # of conf-invalid, by the authors' program


class Loudness(Metric):
    """A metric of another project."""

    name, version = "loudness", "1"
    columns = (Column("peak", "Peak", "The loudest sample."),)
    asked: list[str] = []  # noqa: RUF012 - utterances that were measured

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        if any(u.text.id == "bad" for u in utterances):
            raise RuntimeError("bad utterance")
        self.asked += [u.text.id for u in utterances]
        return [{"peak": float(np.abs(u.wave).max())} for u in utterances]


def config(*metrics: str) -> EvaluationConfig:
    return EvaluationConfig(suite=Path("suite.jsonl"), metrics=("words", *metrics))


def utterance(
    text: str, transcript: str, wave: np.ndarray | None = None, ended: bool = True
) -> Utterance:
    suite_text = SuiteText(id="a", category="c", text=text, language="en")
    audio = np.zeros(16_000, dtype=np.float32) if wave is None else wave
    matched = match(text, transcript)
    return Utterance(suite_text, audio, 16_000, "0", ended, transcript, matched)


def syntheses_of(
    recordings: Recordings, folder: Path, ids: Sequence[str]
) -> list[SynthesizedUtterance]:
    """Recordings as syntheses of their texts."""
    rows = []
    for name, (transcript, clip) in zip(ids, recordings.values(), strict=False):
        audio = folder / f"{name}.flac"
        write_flac(audio, clip.wave, clip.rate)
        text = SuiteText(id=name, category="c", text=transcript, language="en")
        rows.append(SynthesizedUtterance(text, 1, None, audio, ended=True))
    return rows


@pytest.mark.parametrize(
    ("text", "transcript", "errors", "again"),
    [
        ("five five five", "five five five five", (0, 0, 1), 1),
        ("call the office now", "call the office call the office now", (0, 0, 3), 3),
        ("call the office now", "call the now", (0, 1, 0), 0),
        ("call the office", "call the office today", (0, 0, 1), 0),
        ("call the office", "", (0, 3, 0), 0),
        ("call the office", "buy a dog", (3, 0, 0), 0),
    ],
)
def test_substitutions_deletions_and_insertions(
    text: str, transcript: str, errors: tuple[int, int, int], again: int
) -> None:
    spoken = utterance(text, transcript)
    matched = spoken.match
    assert (matched.substitutions, matched.deletions, matched.insertions) == errors
    assert repeated(matched) == again
    (values,) = Words(Setting(config())).measure([spoken])
    assert isinstance(values, dict)
    kinds = [values[name] for name in ("substitutions", "deletions", "insertions")]
    assert kinds == [count / matched.words for count in errors]
    assert sum(kinds) == pytest.approx(values["wer"])


def test_truncation() -> None:
    assert not is_truncated(utterance("one two three", "one two three"))
    assert not is_truncated(utterance("one two three", "one two tree"))
    assert is_truncated(utterance("one two three", "one two"))
    assert is_truncated(utterance("one two three", "one two three", ended=False))


def test_pitch_of_a_tone_and_of_a_voice(recordings: Recordings) -> None:
    pitch = Pitch(Setting(config()))
    time = np.arange(16_000) / 16_000
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20)).astype(np.float32)
    noise = np.zeros(16_000, dtype=np.float32)
    tone, nothing = pitch.measure([utterance("a", "a", 0.2 * buzz), utterance("a", "a", noise)])
    assert isinstance(tone, dict)
    assert tone["f0_median"] == pytest.approx(120, rel=0.03)
    assert tone["f0_spread"] < 0.2
    assert nothing == Unmeasured("less than 0.1 s voiced")


def test_pace_with_and_without_a_recording(recordings: Recordings, clips: Path) -> None:
    transcript, clip = recordings["conf-invalid"]
    own = clips / "audio" / "conf-invalid.g722"
    pace = Pace(Setting(config(), characters_per_second=10.0))
    base = utterance(transcript, transcript, clip.wave)
    (expected,) = pace.measure([base])
    assert isinstance(expected, dict)
    text = base.text.model_copy(update={"reference_wav": own})
    slow = np.repeat(clip.wave, 2)
    twice = Utterance(text, slow, 16_000, "0", True, transcript, base.match)
    (against,) = pace.measure([twice])
    assert isinstance(against, dict)
    assert against["duration_ratio"] == pytest.approx(2, rel=0.05)
    assert against["speaking_rate"] == pytest.approx(expected["speaking_rate"] / 2, rel=0.05)


def test_a_custom_metric_is_cached_by_digest(recordings: Recordings, tmp_path: Path) -> None:
    Loudness.asked.clear()
    setting = Setting(config(f"{__name__}:Loudness"))
    rows = syntheses_of(recordings, tmp_path, ["a", "b"])
    first = MetricRunner(setting, tmp_path / "cache.sqlite").measure(rows)
    assert [0 < row.values["peak"] <= 1 for row in first] == [True, True]
    again = MetricRunner(setting, tmp_path / "cache.sqlite").measure(rows)
    assert again == first
    assert Loudness.asked == ["a", "b"], "cached utterances are not measured again"


def test_one_failure_sets_one_value_aside(recordings: Recordings, tmp_path: Path) -> None:
    Loudness.asked.clear()
    rows = syntheses_of(recordings, tmp_path, ["a", "bad", "c"])
    metrics = MetricRunner(Setting(config(f"{__name__}:Loudness")), tmp_path / "cache.sqlite")
    good, bad, last = metrics.measure(rows)
    assert bad.set_aside == {"loudness": "failed: RuntimeError: bad utterance"}
    assert bad.values["wer"] <= 1
    assert "peak" in good.values and "peak" in last.values
    assert metrics.measure(rows)[1].set_aside, "a failure is not cached"


def test_a_synthesis_without_audio_has_a_row(tmp_path: Path, setting: Setting) -> None:
    text = SuiteText(id="a", category="c", text="hello there", language="en")
    metrics = MetricRunner(setting, tmp_path / "cache.sqlite")
    (row,) = metrics.measure([SynthesizedUtterance(text, 1, None, None, ended=True)])
    assert row.values["wer"] == 1
    assert row.values["deletions"] == 1
    assert row.set_aside == {
        "dnsmos": "shorter than 0.1 s",
        "similarity": "less than 0.3 s of speech",
        "pitch": "less than 0.1 s voiced",
        "pace": "less than 0.1 s above silence",
    }


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("words", "wordz"), "no metric 'wordz'; known:"),
        (("dnsmos",), "'words' must be among them"),
        (("words", "tts_assets.core.cache:RecordCache"), "is no subclass of"),
        (("words", "no.such:Thing"), "cannot be imported"),
        (("words", "words"), "two metrics have"),
    ],
)
def test_bad_names_are_refused(metrics: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metrics_of(EvaluationConfig(suite=Path("suite.jsonl"), metrics=metrics))


def test_utmos_needs_its_weights(tmp_path: Path) -> None:
    missing = EvaluationConfig(suite=Path("suite.jsonl"), utmos=tmp_path / "utmos.onnx")
    assert "utmos" not in [column.name for column in columns_of(missing)]
    (tmp_path / "utmos.onnx").write_bytes(b"")
    assert "utmos" in [column.name for column in columns_of(missing)]


@pytest.mark.parametrize(
    ("text", "heard", "language", "wer"),
    [
        ("Don't stop, please!", "don't stop please", "en", 0.0),
        ("Call 42 now.", "call forty-two now", "en", 1 / 3),  # numbers are not normalized
        ("你好，世界", "你好世姐", "zh", 0.25),
        ("five", "", "en", 1.0),
    ],
)
def test_the_wer_of_seed_tts_eval(text: str, heard: str, language: str, wer: float) -> None:
    asked = config("seed_wer")
    suite_text = SuiteText(id="a", category="c", text=text, language=language)
    spoken = replace(utterance("a", heard), text=suite_text)
    assert load("seed_wer")(Setting(asked)).measure([spoken]) == [{"seed_wer": pytest.approx(wer)}]


def test_distillmos_and_the_watermark(recordings: Recordings) -> None:
    asked = config("distillmos", "watermark")
    clip = recordings["conf-invalid"][1]
    noise = np.random.default_rng(0).normal(0, 0.05, len(clip.wave)).astype(np.float32)
    waves = [clip.wave, clip.wave + noise, mark(clip.wave, clip.rate), clip.wave[:1_000]]
    spoken = [utterance("a", "a", wave) for wave in waves]
    mos = [load("distillmos")(Setting(asked)).measure([one])[0] for one in (*spoken[:2], spoken[3])]
    assert mos[0] == {"distillmos": pytest.approx(EXPECTED_MOS, abs=1e-3)}
    assert isinstance(mos[1], dict) and mos[1]["distillmos"] < EXPECTED_MOS - 1
    assert mos[2] == Unmeasured("shorter than 0.1 s")
    found = load("watermark")(Setting(asked)).measure(spoken)
    assert [found[0], found[2]] == [{"watermark": 0.0}, {"watermark": 1.0}]
    assert isinstance(found[3], Unmeasured)
    assert {metric.name for metric in metrics_of(asked)} == {"words", "distillmos", "watermark"}
