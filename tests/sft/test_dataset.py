from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from collections import Counter
from copy import copy
from pathlib import Path

import numpy as np
import pytest

from tests.sft.conftest import recipe_values
from tts_assets.arrays.arrays import ArrayError, CodeTable
from tts_assets.sft.config import Concatenation, SftRecipe
from tts_assets.sft.dataset import Concatenator, UtteranceDataset
from tts_assets.sft.epochs import (
    DataError,
    SampleStream,
    TrainingSample,
    plan_epoch,
    shares_of,
    validation_samples,
)
from tts_assets.sft.packing import (
    ROW_MULTIPLE,
    BatchLoader,
    RankSharding,
    first_fit,
    pack,
    split_over,
)
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.tokens import write_text_ids
from tts_assets.speechlm.vocabulary import tokenizer_digest

RATE = 50.0


def recipe(**changes: object) -> SftRecipe:
    return SftRecipe.model_validate(recipe_values(**changes))


@pytest.fixture(scope="module")
def dataset(arrays: Path, prompts: PromptFormat) -> UtteranceDataset:
    return UtteranceDataset({"asterisk": arrays}, "train", prompts, 800)


@pytest.fixture(scope="module")
def two_voices(
    arrays: Path, prompts: PromptFormat, tmp_path_factory: pytest.TempPathFactory
) -> UtteranceDataset:
    """Two corpora: one of two speakers, each with two emotions, and one of one voice."""
    folder = tmp_path_factory.mktemp("two") / "two"
    shutil.copytree(arrays, folder)
    lines = (folder / "train_samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    for number, sample in enumerate(samples):
        sample["speaker_id"] = f"speaker{number % 2}"
        sample["emotion"] = ("", "", "sad")[number % 3]
    text = "".join(json.dumps(sample) + "\n" for sample in samples)
    (folder / "train_samples.jsonl").write_text(text)
    return UtteranceDataset({"a": folder, "b": arrays}, "train", prompts, 800)


def test_a_sample_is_the_training_prompt_of_its_utterances(
    dataset: UtteranceDataset, prompts: PromptFormat, arrays: Path
) -> None:
    data = CodeTable.of_split(arrays, "train")
    texts = [sample["transcript"] for sample in data.samples]
    for utterances in [(0,), (3, 1, 2), (5, 5)]:
        whole = prompts.training(
            " ".join(texts[u] for u in utterances), np.concatenate([data[u] for u in utterances])
        )
        encoded = dataset.encode(TrainingSample(utterances, 0, 0))
        assert np.array_equal(np.append(encoded.inputs, encoded.targets[-1]), whole)
        assert np.array_equal(encoded.targets[:-1], encoded.inputs[1:])
        assert encoded.targets[encoded.first] == prompts.vocabulary.speech_start
        assert dataset.length(utterances) == len(whole)


def test_stored_token_ids_give_the_same_samples(
    arrays: Path, prompts: PromptFormat, dataset: UtteranceDataset, tmp_path: Path
) -> None:
    folder = tmp_path / tokenizer_digest(prompts.tokenizer)
    folder.mkdir()
    write_text_ids(CodeTable.of_split(arrays, "train"), prompts, folder, "train")
    corpora = {"asterisk": arrays}
    again = UtteranceDataset(corpora, "train", prompts, 800, {"asterisk": tmp_path})
    assert isinstance(again.texts[0].text.ids.base, np.memmap)
    streams = [SampleStream(p, recipe(), RATE) for p in (dataset, again)]
    for _ in range(10):
        batch, same = (stream.batch() for stream in streams)
        assert batch == same
        for sample in batch:
            one, other = (p.encode(sample, 0.5, 1) for p in (dataset, again))
            assert np.array_equal(one.inputs, other.inputs)
            assert np.array_equal(one.targets, other.targets)
    folder.rename(tmp_path / "of another tokenizer")
    without = UtteranceDataset(corpora, "train", prompts, 800, {"asterisk": tmp_path})
    assert np.array_equal(without.alone, dataset.alone)


def test_dropout_hides_input_codes_only(dataset: UtteranceDataset, prompts: PromptFormat) -> None:
    shares = []
    for number in range(40):
        sample = TrainingSample((0, 1), 2, number)
        clean, hidden = dataset.encode(sample), dataset.encode(sample, code_dropout=0.8, seed=1)
        assert np.array_equal(clean.targets, hidden.targets)
        start = clean.first + 2  # the first code
        assert np.array_equal(clean.inputs[:start], hidden.inputs[:start])
        changed = clean.inputs[start:] != hidden.inputs[start:]
        assert set(hidden.inputs[start:][changed]) <= {prompts.tokenizer.pad_token_id}
        shares.append(changed.mean())
        again = dataset.encode(sample, code_dropout=0.8, seed=1)
        assert np.array_equal(hidden.inputs, again.inputs)
    assert min(shares) < 0.1 and 0.7 < max(shares) < 0.9 and 0.3 < np.mean(shares) < 0.5


def test_an_epoch_has_every_utterance_once_in_new_groups(dataset: UtteranceDataset) -> None:
    plain = recipe(concatenate={"max_utterances": 4, "max_seconds": 10.0})
    epochs = [plan_epoch(dataset, plain, RATE, epoch) for epoch in range(2)]
    for samples in epochs:
        seen = Counter(u for sample in samples for u in sample.items)
        assert seen == Counter(range(len(dataset)))
        assert max(len(sample.items) for sample in samples) in (3, 4)
        for sample in samples:
            codes = dataset.code_counts[list(sample.items)].sum()
            assert len(sample.items) == 1 or codes <= 10.0 * RATE
    groups = [{s.items for s in samples if len(s.items) > 1} for samples in epochs]
    assert not groups[0] & groups[1]


def literal_groups(
    dataset: UtteranceDataset, order: list[int], config: Concatenation, random: np.random.Generator
) -> list[tuple[int, ...]]:
    """The groups of ``Concatenation``, one utterance after another."""
    groups: list[tuple[int, ...]] = []
    last: dict[int, list[int]] = {}
    wanted: dict[int, int] = {}
    for u in order:
        voice = int(dataset.voice_of[u])
        group = last.setdefault(voice, [])
        whole = (*group, u)
        codes = dataset.code_counts[list(whole)].sum()
        fits = codes <= config.max_seconds * RATE and dataset.length(whole) <= 800
        if group and (len(group) >= wanted[voice] or not fits):
            groups.append(tuple(group))
            group.clear()
        if not group:
            wanted[voice] = int(random.integers(1, config.max_utterances + 1))
        group.append(u)
    return groups + [tuple(group) for group in last.values()]


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["python", "numba"]
)
def test_groups_are_those_of_one_utterance_after_another(
    two_voices: UtteranceDataset, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tts_assets.sft.dataset.COMPILED", 1 if compiled else 10**9)
    config = Concatenation(max_utterances=4, max_seconds=8.0)
    order = np.random.default_rng(2).permutation(len(two_voices))
    randoms = np.random.default_rng(3), np.random.default_rng(3)
    expected = literal_groups(two_voices, order.tolist(), config, randoms[0])
    groups = Concatenator(two_voices, config, 800, RATE, randoms[1]).groups(order)
    assert [groups[i] for i in range(len(groups))] == expected
    assert randoms[0].random() == randoms[1].random(), "later draws are the same"
    lengths = two_voices.sample_lengths(groups).tolist()
    assert lengths == [two_voices.length(group) for group in expected]


def test_a_million_samples_are_planned_as_integers(dataset: UtteranceDataset) -> None:
    """8 MB of order and items, where a list of samples takes 200 MB; the time is 0.1 s."""
    large = copy(dataset)
    large.firsts = [0, 1_000_000]
    tracemalloc.start()
    plan = plan_epoch(large, recipe(concatenate=None), RATE, 3)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 5e6 and peak < 20e6
    assert plan[7] == TrainingSample(plan.ordered[7], 3, 7) and plan[7].items != (7,)
    assert np.array_equal(np.sort(plan.ordered.items), np.arange(1_000_000))


def test_validation_samples_are_a_fixed_part_of_every_source(
    arrays: Path, prompts: PromptFormat, dataset: UtteranceDataset
) -> None:
    every = [TrainingSample((u,), 0, u) for u in range(len(dataset))]
    assert validation_samples(dataset, len(dataset), 1) == every
    both = UtteranceDataset({"large": arrays, "small": arrays}, "train", prompts, 800)
    both.firsts = [0, len(both) - 3, len(both)]  # a source of three utterances
    chosen = validation_samples(both, 20, 1)
    assert chosen == validation_samples(both, 20, 1) != validation_samples(both, 20, 2)
    assert len(chosen) == 20 == len(set(chosen)) and chosen == sorted(chosen)
    assert [both.source(s.items[0]) for s in chosen].count(1) == 3
    assert shares_of(np.array([10**6, 50, 10**5]), 2000).tolist() == [1500, 50, 449]


def test_short_groups_have_the_configured_share(dataset: UtteranceDataset) -> None:
    config = {"max_utterances": 1, "short_share": 0.5, "short_seconds": 1.5, "max_short": 5}
    samples = plan_epoch(dataset, recipe(concatenate=config), RATE, 0)
    joined = [sample for sample in samples if len(sample.items) > 1]
    assert len(samples) == 2 * len(dataset)
    assert 0.6 * len(dataset) < len(joined) < len(dataset)  # one in five is a single word
    assert max(dataset.code_counts[list(s.items)].max() for s in joined) <= 1.5 * RATE


def test_words_repeat_with_the_configured_share(dataset: UtteranceDataset) -> None:
    config = {"short_share": 0.9, "short_seconds": 1.5, "max_short": 6, "repeat_share": 0.5}
    samples = plan_epoch(dataset, recipe(concatenate={"max_utterances": 1, **config}), RATE, 0)
    joined = [sample.items for sample in samples if len(sample.items) > 2]
    repeated = [len(group) - len(set(group)) for group in joined]
    assert 0.4 < sum(repeated) / sum(len(group) - 1 for group in joined) < 0.7


def test_groups_grow_over_the_first_epochs(dataset: UtteranceDataset) -> None:
    config = {"max_utterances": 3, "short_share": 0.5, "max_short": 5, "grow_epochs": 4}
    sizes = []
    for epoch in range(6):
        plan = plan_epoch(dataset, recipe(concatenate=config), RATE, epoch)
        sizes.append(max(len(sample.items) for sample in plan))
    assert sizes == [1, 2, 3, 4, 5, 5]


def test_voices_do_not_mix(two_voices: UtteranceDataset) -> None:
    plan = plan_epoch(two_voices, recipe(corpora={"a": 1, "b": 1}), RATE, 0)
    assert len(set(two_voices.voice_of)) == 5
    assert all(len({two_voices.voice_of[u] for u in sample.items}) == 1 for sample in plan)


def test_weights_are_epochs(arrays: Path, prompts: PromptFormat) -> None:
    dataset = UtteranceDataset({"a": arrays, "b": arrays}, "train", prompts, 800)
    half = len(dataset) // 2
    mixture = recipe(corpora={"a": 2.5, "b": 0.5}, concatenate=None)
    drawn = []
    for epoch in range(2):
        seen = Counter(s.items[0] for s in plan_epoch(dataset, mixture, RATE, epoch))
        counts = [seen[u] for u in range(half)]
        assert set(counts) == {2, 3} and sum(counts) == round(2.5 * half)
        drawn.append({u for u in range(half, 2 * half) if seen[u]})
        assert len(drawn[-1]) == round(half / 2)
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("weight", [0.25, 0.013])
def test_a_fraction_of_earlier_data_is_drawn_again_each_epoch(
    arrays: Path, prompts: PromptFormat, weight: float
) -> None:
    """The mixture of continued training against forgetting; 0.013 are 0.7 utterances an epoch."""
    dataset = UtteranceDataset({"new": arrays, "old": arrays}, "train", prompts, 800)
    old = len(dataset) // 2
    config = recipe(corpora={"new": 1.0, "old": weight}, concatenate=None)
    epochs = 600
    counts = np.zeros(2 * old)
    drawn = set()
    for epoch in range(epochs):
        utterances = [s.items[0] for s in plan_epoch(dataset, config, RATE, epoch)]
        np.add.at(counts, utterances, 1)
        drawn.add(tuple(sorted(u for u in utterances if u >= old)))
        assert weight * old - 1 < len(utterances) - old < weight * old + 1
    assert len(drawn) > (0.9 * epochs if weight > 0.1 else old)
    assert set(counts[:old]) == {epochs}
    expected = weight * epochs
    deviation = np.sqrt(expected * (1 - weight))
    assert abs(counts[old:] - expected).max() < 4 * deviation
    assert abs(counts[old:].mean() - expected) < 4 * deviation / np.sqrt(old)


def test_short_groups_keep_the_weights(arrays: Path, prompts: PromptFormat) -> None:
    dataset = UtteranceDataset({"new": arrays, "old": arrays}, "train", prompts, 800)
    short = {"max_utterances": 1, "short_share": 0.8, "max_short": 1}
    config = recipe(corpora={"new": 1.0, "old": 0.25}, concatenate=short)
    groups = [s.items[0] for e in range(40) for s in plan_epoch(dataset, config, RATE, e)]
    old = np.mean(np.array(groups) >= len(dataset) // 2)
    assert old == pytest.approx(0.2, abs=0.03)


def test_a_stream_resumes_at_its_state(dataset: UtteranceDataset) -> None:
    settings = recipe()
    stream = SampleStream(dataset, settings, RATE)
    batches = []
    for step in range(40):
        if step == 20:
            epoch, offset = stream.epoch, stream.offset
        batches.append(stream.batch())
    assert stream.epoch >= 1
    again = SampleStream(dataset, settings, RATE, epoch, offset)
    assert [again.batch() for _ in range(20)] == batches[20:]
    tokens = [sum(dataset.length(s.items) for s in batch) for batch in batches]
    assert max(tokens) <= settings.batch_tokens
    assert np.mean(tokens) > 0.7 * settings.batch_tokens


def test_utterances_that_do_not_fit_are_dropped_whole_and_named(
    arrays: Path, prompts: PromptFormat, dataset: UtteranceDataset
) -> None:
    assert dataset.dropped == []
    small = UtteranceDataset({"asterisk": arrays}, "train", prompts, 200)
    assert len(small) + len(small.dropped) == len(dataset)
    assert all(int(item.detail.split()[0]) > 200 for item in small.dropped)
    assert max(small.length((u,)) for u in range(len(small))) <= 200
    with pytest.raises(DataError, match=r"is left\nlonger than max_seq_len: \d+, for"):
        SampleStream(UtteranceDataset({"a": arrays}, "train", prompts, 9), recipe(), RATE)


def test_arrays_that_disagree_are_refused(
    arrays: Path, prompts: PromptFormat, tmp_path: Path
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(arrays, folder)
    lines = (folder / "train_samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "train_samples.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ArrayError, match="has 55 samples, but its index 56"):
        UtteranceDataset({"a": folder}, "train", prompts, 800)


def test_a_row_ends_in_padding_without_targets(dataset: UtteranceDataset) -> None:
    samples = [dataset.encode(TrainingSample((u,), 0, u)) for u in range(5)]
    row = pack(samples)
    assert row.tokens == sum(len(sample.inputs) for sample in samples)
    length = row.input_ids.shape[1]
    assert length % ROW_MULTIPLE == 0 and 0 <= length - row.tokens < ROW_MULTIPLE
    assert sum(row.segments) == row.position_ids.shape[1] == length
    assert int(row.where.max()) == row.tokens - 1
    assert len(row.where) == len(row.targets) == sum(len(s.targets) - s.first for s in samples)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_have_all_samples_of_a_batch(ranks: int) -> None:
    lengths = [700, 20, 350, 340, 500, 90, 90]
    shares = split_over(lengths, int, ranks)
    assert sorted(x for share in shares for x in share) == sorted(lengths)
    assert max(map(sum, shares)) - min(map(sum, shares)) <= 350
    rows = first_fit(lengths, int, 720)
    assert sorted(x for row in rows for x in row) == sorted(lengths)
    assert max(map(sum, rows)) <= 720 and len(rows) == 3


def test_many_samples_are_packed_into_the_first_row_with_room() -> None:
    """The rows of a search from the first row on, in a small part of its time."""
    lengths = np.random.default_rng(0).integers(50, 900, 300).tolist()
    rows: list[list[int]] = []
    for length in lengths:
        row = next((row for row in rows if sum(row) + length <= 2048), None)
        if row is None:
            rows.append(row := [])
        row.append(length)
    assert first_fit(lengths, int, 2048) == rows
    many = [2000, *[1500] * 10_000, *[500] * 10_000]  # a search passes 10,000 rows for each sample
    started = time.process_time()
    packed = first_fit(many, int, 2048)
    assert time.process_time() - started < 2
    assert packed[0] == [2000] and packed[1:] == [[1500, 500]] * 10_000


def test_batches_are_made_ahead_of_their_step(dataset: UtteranceDataset) -> None:
    settings = recipe()
    loader = BatchLoader(
        SampleStream(dataset, settings, RATE), RankSharding(0, 2, micro_tokens=900, seed=1)
    )
    plain = SampleStream(dataset, settings, RATE)
    for _ in range(30):
        samples, _, epoch, offset = loader.next()
        assert samples == plain.batch()
        assert (epoch, offset) == (plain.epoch, plain.offset)
