"""Metrics of real clips, unchanged and degraded; each is measured once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile

from tts_assets.core.audio import Wave, read_wave
from tts_assets.core.cache import RecordCache
from tts_assets.corpora.config import METRICS, MeasureProgram, Metric
from tts_assets.corpora.quality import (
    MeasureRequest,
    QualityMeasurer,
    clipping,
    main,
    read_requests,
    silence,
    wada_snr,
    word_error_rate,
)

RATE = 16_000


@pytest.fixture
def speech(clips: Path) -> Wave:
    return read_wave(clips / "audio" / "demo-nomatch.g722", RATE)


def noise(count: int, level: float) -> Wave:
    return np.random.default_rng(1).normal(0, level, count).astype(np.float32)


def of(path: Path, *metrics: Metric) -> MeasureRequest:
    return MeasureRequest(path, path.name, "en", metrics)


@pytest.mark.parametrize("decibels", [0, 10, 20, 40])
def test_wada_snr_of_its_signal_model(decibels: int) -> None:
    """Speech whose amplitude is gamma-distributed with shape 0.4, in Gaussian noise."""
    draw = np.random.default_rng(decibels)
    clean = draw.gamma(0.4, size=2_000_000) * draw.choice((-1.0, 1.0), 2_000_000)
    level = clean.std() / 10 ** (decibels / 20)
    noisy = (clean + draw.normal(0, level, len(clean))).astype(np.float32)
    assert wada_snr(noisy) == pytest.approx(decibels, abs=0.5)


def test_snr_decreases_with_added_noise(speech: Wave) -> None:
    found = []
    for decibels in (20, 10, 0):
        level = float(speech.std()) / 10 ** (decibels / 20)
        found.append(wada_snr(speech + noise(len(speech), level)))
    assert found == pytest.approx([20, 10, 0], abs=4)
    assert found[0] > found[1] > found[2]
    assert wada_snr(np.zeros(100, dtype=np.float32)) is None


def test_clipping_counts_runs_but_not_single_peaks(speech: Wave) -> None:
    assert clipping(speech) == 0
    assert clipping(np.clip(speech * 20, -1, 1)) > 0.05
    one_peak = np.zeros(100, dtype=np.float32)
    one_peak[50] = 1.0
    assert clipping(one_peak) == 0


def test_added_silence_is_counted(speech: Wave) -> None:
    padded = np.concatenate([speech, np.zeros(len(speech), dtype=np.float32)])
    before, after = silence(speech, RATE), silence(padded, RATE)
    assert before is not None
    assert after == pytest.approx(0.5 + before / 2, abs=0.02)
    assert silence(np.zeros(10, dtype=np.float32), RATE) is None


def test_noise_lowers_dnsmos_and_raises_wer(clips: Path, speech: Wave, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy.wav"
    soundfile.write(noisy, speech + noise(len(speech), 0.1), RATE)
    clean = clips / "audio" / "demo-nomatch.g722"
    asked = [of(clean, *METRICS), of(noisy, *METRICS)]
    known, unreadable = QualityMeasurer(threads=2).measure(asked, RecordCache(tmp_path / "cache"))
    good, bad = ({metric: known[key] for key, metric in clip.keys("").items()} for clip in asked)
    assert 2.5 < good["dnsmos"] < 4  # 3.03 by speechmos itself
    assert bad["dnsmos"] < good["dnsmos"] - 0.5
    assert bad["p808"] < good["p808"] - 0.3
    text = "I'm sorry, I'm not understanding you."
    assert word_error_rate(text, good["wer"], "en") < word_error_rate(text, "", "en") == 1.0
    assert not unreadable


def test_cached_metrics_are_not_measured_again(clips: Path, tmp_path: Path) -> None:
    """The file is not opened; without a cache it is reported as missing."""
    audio = tmp_path / "one.g722"
    audio.write_bytes((clips / "audio" / "digits" / "1.g722").read_bytes())
    cache = RecordCache(tmp_path / "cache")
    asked = [of(audio, "snr", "silence")]
    first = QualityMeasurer().measure(asked, cache)
    audio.unlink()
    assert QualityMeasurer().measure(asked, cache) == first
    known, unreadable = QualityMeasurer().measure(asked, RecordCache(tmp_path / "other"))
    assert not known
    assert "no such file" in unreadable[audio.name]


def test_another_model_in_the_same_folder_transcribes_again(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "model", RecordCache(tmp_path / "cache")
    folder.mkdir()

    def listens(self: QualityMeasurer, language: str) -> Callable[[object], list[str]]:
        return lambda clips: [(folder / "model.bin").read_text()]

    monkeypatch.setattr(QualityMeasurer, "_transcriber", listens)
    asked = [of(clips / "audio" / "digits" / "1.g722", "wer")]
    for text in ("one", "won"):
        (folder / "model.bin").write_text(text)
        known, _ = QualityMeasurer(str(folder)).measure(asked, cache)
        assert list(known.values()) == [text]
    assert list(asked[0].keys(QualityMeasurer().model)) == [
        "heard.1:tiny.en:en:1.g722"
    ]  # as it always was


def test_the_program_measures_missing_metrics(clips: Path, tmp_path: Path) -> None:
    files = sorted((clips / "audio").glob("*.g722"))
    pl.DataFrame(
        {
            "audio": [str(file) for file in files],
            "audio_sha256": [file.name for file in files],
            "language": "en",
            "snr": [True] * (len(files) - 1) + [False],
        }
    ).write_parquet(tmp_path / "clips.parquet")
    program = MeasureProgram(
        run_dir=tmp_path / "run",
        clips=tmp_path / "clips.parquet",
        metrics=("snr",),
        cache=tmp_path / "cache",
    )
    (tmp_path / "run.json").write_text(program.to_json())
    (asked,) = read_requests(program.clips, program.metrics)
    (key,) = asked[0].keys("")
    cache = RecordCache(program.cache)
    cache.put({key: {"snr": -7.0, "clipping": 0.0, "silence": 0.0}})
    main([str(tmp_path / "run.json")])
    records = cache.get(key for clip in asked for key in clip.keys(""))
    assert len(records) == len(files) - 1
    assert records[key]["snr"] == -7.0
