"""Trials, and error rates compared with values computed by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.speakers.conftest import TESTED
from tts_assets.core.config import ConfigError
from tts_assets.speakers.config import RESEMBLYZER, ReportProgram, SpeakerSelection, TrialConfig
from tts_assets.speakers.dataset import (
    SpeakerRecording,
    TrialLimits,
    confusion,
    errors,
    make_trials,
    read_speakers,
)


def recording(speaker: str, number: int, session: str = "") -> SpeakerRecording:
    name = f"{speaker}{number}"
    return SpeakerRecording(speaker, name, Path(name), "corpus", session, "en", "", 2.0)


def test_error_rates_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.4, 0.6, 0.3, 0.2, 0.1])
    same = [True] * 4 + [False] * 4
    found = errors(scores, same, 0.01)
    assert found.eer == pytest.approx(0.25)  # between 0.4 and 0.6 one of each is wrong
    assert found.min_dcf == pytest.approx(0.25)  # above 0.6: one miss of four, no false alarm
    perfect = errors(np.array([0.9, 0.8, 0.2, 0.1]), [True, True, False, False], 0.01)
    assert (perfect.eer, perfect.min_dcf) == (0, 0)
    inverted = errors(np.array([0.1, 0.2, 0.8, 0.9]), [True, True, False, False], 0.01)
    assert inverted.eer == pytest.approx(1)
    assert inverted.min_dcf == pytest.approx(1)  # no better than rejecting everything
    random = np.random.default_rng(0).random(20_000)
    assert errors(random, [True, False] * 10_000, 0.5).eer == pytest.approx(0.5, abs=0.02)


def test_trials_are_the_same_in_any_order_and_avoid_one_session() -> None:
    voices = [recording(s, n, f"day{n % 2}") for s in "abc" for n in range(6)]
    limits = TrialLimits(pairs=5)
    trials = make_trials(voices, limits)
    assert trials == make_trials(voices[::-1], limits)
    session = {voice.id: voice.session for voice in voices}
    for trial in trials:
        assert trial.same == (trial.a[0] == trial.b[0])
        assert not trial.same or session[trial.a] != session[trial.b]
    assert sum(trial.same for trial in trials) == 15
    alone = [recording(s, n, "day") for s in "ab" for n in range(3)]
    with pytest.raises(ConfigError, match="different sessions: add recordings of another day"):
        make_trials(alone, limits)


def test_the_split_of_speakers_keeps_its_canonical_form() -> None:
    config = SpeakerSelection(corpora=("voices",), test_fraction=0.5)
    assert config.canonical()["test"] == {"fraction": 0.5, "salt": "1"}
    with pytest.raises(ConfigError, match="write test_fraction = "):
        SpeakerSelection.parse({"corpora": ["voices"], "test": {"fraction": 0.5}}, "test")


def test_trials_need_two_speakers() -> None:
    voices = [recording("ann", n) for n in range(3)]
    with pytest.raises(ConfigError, match=r"are of ann, and trials need two.*add corpora"):
        make_trials(voices)
    with pytest.raises(ConfigError, match="are of nobody"):
        make_trials([])


def report_of(folder: Path, index: Path, selection: SpeakerSelection) -> Path:
    """Write a report on the public encoder; returns its folder."""
    from tts_assets.speakers.evaluate import main

    program = ReportProgram(
        run_dir=folder,
        selection=selection,
        corpora={"voices": index},
        trials=TrialConfig(),
        encoder=RESEMBLYZER,
    )
    (folder / "run.json").write_text(program.to_json())
    main([str(folder / "run.json")])
    return folder / "result"


def test_confusion_leaves_an_utterance_out_of_its_own_speaker() -> None:
    recordings = [recording("a", 0), recording("a", 1), recording("b", 0), recording("b", 1)]
    vectors = {"a0": [1.0, 0], "a1": [0.9, 0.1], "b0": [0, 1.0], "b1": [0.95, 0.05]}
    voices = {name: np.array(v, dtype=np.float32) for name, v in vectors.items()}
    names, counts = confusion(recordings, voices)
    assert names == ["a", "b"]
    assert counts.tolist() == [[2, 0], [2, 0]]


def test_speakers_of_two_corpora(index: Path) -> None:
    """The same clips in another corpus are duplicates; aliases are one speaker."""
    aliases = {"announcer": ("voices/plain", "voices/brisk")}
    config = SpeakerSelection(corpora=("voices", "again"), aliases=aliases, test_speakers=TESTED)
    split = read_speakers({"voices": index, "again": index}, config)
    assert {r.speaker for r in split.test} == set(TESTED)
    trained = {r.speaker for r in split.train}
    assert "announcer" in trained and "voices/plain" not in trained
    reasons = {record.reason for record in split.set_aside}
    assert "duplicate audio" in reasons
    assert {r.session for r in split.test} == {"day0", "day1"}
    by_hash = config.model_copy(update={"test_speakers": ()})
    with pytest.raises(ConfigError, match=r"two to test with.*\nduplicate audio: \d+, for"):
        read_speakers({"voices": index, "again": index}, by_hash)


def test_a_report_of_the_public_encoder(
    tmp_path: Path, index: Path, selection: SpeakerSelection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_assets.speakers.evaluate import main

    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed
    result = report_of(tmp_path, index, selection)
    text = (result / "report.md").read_text()
    assert "no UMAP: pip install tts-assets[umap]" in text and "umap.png" not in text
    report = json.loads((result / "report.json").read_text())
    # The voices are one person's at several speeds, which are similar: 0.29, where chance is 0.5.
    assert report["eer"]["encoder"] == report["eer"][RESEMBLYZER] < 0.4
    assert report["utterances"] + report["set_aside"] <= 2 * 13
    lines = (result / "trials.txt").read_text().splitlines()
    scores = pl.read_parquet(result / "scores.parquet")
    assert len(lines) == len(scores) == report["trials"]
    for name in ("det.png", "confusion.png", "tsne.png"):
        assert (result / name).read_bytes().startswith(b"\x89PNG")
        assert name in (result / "report.md").read_text()
    first = {path.name: path.read_bytes() for path in result.iterdir()}
    main([str(tmp_path / "run.json")])
    assert {path.name: path.read_bytes() for path in result.iterdir()} == first
