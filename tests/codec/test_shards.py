"""Codec shards: accounted for, resumable, and the same for any number of ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.codec.conftest import ROOT, VENDORED
from tts_assets.accounting import read_set_aside
from tts_assets.artifacts import CodecFacts, ShardFacts, sha256_file
from tts_assets.codec.config import ShardProgram
from tts_assets.codec.model import Codec
from tts_assets.codec.shards import main
from tts_assets.corpora.audio import read_wave
from tts_assets.corpora.samples import Sample, read_samples, write_samples


def program(folder: Path, samples: Path, codec_content: str = "digest") -> ShardProgram:
    folder.mkdir(exist_ok=True)
    config = ShardProgram(
        run_dir=folder,
        corpus="asterisk_en",
        samples=samples,
        codec=VENDORED,
        codec_content=codec_content,
        codec_facts=CodecFacts(
            sample_rate=16_000,
            hop_length=320,
            token_rate=50.0,
            codebook_size=1920,
            parameters=1,
        ),
        shard_samples=8,
    )
    (folder / "run.json").write_text(config.to_json())
    return config


def encode(folder: Path, samples: Path) -> ShardFacts:
    program(folder, samples)
    main([str(folder / "run.json")])
    return ShardFacts.from_json(folder / "result.json")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted((folder / "result").iterdir())}


def test_every_utterance_is_encoded_or_set_aside(
    tmp_path: Path, samples: list[Sample], vendored: Codec
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, or so")
    missing = samples[5].model_copy(update={"id": "gone", "wav_path": str(tmp_path / "no.wav")})
    damaged = samples[6].model_copy(update={"id": "damaged", "wav_path": str(broken)})
    listed = [*samples[:5], missing, damaged, *samples[7:12]]
    write_samples(tmp_path / "kept.jsonl", listed)
    facts = encode(tmp_path / "run", tmp_path / "kept.jsonl")
    assert (facts.samples_in, facts.samples, facts.set_aside, facts.shards) == (12, 10, 2, 2)
    result = tmp_path / "run" / "result"
    reasons = {record.what: record.reason for record in read_set_aside(result / "set_aside.jsonl")}
    assert reasons == {"gone": "no such file", "damaged": "not readable as audio"}
    codes = np.load(result / "shard-00001.codes.npy")
    index = np.load(result / "shard-00001.index.npy")
    kept = list(read_samples(result / "shard-00001.samples.jsonl"))
    assert (codes.dtype, index.dtype, len(kept)) == (np.uint16, np.int64, 4)
    for sample, clip in zip(kept, np.split(codes, index[1:]), strict=True):
        wave = read_wave(Path(sample.wav_path), 16_000)
        assert np.array_equal(vendored.encode([wave])[0], clip)


def test_a_restart_makes_only_what_is_missing(tmp_path: Path, sample_list: Path) -> None:
    encode(tmp_path, sample_list)
    before = digests(tmp_path)
    shards = tmp_path / "checkpoints"
    untouched = (shards / "shard-00000").stat().st_mtime_ns
    for path in (shards / "shard-00001").iterdir():
        path.unlink()
    (shards / "shard-00001").rmdir()
    encode(tmp_path, sample_list)
    assert digests(tmp_path) == before
    assert (shards / "shard-00000").stat().st_mtime_ns == untouched


def test_shards_of_another_codec_are_not_mixed_in(tmp_path: Path, sample_list: Path) -> None:
    encode(tmp_path, sample_list)
    program(tmp_path, sample_list, codec_content="another")
    with pytest.raises(ValueError, match="of another codec"):
        main([str(tmp_path / "run.json")])


def test_the_bytes_do_not_depend_on_the_number_of_ranks(tmp_path: Path, sample_list: Path) -> None:
    encode(tmp_path / "one", sample_list)
    program(tmp_path / "two", sample_list)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tts_assets.codec.shards", str(tmp_path / "two" / "run.json")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
