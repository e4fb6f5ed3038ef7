from __future__ import annotations

import json
import tracemalloc
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.arrays.conftest import Utterance, publish_shards
from tts_assets.arrays.arrays import SPLITS, ArrayError, CodeTable, NpyWriter, line_bounds, read_ids
from tts_assets.arrays.merge import merge
from tts_assets.core.accounting import ValidationSplit, held_out, is_validation
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.config import ConfigError, canonical_json
from tts_assets.corpora.samples import Sample, write_samples
from tts_assets.corpora.validation import held_out_samples, is_held_out, settled

LAYOUTS = [(13,), (4, 4, 5), (0, 6, 0, 7), (1,) * 13]
HALF = ValidationSplit(fraction=0.5)


def merged(
    tmp_path: Path,
    store: ArtifactStore,
    utterances: list[Utterance],
    layout: tuple[int, ...] = (4, 4, 5),
    validation: ValidationSplit = HALF,
) -> Path:
    target = tmp_path / f"arrays-{len(layout)}"
    target.mkdir(parents=True)
    merge(publish_shards(store, utterances, layout), validation, target)
    return target


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_sample_keeps_its_codes_and_is_in_the_split_of_its_id(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance], layout: tuple[int, ...]
) -> None:
    folder = merged(tmp_path, store, utterances, layout)
    for split in SPLITS:
        wanted = [u for u in utterances if is_validation(u.sample["id"], HALF) == (split == "val")]
        table = CodeTable.of_split(folder, split)
        assert len(wanted) == len(table) >= 3
        for (sample, codes), utterance in zip(table, wanted, strict=True):
            assert sample == utterance.sample
            np.testing.assert_array_equal(codes, utterance.codes)


def test_the_bytes_do_not_depend_on_the_shards(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    folders = [merged(tmp_path, store, utterances, layout) for layout in LAYOUTS]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(
        f"{split}_{name}"
        for split in SPLITS
        for name in ("codes.npy", "codes_index.npy", "samples.jsonl")
    )
    for name in names:
        assert len({(folder / name).read_bytes() for folder in folders}) == 1, name


def test_facts(tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]) -> None:
    facts = merge(publish_shards(store, utterances, (6, 7)), HALF, tmp_path)
    held = [u for u in utterances if is_validation(u.sample["id"], HALF)]
    assert (facts.train_samples, facts.val_samples) == (len(utterances) - len(held), len(held))
    assert facts.val_codes == sum(len(u.codes) for u in held)
    assert facts.train_codes + facts.val_codes == sum(len(u.codes) for u in utterances)
    assert facts.hours == pytest.approx(32 / 3600, rel=0.05)
    assert (facts.speakers, facts.corpus, facts.codec) == (1, "asterisk", "c0dec")


def test_the_files_are_plain_npy(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    folder = merged(tmp_path, store, utterances)
    codes = np.load(folder / "train_codes.npy", mmap_mode="r")
    starts = np.load(folder / "train_codes_index.npy")
    assert (codes.dtype, starts.dtype, starts[0]) == (np.uint16, np.int64, 0)


def test_folder_names_may_have_dots(tmp_path: Path, utterances: list[Utterance]) -> None:
    store = ArtifactStore(tmp_path / "v1.2.final" / "storage.d")
    folder = merged(tmp_path / "out.v2", store, utterances)
    assert len(CodeTable.of_split(folder, "train")) > 0


@pytest.mark.parametrize("sizes", [(13,), (5, 8)])
def test_an_empty_validation_split(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance], sizes: tuple[int, ...]
) -> None:
    folder = merged(tmp_path, store, utterances, sizes, ValidationSplit(fraction=0))
    table = CodeTable.of_split(folder, "val")
    assert (len(table), len(table.codes), table.samples) == (0, 0, [])
    assert len(CodeTable.of_split(folder, "train")) == len(utterances)


