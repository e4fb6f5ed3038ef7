"""Guards of a training (forgetting, early stopping), over-fitting, and warnings about the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.sft.conftest import CODEBOOK, program, program_values
from tests.sft.test_train import train
from tts_assets.core.config import ConfigError
from tts_assets.core.program import read_metrics
from tts_assets.sft.config import GuardConfig, SftProgram
from tts_assets.sft.describe import SourceCard, assess_fit, markdown, read_card, warnings
from tts_assets.sft.epochs import DataError
from tts_assets.sft.monitoring import GuardState, apply_guards, initial_state

TWO = {"val_loss": 4.0, "val_loss/old": 3.0, "val_loss/new": 5.0}


def losses(old: float, new: float) -> dict[str, float]:
    return {"val_loss": (old + new) / 2, "val_loss/old": old, "val_loss/new": new}


def run_of(config: GuardConfig, *validations: dict[str, float]) -> list[GuardState]:
    states = [initial_state(TWO)]
    for found in validations:
        states.append(apply_guards(config, states[-1], found, "val_loss").state)
    return states[1:]


def test_a_forgotten_source_ends_the_run() -> None:
    config = GuardConfig(forgetting=0.1)
    first, second = run_of(config, losses(3.29, 3.0), losses(3.31, 2.0))
    assert not first.ended
    assert second.ended.startswith("val_loss/old rose from 3.0000 before training to 3.3100")


def test_a_forgotten_source_lowers_the_learning_rate() -> None:
    config = GuardConfig(forgetting=0.1, on_forgetting="lower")
    rates = [s.rate for s in run_of(config, losses(3.2, 3), losses(3.4, 2.9), losses(3.5, 2.8))]
    assert rates == [1.0, 0.5, 0.25]


def test_a_validation_that_forgets_is_never_the_best() -> None:
    config = GuardConfig(forgetting=0.1, on_forgetting="lower", patience=3)
    found = apply_guards(config, initial_state(TWO), losses(3.4, 1.0), "val_loss")
    assert found.forgotten and found.state.best is None and found.state.waited == 1
    found = apply_guards(config, found.state, losses(3.2, 2.0), "val_loss")
    assert not found.forgotten and found.state.best == 2.6
    stopped = apply_guards(
        GuardConfig(forgetting=0.1), initial_state(TWO), losses(3.4, 1.0), "val_loss"
    )
    assert stopped.forgotten and stopped.state.ended


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


def negative(arrays: Path, folder: Path) -> Path:
    """Another source: the same clips with every code inverted."""
    shutil.copytree(arrays, folder)
    for file in folder.glob("*_codes.npy"):
        np.save(file, (CODEBOOK - 1 - np.load(file)).astype(np.uint16))
    return folder


@pytest.fixture(scope="module")
def continuing(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe that continues one of the old source on a new one, where the old is forgotten."""
    folder = tmp_path_factory.mktemp("continuing")
    train(program(folder / "first", arrays, steps=30))
    values = program_values(
        folder,
        arrays,
        base={"recipe": "first"},
        corpora={"old": 0.05, "new": 1.0},
        steps=12,
        eval_every=2,
        export="best",
    )
    values["arrays"] = {"old": str(arrays), "new": str(negative(arrays, folder / "new"))}
    return values | {"base_checkpoint": str(folder / "first" / "result")}


