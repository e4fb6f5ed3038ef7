"""Export to the layout of the reference trainer, and import from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dagster import AssetSpec, DagsterInstance, ExecuteInProcessResult, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.arrays.conftest import CODEBOOK, Utterance, publish_shards
from tts_assets.arrays import inworld as export
from tts_assets.arrays.arrays import SPLITS, ArrayError, CodeTable
from tts_assets.arrays.assets import build_assets
from tts_assets.arrays.inworld import ArraysConfig, check_frames, file_digests, import_inworld
from tts_assets.arrays.merge import merge
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import ArtifactStore, Build, CodeArrays, CodecCheckpoint, CodecFacts
from tts_assets.orchestration.dependencies import corpus_partitions

HALF = ValidationSplit(fraction=0.5)
NAME = "hub/codec"


@pytest.fixture
def codec(store: ArtifactStore) -> CodecCheckpoint:
    build = Build("codec", {}, {}, "1")
    result = store.work_folder(build) / "result"
    result.mkdir()
    (result / "config.json").write_text("{}")
    facts = CodecFacts(
        sample_rate=16000, hop_length=320, token_rate=50, codebook_size=CODEBOOK, parameters=1
    )
    handle = store.publish(CodecCheckpoint, build, result, facts)
    assert isinstance(handle, CodecCheckpoint)
    return handle


@pytest.fixture
def arrays(store: ArtifactStore, utterances: list[Utterance]) -> CodeArrays:
    shards = publish_shards(store, utterances, (6, 7))
    build = Build("code_arrays", {"codec_shards": shards}, HALF, "2", partition="asterisk")
    result = store.work_folder(build) / "result"
    result.mkdir()
    handle = store.publish(CodeArrays, build, result, merge(shards, HALF, result))
    assert isinstance(handle, CodeArrays)
    return handle


@pytest.fixture
def theirs(tmp_path: Path, arrays: CodeArrays) -> Path:
    """The export by hand."""
    config = {"run_dir": str(tmp_path / "run"), "arrays": str(arrays.path)}
    (tmp_path / "run.json").write_text(json.dumps(config))
    export.main([str(tmp_path / "run.json")])
    facts = json.loads((tmp_path / "run" / "result.json").read_text())
    assert facts["codec"] == arrays.facts.codec
    return tmp_path / "run" / "result"


def test_the_reference_trainer_reads_an_export(theirs: Path, arrays: CodeArrays) -> None:
    for split in SPLITS:
        codes = np.memmap(theirs / f"{split}_codes.npy", dtype=np.int32, mode="r")
        index = np.load(theirs / f"{split}_codes_index.npy")
        lines = (theirs / f"{split}_samples.jsonl").read_text().splitlines()
        ours = CodeTable.of_split(arrays.path, split)
        assert index.dtype == np.int64 and len(lines) == len(index) == len(ours) > 0
        for row, line in enumerate(lines):
            end = index[row + 1] if row + 1 < len(index) else len(codes)
            assert np.array_equal(codes[index[row] : end], ours[row])
            assert json.loads(line) == ours.sample(row)


def run(store: ArtifactStore, config: ArraysConfig, partition: str) -> ExecuteInProcessResult:
    root = str(store.root)
    upstream = [AssetSpec("codec"), AssetSpec("codec_shards", partitions_def=corpus_partitions)]
    other = ValidationSplit(fraction=0.5, salt="other")
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", [partition])
        return materialize(
            [*upstream, *build_assets(config, other, NAME, store.root)],
            instance=instance,
            partition_key=partition,
            resources={
                "store": ArtifactStoreResource(root=root),
                "io_manager": ArtifactIOManager(root=root),
            },
            raise_on_error=False,
        )


def imported(path: Path, codec: str) -> ArraysConfig:
    values = {"imported": {"theirs": {"path": path, "codec": codec, "licence": "CC0-1.0"}}}
    return ArraysConfig.model_validate(values)


def test_an_import_keeps_the_split(
    store: ArtifactStore, arrays: CodeArrays, theirs: Path, codec: CodecCheckpoint
) -> None:
    result = run(store, imported(theirs, NAME), "theirs")
    assert result.success
    assert all(check.passed for check in result.get_asset_check_evaluations())
    found = store.current("code_arrays", "theirs")
    assert found.facts.membership == "imported" and found.facts.codec == codec.content
    assert found.facts.val_codes == arrays.facts.val_codes
    for split in SPLITS:
        pairs = zip(
            CodeTable.of_split(found.path, split),
            CodeTable.of_split(arrays.path, split),
            strict=True,
        )
        for (sample, codes), (own, own_codes) in pairs:
            assert np.array_equal(codes, own_codes) and codes.dtype == np.uint16
            licence = {"licence": "CC0-1.0"} | own["original_data"]
            assert sample == sample | own | {"original_data": licence}


def test_an_export_is_an_asset_if_configured(
    store: ArtifactStore, theirs: Path, codec: CodecCheckpoint
) -> None:
    config = imported(theirs, codec.content[:12]).model_copy(update={"export": "inworld"})
    assert run(store, config, "theirs").success
    exported = store.current("inworld_arrays", "theirs")
    for name in ("train_codes.npy", "val_codes.npy", "train_codes_index.npy"):
        assert (exported.path / name).read_bytes() == (theirs / name).read_bytes()


@pytest.mark.parametrize("name", ["another/codec", "0123456789abcdef", ""])
def test_arrays_of_another_codec_are_refused(
    store: ArtifactStore, theirs: Path, codec: CodecCheckpoint, name: str
) -> None:
    config = imported(theirs, name or codec.content[:11])
    result = run(store, config, "theirs")
    (failure,) = result.get_step_failure_events()
    assert "another codec cannot decode these codes" in str(failure.step_failure_data)


def set_code(folder: Path, value: int) -> None:
    codes = np.memmap(folder / "train_codes.npy", dtype=np.int32, mode="r+")
    codes[-1] = value
    codes.flush()


def change_line(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "val_samples.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([change(first), *rest]))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "code too high": (
        lambda f: set_code(f, CODEBOOK),
        r"train_codes\.npy: sample \d+ has code 64, but the codebook has 64",
    ),
    "code negative": (lambda f: set_code(f, -1), r"has code -1"),
    "codes cut short": (
        lambda f: (f / "train_codes.npy").write_bytes(b"12345"),
        r"train_codes\.npy has 5 bytes.* merge their shards again",
    ),
    "index backwards": (
        lambda f: np.save(f / "train_codes_index.npy", np.array([0, 9, 3])),
        r"does not describe",
    ),
    "a sample too few": (
        lambda f: change_line(f, lambda line: ""),
        r"samples, but its index \d+; merge their shards again",
    ),
    "no JSON": (
        lambda f: change_line(f, lambda line: "{]\n"),
        r"val_samples\.jsonl, line 1 is not JSON",
    ),
    "no transcript": (
        lambda f: change_line(f, lambda line: line.replace('"transcript"', '"text"')),
        r"val_samples\.jsonl:1: transcript: Field required; correct the line",
    ),
    "a file too few": (
        lambda f: (f / "val_codes.npy").unlink(),
        r"lacks val_codes\.npy",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_error_names_the_damaged_file(
    tmp_path: Path, theirs: Path, codec: CodecCheckpoint, name: str
) -> None:
    damage, message = DAMAGES[name]
    damage(theirs)
    with pytest.raises(ArrayError, match=message):
        file_digests(theirs)
        import_inworld("theirs", theirs, "CC0-1.0", codec, tmp_path)


@pytest.mark.parametrize(
    ("lengths", "codes", "problem"),
    [
        ([2, 4], [0, 3, 1, 4, 2, 3], None),
        ([3, 3], [0, 3, 1, 4, 2, 3], "sample 0: the last frame is broken: it has 1 of 2 codes"),
        ([2, 4], [0, 3, 1, 4, 3, 2], "sample 1: frame 1 is broken: its code 3 belongs to position"),
    ],
)
def test_broken_frames_are_found(
    tmp_path: Path, lengths: list[int], codes: list[int], problem: str | None
) -> None:
    """Frames of a codec with codebooks of 3 and 2 codes."""
    np.save(tmp_path / "train_codes.npy", np.array(codes, np.uint16))
    np.save(tmp_path / "train_codes_index.npy", np.cumsum([0, *lengths[:-1]]))
    (tmp_path / "train_samples.jsonl").write_text("{}\n{}\n")
    table = CodeTable.of_split(tmp_path, "train")
    if problem is None:
        check_frames(table, (3, 2), tmp_path)
    else:
        with pytest.raises(ArrayError, match=problem):
            check_frames(table, (3, 2), tmp_path)