def test_another_salt_selects_other_validation_samples(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    shards = publish_shards(store, utterances, (13,))
    ids = set()
    for salt in "abcd":
        (tmp_path / salt).mkdir()
        merge(shards, ValidationSplit(fraction=0.5, salt=salt), tmp_path / salt)
        table = CodeTable.of_split(tmp_path / salt, "val")
        ids.add(tuple(sample["id"] for sample in table.samples))
    assert len(ids) == 4


def test_a_killed_merge_is_overwritten(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    whole = merged(tmp_path, store, utterances, (13,))
    partial = tmp_path / "partial"
    partial.mkdir()
    for split in SPLITS:
        (partial / f"{split}_codes.npy").write_bytes(b"left over" * 10_000)
        (partial / f"{split}_samples.jsonl").write_text("left over\n" * 10_000)
    merge(publish_shards(store, utterances, (4, 4, 5)), HALF, partial)
    for path in whole.iterdir():
        assert path.read_bytes() == (partial / path.name).read_bytes()


def labelled(utterances: list[Utterance], recordings: int) -> list[Utterance]:
    """Every second utterance is cut from one of ``recordings``, in turn; two speakers."""
    found = []
    for number, u in enumerate(utterances):
        digest = f"{number % recordings:064x}"
        source = {"recording": "talk.wav", "recording_sha256": digest} if number % 2 else {}
        original = u.sample["original_data"] | source
        sample = u.sample | {"speaker_id": f"s{number % 2}", "original_data": original}
        found.append(Utterance(sample, u.codes))
    return found


@pytest.mark.parametrize("by", ["recording", "speaker"])
def test_groups_are_whole_in_one_split(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance], by: str
) -> None:
    split = ValidationSplit.model_validate({"fraction": 0.5, "salt": "c", "by": by})
    folder = merged(tmp_path, store, labelled(utterances, 3), (4, 4, 5), split)
    sides: dict[str, set[str]] = defaultdict(set)
    for side in SPLITS:
        for sample in CodeTable.of_split(folder, side).samples:
            original = sample["original_data"]
            recording = original.get("recording_sha256", sample["id"])
            name = recording if by == "recording" else sample["speaker_id"]
            sides[name].add(side)
            assert is_validation(name, split) == (side == "val")
    assert all(len(found) == 1 for found in sides.values())
    assert {"train"} in sides.values() and {"val"} in sides.values()


def test_a_split_by_speaker_needs_speakers(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    unknown = [Utterance(u.sample | {"speaker_id": ""}, u.codes) for u in utterances]
    with pytest.raises(
        ConfigError, match=r"needs the speaker .* write validation\.by = 'recording'"
    ):
        merged(tmp_path, store, unknown, (13,), ValidationSplit(by="speaker"))


def test_corpora_of_many_recordings_are_split_by_recording(tmp_path: Path) -> None:
    """With few recordings, or none, the canonical form is that of earlier artifacts."""
    split = ValidationSplit(fraction=0.5)
    assert canonical_json(split) == '{"fraction":0.5,"salt":"1"}'
    lists, expected = [], []
    for recordings in (0, 99, 100):
        source = [{"recording_sha256": f"{n:064x}"} for n in range(recordings)] or [{}]
        samples = [
            Sample(id=str(n), wav_path="a", transcript='"recording_sha256":', original_data=one)
            for n, one in enumerate(source)
        ]
        write_samples(tmp_path / f"{recordings}.jsonl", samples)
        lists.append(tmp_path / f"{recordings}.jsonl")
        expected.append("recording" if recordings == 100 else None)
        own = settled(split, [lists[-1]])
        held = held_out_samples([lists[-1]], own)
        assert held.tolist() == [is_held_out(sample, own) for sample in samples]
    assert [settled(split, [path]).by for path in lists] == expected
    assert settled(split, lists).by == "recording"
    chosen = split.model_copy(update={"by": "utterance"})
    assert settled(chosen, lists) == chosen


@pytest.mark.parametrize("wrong", [{"samples": 14}, {"codes": 1}, {"shards": 2}])
def test_incomplete_shards_are_rejected(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance], wrong: dict[str, int]
) -> None:
    shards = publish_shards(store, utterances, (4, 4, 5), **wrong)
    with pytest.raises(ArrayError, match=r"recorded are .* materialize codec_shards again"):
        merge(shards, HALF, tmp_path)


def test_the_error_names_a_missing_shard(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    shards = publish_shards(store, utterances, (4, 4, 5), shards=4)
    with pytest.raises(ArrayError, match=r"shard-00003\.codes\.npy is missing"):
        merge(shards, HALF, tmp_path)


def test_a_merge_needs_the_memory_of_one_shard(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    """40 shards of 1 MB of codes: what Python and NumPy allocate stays below five shards."""
    long = [
        Utterance(u.sample | {"id": f"{u.sample['id']}-{i}"}, np.tile(u.codes, 310))
        for i in range(40)
        for u in utterances
    ]
    shards = publish_shards(store, long, (13,) * 40)
    assert shards.facts.codes > 19_000_000
    tracemalloc.start()
    merge(shards, HALF, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * (1 << 20) < shards.facts.codes * 2


ODD_SAMPLES: list[dict[str, Any]] = [
    {"id": "a1", "transcript": 'say "id": "nobody", please'},
    {"id": "a1", "original_data": {"id": "nobody"}},
    {"speaker_id": "ann", "original_data": {"id": "b2"}, "id": "a1"},
    {"id": "a longer one", "transcript": "Grüße"},
    {"id": 'a"1\\', "transcript": "Grüße"},
    {"id": "Jörg"},
    {"id": ""},
]
LIKE_IT = [{"id": "b7", "transcript": "one"}, {"id": "c8", "transcript": "two"}]


@pytest.mark.parametrize("sample", ODD_SAMPLES)
@pytest.mark.parametrize("options", [{}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_ids_are_those_of_the_json(sample: dict[str, Any], options: dict[str, Any]) -> None:
    for samples in ([sample], [*LIKE_IT, sample], [sample, *LIKE_IT], LIKE_IT, []):
        lines = [json.dumps(s, **options) + "\n" for s in samples]
        text = np.frombuffer("".join(lines).encode(), np.uint8)
        ids = [identity.decode() for identity in read_ids(text, line_bounds(text), Path("x"))]
        assert ids == [s["id"] for s in samples]


def test_bounds_of_lines() -> None:
    random = np.random.default_rng(1)
    for size in (0, 1, 7, 8, 9, 300_000):
        text = random.choice(np.frombuffer(b"\nabcdefghij", np.uint8), size)
        whole = text.tobytes().split(b"\n")
        bounds = line_bounds(text)
        found = [text[a : b - 1].tobytes() for a, b in pairwise(bounds.tolist())]
        assert found == whole[:-1]


def test_the_split_of_many_ids_equals_that_of_each() -> None:
    ids = [f"Grüße {number}" for number in range(2000)]
    for split in (HALF, ValidationSplit(), ValidationSplit(fraction=0), ValidationSplit(salt="ü")):
        wanted = [is_validation(identity, split) for identity in ids]
        assert held_out([identity.encode() for identity in ids], split).tolist() == wanted


def test_the_error_names_an_invalid_line(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    shards = publish_shards(store, utterances, (13,))
    path = shards.path / "shard-00000.samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[7] = b'{"id": "\xff\xfe", "speaker_id": ""}\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(ArrayError, match=r"shard-00000\.samples\.jsonl, line 8 is not JSON"):
        merge(shards, HALF, tmp_path)


def test_codes_of_a_large_codebook_are_not_truncated(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    wide = [Utterance(u.sample, u.codes.astype(np.int32) + 70_000) for u in utterances]
    merge(publish_shards(store, wide, (6, 7), codebook_size=70_064), HALF, tmp_path)
    table = CodeTable.of_split(tmp_path, "train")
    codes = {u.sample["id"]: u.codes for u in wide}
    assert table.codes.dtype == np.int32
    assert all(np.array_equal(found, codes[sample["id"]]) for sample, found in table)


def test_truncated_codes_are_rejected(
    tmp_path: Path, store: ArtifactStore, utterances: list[Utterance]
) -> None:
    shards = publish_shards(store, utterances, (13,), codebook_size=70_064)
    with pytest.raises(ArrayError, match="codes are uint16, but a codebook of the recorded size"):
        merge(shards, HALF, tmp_path)


def test_files_written_in_parts_equal_those_of_numpy(tmp_path: Path) -> None:
    values = np.arange(100_000, dtype=np.int64)
    writer = NpyWriter(tmp_path / "grown.npy", "int64")
    for part in np.array_split(values, 7):
        writer.add(part)
    writer.close()
    np.save(tmp_path / "whole.npy", values)
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
