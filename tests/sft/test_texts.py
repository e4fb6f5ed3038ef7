"""Conversations and plain texts trained on beside real speech."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sft.conftest import CORPUS, program_values, recipe_values
from tests.sft.test_train import assert_bit_equal, stop_after, train
from tts_assets.core.accounting import ValidationSplit, read_set_aside
from tts_assets.core.config import ConfigError
from tts_assets.core.program import read_metrics
from tts_assets.sft.config import SftProgram, SftRecipe
from tts_assets.sft.epochs import SampleStream, TrainingSample, plan_epoch
from tts_assets.sft.mixture import MixtureDataset, open_dataset
from tts_assets.sft.packing import pack
from tts_assets.speechlm.formats import write_texts
from tts_assets.speechlm.prompts import PromptFormat

RATE = 50.0
LONG = "This answer does not fit. " * 40


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The announcer's sentences as chats, one answer that is too long, and one plain text."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [json.loads(line) for line in (CORPUS / "samples.jsonl").read_text().splitlines()]
    said = [row["transcript"] for row in rows[:30]]
    samples: list[dict[str, Any]] = [
        {"prompt": f"What do you say as number {number}?", "completion": text}
        for number, text in enumerate(said)
    ]
    samples += [{"prompt": "And then?", "completion": LONG}, {"text": said[0]}]
    path = folder / "announcements.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    counts = write_texts(path, ValidationSplit(fraction=0.2), folder)
    assert counts["val_samples"] > 2 and not counts["set_aside"]
    return folder


def program(run_dir: Path, arrays: Path, texts: Path, **changes: Any) -> SftProgram:
    values = program_values(run_dir, arrays, **{"texts": {"chat": 0.5}, **changes})
    return SftProgram.model_validate(values | {"texts": {"chat": str(texts)}})


@pytest.fixture(scope="module")
def dataset(
    arrays: Path, texts: Path, prompts: PromptFormat, tmp_path_factory: pytest.TempPathFactory
) -> MixtureDataset:
    folder = tmp_path_factory.mktemp("run")
    found = open_dataset(program(folder, arrays, texts), prompts, "train")
    assert isinstance(found, MixtureDataset)
    return found


def test_weights_are_epochs_beside_the_same_speech(
    dataset: MixtureDataset, arrays: Path, prompts: PromptFormat
) -> None:
    """Half of the texts, another half in every epoch; the speech is that without texts."""
    assert dataset.sources == ["asterisk", "chat"]
    plain = SftRecipe.model_validate(recipe_values())
    recipe = SftRecipe.model_validate(recipe_values(texts={"chat": 0.5}))
    speech, texts = dataset.parts
    seen: Counter[int] = Counter()
    for epoch in range(40):
        plan = plan_epoch(dataset, recipe, RATE, epoch)
        drawn = [s.items for s in plan if dataset.source(s.items[0]) == 1]
        assert len(drawn) in (len(texts) // 2, (len(texts) + 1) // 2)
        seen.update(items[0] for items in drawn)
        spoken = sorted(s.items for s in plan if dataset.source(s.items[0]) == 0)
        assert spoken == sorted(s.items for s in plan_epoch(speech, plain, RATE, epoch))
    assert len(seen) == len(texts) and min(seen.values()) > 8


def test_only_answers_are_targets(dataset: MixtureDataset, prompts: PromptFormat) -> None:
    end = prompts.tokenizer.eos_token
    first = len(dataset.parts[0])
    for item in range(first, len(dataset)):
        encoded = dataset.encode(TrainingSample((item,), 0, 0), code_dropout=0.9)
        assert len(encoded.inputs) == dataset.length((item,)) - 1
        row = pack([encoded], [dataset.source(item)])
        decoded = prompts.tokenizer.decode(row.targets)
        whole = prompts.tokenizer.decode([*encoded.inputs[:1], *encoded.targets])
        assert set(row.sources.tolist()) == {1}
        if whole.startswith("User: "):
            assert decoded == whole.partition("\nAssistant:")[2] and decoded.endswith(end)
        else:
            assert decoded == whole[1:]  # nothing comes before the first token
    with pytest.raises(IndexError):
        dataset.identity(len(dataset))


def test_samples_that_are_too_long_are_reported(dataset: MixtureDataset) -> None:
    assert [item.reason for item in dataset.dropped] == ["longer than max_seq_len"]
    assert dataset.dropped[0].what.startswith("chat: ")


def test_speech_and_texts_share_rows_and_batches(dataset: MixtureDataset) -> None:
    recipe = SftRecipe.model_validate(recipe_values(texts={"chat": 2.0}))
    stream = SampleStream(dataset, recipe, RATE)
    batches = [stream.batch() for _ in range(10)]
    mixed = [{dataset.source(s.items[0]) for s in batch} == {0, 1} for batch in batches]
    assert sum(mixed) > 5
    first = next(batch for batch, is_mixed in zip(batches, mixed, strict=True) if is_mixed)
    encoded = [dataset.encode(sample) for sample in first]
    row = pack(encoded, [dataset.source(s.items[0]) for s in first])
    counts = np.bincount(row.sources.numpy())
    spans = [sum(end - start for start, end in sample.spans) for sample in encoded]
    for source in (0, 1):
        own = [n for n, s in zip(spans, first, strict=True) if dataset.source(s.items[0]) == source]
        assert counts[source] == sum(own)


@pytest.fixture(scope="module")
def whole_run(arrays: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> SftProgram:
    best = {"checkpoints": {"best": "val_loss/chat"}, "export": "best"}
    config = program(tmp_path_factory.mktemp("whole"), arrays, texts, **best)
    train(config)
    return config


def test_losses_of_texts_are_reported(whole_run: SftProgram) -> None:
    records = read_metrics(whole_run.run_dir / "metrics.jsonl")
    steps = [r for r in records if "loss" in r]
    told = [r for r in steps if "loss/chat" in r]
    assert told and all("loss/asterisk" in r for r in steps)
    assert all(r["val_loss/chat"] > 0 for r in records if "val_loss" in r)
    aside = read_set_aside(whole_run.run_dir / "result" / "set_aside.jsonl")
    assert [item.what.partition(":")[0] for item in aside] == ["chat"]
    hours = steps[-1]["audio_hours_seen"]
    assert hours < sum(r["tokens"] for r in steps) / RATE / 3600


def test_a_stopped_run_resumes_to_bit_equal_weights(whole_run: SftProgram, tmp_path: Path) -> None:
    """With the ids that it made before."""
    config = whole_run.model_copy(update={"run_dir": tmp_path})
    stop_after(1, config)
    (ids,) = (tmp_path / "texts").glob("*/train_ids.npy")
    made = ids.stat().st_ino
    train(config)
    assert ids.stat().st_ino == made
    assert_bit_equal(tmp_path, whole_run)


def test_texts_are_windows_in_pretraining(
    arrays: Path, streams: Path, texts: Path, prompts: PromptFormat, tmp_path: Path
) -> None:
    """Transcripts and texts share what is left for text, by their weights; none is too long."""
    values = program_values(
        tmp_path,
        arrays,
        pretraining={"text_share": 0.4},
        texts={"chat": 3.0},
        concatenate=None,
        max_seq_len=100,
    )
    values |= {"tokens": {"asterisk": str(streams)}, "texts": {"chat": str(texts)}}
    config = SftProgram.model_validate(values)
    dataset = open_dataset(config, prompts, "train")
    assert dataset.sources == ["asterisk", "text", "chat"] and not dataset.dropped
    items = [
        s.items[0] for epoch in range(30) for s in plan_epoch(dataset, config.recipe, RATE, epoch)
    ]
    sources = [dataset.source(item) for item in items]
    tokens = np.bincount(sources, [dataset.length((item,)) for item in items])
    shares = tokens / tokens.sum()
    assert shares[0] == pytest.approx(0.6, abs=0.02)
    every = range(len(dataset))
    there = np.bincount([dataset.source(i) for i in every], [dataset.length((i,)) for i in every])
    assert shares[2] / shares[1] == pytest.approx(3 * there[2] / there[1], rel=0.1)
    last = next(i for i in reversed(every) if dataset.source(i) == 2)
    assert "chat, tokens" in dataset.identity(last) and "chat: " in dataset.identity(last)


def test_impossible_texts_are_refused(arrays: Path, texts: Path, tmp_path: Path) -> None:
    values = program_values(tmp_path, arrays, texts={"chat": 0.5})
    with pytest.raises(ConfigError, match=r"no folder given for texts \['chat'\]"):
        SftProgram.parse(values, "run.json")
    for changes, message in (
        ({"texts": {"chat": 0}}, r"texts \['chat'\] have no positive weight"),
        ({"texts": {"asterisk": 1}}, r"\['asterisk'\] would name two: rename one"),
        (
            {"texts": {"chat": 1}, "pretraining": {"text_share": 0}, "concatenate": None},
            "leaves no room for texts",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            SftRecipe.parse(recipe_values(**changes), "test")
