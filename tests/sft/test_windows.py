"""Pretraining on windows of real codes and their transcripts."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.sft.conftest import program_values, recipe_values
from tests.sft.test_train import assert_bit_equal, losses, stop_after, train
from tts_assets.arrays.arrays import ArrayError, CodeTable
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, read_metrics
from tts_assets.sft.config import SftProgram, SftRecipe
from tts_assets.sft.epochs import DataError, SampleStream, TrainingSample, plan_epoch
from tts_assets.sft.mixture import TokenStream, WindowDataset, open_dataset
from tts_assets.sft.packing import RankSharding
from tts_assets.sft.train import build_trainer
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.tokens import Rows

RATE = 50.0
SIZE = 200


def pretraining(**changes: Any) -> dict[str, Any]:
    """The changes of a pretraining recipe to that of the other tests."""
    return {
        "concatenate": None,
        "pretraining": {"text_share": 0.2},
        "max_seq_len": SIZE,
        "batch_tokens": 900,
        "micro_tokens": 450,
        **changes,
    }


def program(run_dir: Path, arrays: Path, streams: Path, **changes: Any) -> SftProgram:
    values = program_values(run_dir, arrays, **pretraining(**changes))
    return SftProgram.model_validate(values | {"tokens": {"asterisk": str(streams)}})


@pytest.fixture(scope="module")
def dataset(arrays: Path, streams: Path, prompts: PromptFormat) -> WindowDataset:
    found = open_dataset(program(Path(), arrays, streams), prompts, "train")
    assert isinstance(found, WindowDataset)
    return found


def test_windows_predict_every_token_of_a_stream_once(
    dataset: WindowDataset, prompts: PromptFormat, arrays: Path
) -> None:
    assert dataset.sources == ["asterisk", "text"]
    for number, stream in enumerate(dataset.streams):
        own = np.flatnonzero(dataset.stream_of == number)
        encoded = [dataset.encode(TrainingSample((window,), 0, 0)) for window in own]
        targets = np.concatenate([sample.targets for sample in encoded])
        assert np.array_equal(targets, stream.rows.ids[1:])
        assert all(sample.spans == ((0, len(sample.inputs)),) for sample in encoded)
        inputs = np.concatenate([sample.inputs for sample in encoded])
        assert np.array_equal(inputs, stream.rows.ids[:-1])
        assert [dataset.length((w,)) for w in own[:-1]] == [SIZE] * (len(own) - 1)
        assert 0 < dataset.length((own[-1],)) < SIZE  # the rest behind the last whole window
    codes = prompts.vocabulary.codes(dataset.streams[0].rows.ids)
    assert np.array_equal(codes, CodeTable.of_split(arrays, "train").codes)


def test_text_has_its_share_of_the_tokens(dataset: WindowDataset) -> None:
    recipe = SftRecipe.model_validate(
        recipe_values(**pretraining(corpora={"asterisk": 1.0}, pretraining={"text_share": 0.15}))
    )
    speech = np.flatnonzero(dataset.stream_of == 0)
    shares, orders = [], set()
    for epoch in range(60):
        items = [sample.items[0] for sample in plan_epoch(dataset, recipe, RATE, epoch)]
        orders.add(tuple(items))
        seen = Counter(items)
        assert all(seen[window] == 1 for window in speech)
        tokens = np.bincount([dataset.source(i) for i in items], dataset.lengths[items])
        shares.append(tokens[1] / tokens.sum())
    assert len(orders) == 60
    assert np.mean(shares) == pytest.approx(0.15, abs=0.005)


def test_fractional_weights_are_drawn_without_bias() -> None:
    """Of a stream with two windows a quarter of an epoch is half a window."""
    recipe = SftRecipe.model_validate(recipe_values(**pretraining(pretraining={"text_share": 0})))
    rows = Rows(np.arange(2 * SIZE + 1, dtype=np.int32), np.zeros(1, dtype=np.int64))
    stream = TokenStream(rows, 0, is_text=False, weight=0.25, name=str)
    dataset = WindowDataset([stream], ["asterisk"], SIZE)
    seen = [s.items[0] for epoch in range(800) for s in plan_epoch(dataset, recipe, RATE, epoch)]
    counts = Counter(seen)
    assert counts[0] == pytest.approx(200, abs=45) and counts[1] == pytest.approx(200, abs=45)


def test_a_text_share_without_text_is_rejected() -> None:
    recipe = SftRecipe.model_validate(recipe_values(**pretraining()))
    rows = Rows(np.arange(500, dtype=np.int32), np.zeros(1, dtype=np.int64))
    stream = TokenStream(rows, 0, is_text=False, weight=1.0, name=str)
    with pytest.raises(DataError, match=r"set pretraining\.text_share = 0"):
        SampleStream(WindowDataset([stream], ["asterisk", "text"], SIZE), recipe, RATE).batch()


def test_a_batch_is_the_same_on_any_number_of_ranks(dataset: WindowDataset) -> None:
    recipe = SftRecipe.model_validate(recipe_values(**pretraining()))
    batch = SampleStream(dataset, recipe, RATE).batch()
    assert sum(dataset.length(sample.items) for sample in batch) <= recipe.batch_tokens
    found = []
    for ranks in (1, 2, 3):
        targets: list[int] = []
        for rank in range(ranks):
            sharding = RankSharding(
                rank, ranks, micro_tokens=recipe.micro_tokens, seed=recipe.seed, lockstep=True
            )
            for row in sharding.rows(dataset, batch):
                assert row.input_ids.shape[1] <= 512 and len(row.where) == row.tokens
                targets += row.targets.tolist()
        found.append(sorted(targets))
    assert found[0] == found[1] == found[2]


@pytest.fixture(scope="module")
def whole_run(arrays: Path, streams: Path, tmp_path_factory: pytest.TempPathFactory) -> SftProgram:
    """Six steps without interruption; the best weights by the loss of text."""
    changes = {"export": "best", "checkpoints": {"best": "val_loss/text"}, "dropout": 0.1}
    config = program(tmp_path_factory.mktemp("whole"), arrays, streams, **changes)
    train(config)
    return config


def test_losses_are_logged_by_source(whole_run: SftProgram) -> None:
    records = read_metrics(whole_run.run_dir / "metrics.jsonl")
    steps = [r for r in records if "loss" in r]
    assert all("loss/asterisk" in r for r in steps) and any("loss/text" in r for r in steps)
    assert losses(whole_run.run_dir)[-1] < losses(whole_run.run_dir)[0] - 0.3
    last = records[-1]
    low, high = sorted((last["val_loss/asterisk"], last["val_loss/text"]))
    assert low < last["val_loss"] < high
    hours = steps[-1]["audio_hours_seen"]
    spoken = 0.8 * sum(r["tokens"] for r in steps) / RATE / 3600
    assert hours == pytest.approx(spoken, rel=0.2)
    assert not (whole_run.run_dir / "result" / "set_aside.jsonl").read_text()


def test_validation_has_every_window(
    whole_run: SftProgram, arrays: Path, prompts: PromptFormat
) -> None:
    dataset = open_dataset(whole_run, prompts, "val")
    assert isinstance(dataset, WindowDataset)
    spoken = sum(dataset.length((w,)) for w in range(len(dataset)) if dataset.source(w) == 0)
    table = CodeTable.of_split(arrays, "val")
    assert spoken == len(table.codes) + 2 * len(table) - 1


def test_a_resumed_run_has_bit_equal_weights(whole_run: SftProgram, tmp_path: Path) -> None:
    config = whole_run.model_copy(update={"run_dir": tmp_path})
    stop_after(4, config)
    train(config)
    assert_bit_equal(tmp_path, whole_run)


def test_a_loss_that_is_not_a_number_names_its_windows(
    whole_run: SftProgram, arrays: Path, tmp_path: Path
) -> None:
    with Run(tmp_path) as run:
        trainer = build_trainer(run, whole_run.model_copy(update={"run_dir": tmp_path}))
        with torch.no_grad():
            trainer.lm.model.get_input_embeddings().weight.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=r"asterisk, tokens \d+ to \d+ \(.*\.g722"):
            trainer.train_step(0)
    table = CodeTable.of_split(arrays, "train")
    first, second = (table.sample(row)["id"] for row in range(2))
    named = trainer.train_data.identity(0)
    assert named.startswith(f"asterisk, tokens 0 to {SIZE} ({first}")
    assert (second in named) == (len(table[0]) + 2 <= SIZE)


def test_streams_that_are_missing_or_of_other_samples_are_rejected(
    arrays: Path, streams: Path, prompts: PromptFormat, tmp_path: Path
) -> None:
    copy = tmp_path / "streams"
    shutil.copytree(streams, copy)
    config = program(tmp_path, arrays, copy)
    (folder,) = copy.iterdir()
    path = folder / "val_pretraining_codes.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(ArrayError, match=r"but \d+ belong to the 8 samples of the arrays"):
        open_dataset(config, prompts, "val")
    path.unlink()
    with pytest.raises(ArrayError, match="no streams for pretraining: materialize"):
        open_dataset(config, prompts, "val")
    folder.rename(copy / "of another tokenizer")
    with pytest.raises(ArrayError, match=r"materialize token_arrays\[asterisk\] again"):
        open_dataset(config, prompts, "train")
    values = json.loads(config.to_json()) | {"tokens": {}}
    with pytest.raises(ConfigError, match=r"none given for corpora \['asterisk'\]"):
        SftProgram.parse(values, "run.json")