def continued(
    values: dict[str, Any], run_dir: Path, **changes: Any
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The facts of a run of the changed recipe, and its validations."""
    recipe = values["recipe"] | changes
    train(SftProgram.model_validate(values | {"run_dir": str(run_dir), "recipe": recipe}))
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "val_loss" in line]
    return json.loads((run_dir / "result.json").read_text()), lines


def test_the_base_is_published_if_every_validation_forgets(
    continuing: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    facts, lines = continued(continuing, tmp_path, guards={"forgetting": 1e-6})
    assert [line["step"] for line in lines] == [0, 2] and facts["val_loss"] == lines[0]["val_loss"]
    start = load_file(Path(continuing["base_checkpoint"]) / "model.safetensors")
    published = load_file(tmp_path / "result" / "model.safetensors")
    assert all(torch.equal(value, start[name]) for name, value in published.items())
    assert "the weights from before the first step are published" in capfd.readouterr().err


def without_validation(arrays: Path, folder: Path) -> Path:
    shutil.copytree(arrays, folder)
    np.save(folder / "val_codes.npy", np.zeros(0, dtype=np.uint16))
    np.save(folder / "val_codes_index.npy", np.zeros(0, dtype=np.int64))
    (folder / "val_samples.jsonl").write_text("")
    return folder


def test_a_source_without_validation_is_named(
    arrays: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error where its loss is needed, a log line where it is not."""
    alone = without_validation(arrays, tmp_path / "arrays")

    def run(name: str, **changes: Any) -> None:
        corpora = {"asterisk": 1.0, "small": 1.0}
        values = program_values(tmp_path / name, arrays, corpora=corpora, steps=1, **changes)
        values["arrays"]["small"] = str(alone)
        train(SftProgram.model_validate(values))

    remedy = r"no sample of small is in the validation split: raise \[validation\] fraction"
    with pytest.raises(ConfigError, match=f"guards.forgetting watches.*{remedy}"):
        run("forgetting", guards={"forgetting": 0.1})
    with pytest.raises(ConfigError, match=f"checkpoints.best = 'val_loss/small'.*{remedy}"):
        run("best", checkpoints={"best": "val_loss/small"})
    run("plain", guards={"patience": 2})
    assert "no sample of small is in the validation split" in capfd.readouterr().err


def test_guards_without_validation_are_rejected(arrays: Path, tmp_path: Path) -> None:
    alone = without_validation(arrays, tmp_path / "arrays")
    config = program(tmp_path / "run", alone, guards={"patience": 2})
    with pytest.raises(DataError, match=r"raise validation\.fraction"):
        train(config)


def test_assessments_of_fit() -> None:
    falling = [4.0, 3.0, 2.0, 1.0]
    over = assess_fit(records(falling, [4.0, 3.5, 3.6, 3.8]), "last")
    assert over.fit == "over-fitted" and 'write export = "best"' in over.explanation
    assert over.rise == pytest.approx(0.3) and over.gap == pytest.approx(2.8)
    assert "lowest after step 20" in over.explanation
    assert assess_fit(records(falling, [4.0, 3.5, 3.2, 3.0]), "best").fit == "learning"
    assert assess_fit(records(falling, [4.0, 3.5, 3.49, 3.48]), "best").fit == "settled"
    assert assess_fit(records(falling, [4.0, 3.5, 3.52, 3.53]), "best").fit == "settled"
    assert assess_fit([{"step": 1, "loss": 3.0}], "best").fit == "not validated"


def test_an_assessment_of_fit_needs_enough_validations() -> None:
    """One validation with a gap of five nats was "still falling: train longer"."""
    for losses in ([6.0], [4.0, 3.5], [4.0, 3.5, 3.8]):
        few = assess_fit(records([1.0] * len(losses), losses), "best")
        assert few.fit == "too few validations" and few.gap == pytest.approx(losses[-1] - 1.0)
        assert "train longer" not in few.explanation and "set eval_every to" in few.explanation


def test_a_single_noisy_validation_decides_nothing() -> None:
    falling = [4.0, 3.0, 2.0, 1.8, 1.6, 1.4]
    last_up = assess_fit(records(falling, [4.0, 3.4, 3.0, 2.9, 2.9, 3.1]), "best")
    assert last_up.fit == "settled"
    assert assess_fit(records(falling, [4.0, 3.4, 3.3, 3.5, 3.1, 3.3]), "best").fit == "settled"
    over = assess_fit(records(falling, [4.0, 3.0, 3.1, 3.2, 3.4, 3.5]), "best")
    assert over.fit == "over-fitted" and 'write export = "last"' in over.explanation
    assert "lowest after step 20" in over.explanation and "of 60" in over.explanation


def test_a_large_gap_is_named() -> None:
    memorized = assess_fit(records([4.0, 2.0, 1.0, 0.5], [4.0, 3.5, 3.49, 3.48]), "best")
    assert memorized.fit == "settled" and "3.0 nats lower" in memorized.explanation


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
        ({"styles": {"neutral": 300}}, "All samples have the style neutral and the emotion none"),
        ({"dnsmos": 2.1}, "show is noisy: DNSMOS 2.10"),
        ({"dnsmos": None}, "show was not measured: set filters.min_dnsmos"),
        ({"questions": 0}, "show has no questions"),
    ],
)
def test_warnings_have_a_remedy(changes: dict[str, Any], words: str) -> None:
    assert warnings({"show": source()}) == []
    (found,) = warnings({"show": source(**changes)})
    assert words in found


def test_a_small_source_gets_a_larger_weight() -> None:
    (found,) = warnings({"show": source(seconds=36_000), "interview": source(seconds=900)})
    assert "show has 40 times as much speech as interview" in found
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
