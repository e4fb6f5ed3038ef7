"""What guards a voice from its own training: forgetting, over-fitting, too little data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sft.conftest import program
from tests.sft.test_train import train
from tts_assets.metrics import read_metrics
from tts_assets.sft.data_card import SourceCard, markdown, read_card, warnings
from tts_assets.sft.guards import GuardState, begin, judge
from tts_assets.sft.stream import DataError
from tts_assets.sft.tables import GuardConfig
from tts_assets.sft.verdict import verdict

TWO = {"val_loss": 4.0, "val_loss/old": 3.0, "val_loss/new": 5.0}


def losses(old: float, new: float) -> dict[str, float]:
    return {"val_loss": (old + new) / 2, "val_loss/old": old, "val_loss/new": new}


def run_of(config: GuardConfig, *validations: dict[str, float]) -> list[GuardState]:
    states = [begin(TWO)]
    for found in validations:
        states.append(judge(config, states[-1], found, "val_loss").state)
    return states[1:]


def test_a_forgotten_source_ends_the_run() -> None:
    config = GuardConfig(forgetting=0.1)
    first, second = run_of(config, losses(3.29, 3.0), losses(3.31, 2.0))
    assert not first.ended
    assert second.ended.startswith("val_loss/old rose from 3.0000 before training to 3.3100")


def test_a_forgotten_source_slows_the_run() -> None:
    config = GuardConfig(forgetting=0.1, on_forgetting="lower")
    rates = [s.rate for s in run_of(config, losses(3.2, 3), losses(3.4, 2.9), losses(3.5, 2.8))]
    assert rates == [1.0, 0.5, 0.25]


def test_patience_counts_validations_without_a_better_one() -> None:
    config = GuardConfig(patience=2)
    seen = run_of(config, losses(3, 3), losses(3, 3.1), losses(3, 2.9), losses(3, 3), losses(3, 3))
    assert [bool(s.ended) for s in seen] == [False, False, False, False, True]
    assert "val_loss has not fallen below 2.9500 for 2 validations" in seen[-1].ended


def records(train: list[float], val: list[float]) -> list[dict[str, float]]:
    """A validation every ten steps."""
    lines: list[dict[str, float]] = []
    for block, (loss, found) in enumerate(zip(train, val, strict=True)):
        lines += [{"step": 10 * block + i, "loss": loss} for i in range(1, 11)]
        lines.append({"step": 10 * block + 10, "val_loss": found})
    return lines


def test_a_run_ends_early_and_stays_ended(arrays: Path, tmp_path: Path) -> None:
    """At this rate the loss rises again within steps; the best weights are published."""
    config = program(
        tmp_path,
        arrays,
        steps=40,
        eval_every=1,
        export="best",
        guards={"patience": 2},
        optimizer={"lr": 0.2},
    )
    train(config)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    losses = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    best = min(losses[1:], key=lambda at: at[1])
    last = losses[-1][0]
    assert losses[0][0] == 0 and last == best[0] + 2 < 40
    facts = json.loads((tmp_path / "result.json").read_text())
    assert facts["steps"] == last and facts["val_loss"] == best[1]
    train(config)  # a restart after the end goes no further
    assert read_metrics(tmp_path / "metrics.jsonl") == lines


def test_guards_without_validation_are_refused(arrays: Path, tmp_path: Path) -> None:
    alone = tmp_path / "arrays"
    shutil.copytree(arrays, alone)
    np.save(alone / "val_codes.npy", np.zeros(0, dtype=np.uint16))
    np.save(alone / "val_codes_index.npy", np.zeros(0, dtype=np.int64))
    (alone / "val_samples.jsonl").write_text("")
    config = program(tmp_path / "run", alone, guards={"patience": 2})
    with pytest.raises(DataError, match=r"raise validation\.fraction"):
        train(config)


def test_verdicts() -> None:
    falling = [4.0, 3.0, 2.0, 1.0]
    over = verdict(records(falling, [4.0, 3.5, 3.6, 3.8]), "last")
    assert over.word == "over-fitted" and 'write export = "best"' in over.sentence
    assert over.rise == pytest.approx(0.3) and over.gap == pytest.approx(2.8)
    assert "lowest after step 20" in over.sentence
    assert verdict(records(falling, [4.0, 3.5, 3.2, 3.0]), "best").word == "learning"
    assert verdict(records(falling, [4.0, 3.5, 3.49, 3.48]), "best").word == "settled"
    assert verdict(records(falling, [4.0, 3.5, 3.52, 3.53]), "best").word == "settled"
    assert verdict([{"step": 1, "loss": 3.0}], "best").word == "not validated"


def source(**changes: Any) -> SourceCard:
    values: dict[str, Any] = {
        "weight": 1.0,
        "samples": 300,
        "seconds": 2400.0,
        "lengths": {"short": 100, "medium": 100, "long": 100},
        "questions": 5,
        "speakers": {"ann": 300},
        "styles": {"calm": 200, "none": 100},
        "emotions": {"none": 300},
        "dnsmos": 3.4,
    }
    return SourceCard(**values | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds": 300.0}, "5.0 minutes are few"),
        ({"seconds": 1200.0}, "20.0 minutes do for a voice that reads"),
        ({"styles": {"none": 300}}, "speak in one manner"),
        ({"dnsmos": 2.1}, "show is noisy: DNSMOS 2.10"),
        ({"questions": 0}, "show has no questions"),
    ],
)
def test_warnings_name_what_to_do(changes: dict[str, Any], words: str) -> None:
    assert warnings({"show": source()}) == []
    (found,) = warnings({"show": source(**changes)})
    assert words in found


def test_a_drowned_source_gets_a_larger_weight() -> None:
    (found,) = warnings({"show": source(seconds=36_000), "interview": source(seconds=900)})
    assert "show is heard 40 times as long as interview" in found
    assert "give interview a larger weight" in found


def test_the_card_of_real_clips(arrays: Path) -> None:
    lines = [
        json.loads(line)
        for split in ("train", "val")
        for line in (arrays / f"{split}_samples.jsonl").read_text().splitlines()
    ]
    card = read_card({"asterisk": arrays}, {"asterisk": 1.5})
    found = card["asterisk"]
    assert found.samples == len(lines) == sum(found.lengths.values())
    assert found.seconds == pytest.approx(sum(line["duration"] for line in lines))
    assert found.questions == sum(line["transcript"].endswith("?") for line in lines)
    text = markdown(card)
    assert f"| asterisk | 1.5 | {found.samples} |" in text and "⚠" in text
