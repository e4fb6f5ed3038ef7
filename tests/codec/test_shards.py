"""Codec shards: accounted for, resumable, and the same for any number of ranks."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.arrays.conftest import Utterance, publish_shards
from tests.codec.conftest import ROOT, VENDORED, published
from tests.support.codecs import saved
from tts_assets.codec.config import ShardProgram
from tts_assets.codec.model import Codec
from tts_assets.codec.shard_files import OPEN, EarlierCodes
from tts_assets.codec.shards import main
from tts_assets.core.accounting import NothingUsableError, read_set_aside
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    CodecFacts,
    CodecShards,
    ShardFacts,
    sha256_file,
)
from tts_assets.core.audio import read_wave
from tts_assets.core.program import STOPPED
from tts_assets.corpora.samples import Sample, read_samples, write_samples

FACTS = CodecFacts(
    sample_rate=16_000, hop_length=320, token_rate=50.0, codebook_size=4096, parameters=1
)


def program(
    folder: Path,
    samples: Path,
    codec_content: str = "digest",
    reuse: Sequence[Path] = (),
    batch_tokens: int = 300,
    codec: Path = VENDORED,
    facts: CodecFacts = FACTS,
) -> None:
    folder.mkdir(exist_ok=True)
    config = ShardProgram(
        run_dir=folder,
        corpus="asterisk_en",
        samples=samples,
        codec=codec,
        codec_content=codec_content,
        codec_facts=facts,
        shard_samples=8,
        batch_tokens=batch_tokens,
        reuse=list(reuse),
    )
    (folder / "run.json").write_text(config.to_json())


def encode(folder: Path, samples: Path, **changes: Any) -> ShardFacts:
    program(folder, samples, **changes)
    main([str(folder / "run.json")])
    return ShardFacts.from_json(folder / "result.json")


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start one rank in a separate process."""
    command = [sys.executable, "-m", "tts_assets.codec.shards", str(folder / "run.json")]
    return subprocess.Popen(command, cwd=ROOT)


def when(happened: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Call ``act`` in another thread as soon as ``happened`` returns True."""

    def watch() -> None:
        while not happened():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def publish(store: ArtifactStore, samples: Path) -> CodecShards:
    """The shards of a sample list as an artifact."""
    build = Build("codec_shards", {}, {"samples": sha256_file(samples)}, "1")
    work = store.work_folder(build)
    facts = encode(work, samples)
    handle = store.publish(CodecShards, build, work / "result", facts)
    assert isinstance(handle, CodecShards)
    return handle


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


def test_nothing_to_encode_is_an_error_with_counted_reasons(
    tmp_path: Path, samples: list[Sample]
) -> None:
    copy = tmp_path / "clip.g722"
    missing = samples[0].model_copy(update={"wav_path": str(copy)})
    write_samples(tmp_path / "kept.jsonl", [missing, missing.model_copy(update={"id": "other"})])
    with pytest.raises(NothingUsableError, match=r"none of 2 .*\nno such file: 2, for example"):
        encode(tmp_path / "run", tmp_path / "kept.jsonl")
    shutil.copyfile(samples[0].wav_path, copy)
    assert encode(tmp_path / "run", tmp_path / "kept.jsonl").samples == 2
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(NothingUsableError, match="none of 0 samples"):
        encode(tmp_path / "other", tmp_path / "empty.jsonl")


def test_codes_of_several_codebooks_are_stored_in_frames_and_reused(
    tmp_path: Path, samples: list[Sample]
) -> None:
    folder = saved("snac", tmp_path / "snac")
    codec = Codec.load(folder)
    write_samples(tmp_path / "kept.jsonl", samples[:5])
    changes = {"codec": folder, "facts": codec.facts, "batch_tokens": 900}
    first = encode(tmp_path / "one", tmp_path / "kept.jsonl", **changes)
    assert (first.frame, first.codebook_size, first.dtype) == ((64,) * 7, 448, "uint16")
    result = tmp_path / "one" / "result"
    codes = np.load(result / "shard-00000.codes.npy")
    waves = [read_wave(Path(sample.wav_path), codec.input_rate) for sample in samples[:5]]
    assert np.array_equal(codes, np.concatenate(codec.encode(waves)))
    assert codec.frame.problem(codes) == ""
    seconds = sum(sample.duration for sample in samples[:5])
    assert 0 < 3600 * first.hours - seconds < 5 * 2048 / 24_000
    store = ArtifactStore(tmp_path / "store")
    build = Build("codec_shards", {}, {}, "2", partition="asterisk_en")
    work = store.work_folder(build) / "result"
    shutil.copytree(result, work)
    earlier = store.publish(CodecShards, build, work, first)
    again = encode(tmp_path / "two", tmp_path / "kept.jsonl", **changes, reuse=[earlier.path])
    assert (again.encoded, again.reused_codes) == (0, 5)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


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


@pytest.mark.slow
def test_a_killed_run_resumed_with_more_ranks_writes_the_same_bytes(
    tmp_path: Path, sample_list: Path
) -> None:
    encode(tmp_path / "one", sample_list, batch_tokens=1)
    folder = tmp_path / "two"
    shards = folder / "checkpoints"
    program(folder, sample_list)
    rank = start(folder)
    while not list(shards.glob("shard-*")):
        time.sleep(0.005)
        assert rank.poll() is None
    time.sleep(random.random() / 2)
    rank.kill()
    rank.wait()
    finished = {path: path.stat().st_mtime_ns for path in shards.glob("shard-*")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tts_assets.codec.shards", str(folder / "run.json")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    assert digests(folder) == digests(tmp_path / "one")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_a_stop_request_ends_the_run_after_the_batch(tmp_path: Path, sample_list: Path) -> None:
    program(tmp_path, sample_list)
    first = tmp_path / "checkpoints" / "shard-00000"
    thread = when(first.is_dir, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "run.json")])
    thread.join()
    assert left.value.code == STOPPED
    assert not (tmp_path / "result.json").is_file()
    untouched = first.stat().st_mtime_ns
    assert encode(tmp_path, sample_list).samples == 30
    assert first.stat().st_mtime_ns == untouched


def test_only_new_clips_are_encoded(
    tmp_path: Path, store: ArtifactStore, samples: list[Sample], sample_list: Path
) -> None:
    few = tmp_path / "few.jsonl"
    write_samples(few, samples[3:21:2])
    fresh = encode(tmp_path / "fresh", sample_list)
    assert (fresh.encoded, fresh.reused_codes) == (30, 0)
    earlier = publish(store, few).path
    facts = encode(tmp_path / "again", sample_list, reuse=[earlier])
    assert (facts.encoded, facts.reused_codes) == (21, 9)
    assert digests(tmp_path / "again") == digests(tmp_path / "fresh")
    other = encode(tmp_path / "other", few, reuse=[earlier], codec_content="other")
    assert (other.encoded, other.reused_codes) == (9, 0), "codes of another codec"


def test_few_codes_of_earlier_shards_are_mapped_at_once(tmp_path: Path) -> None:
    """A process may have 65,530 maps, and a corpus more shards."""
    digests = [f"{number:064x}" for number in range(OPEN + 10)]
    utterances = [
        Utterance(
            {"id": digest[-4:], "speaker_id": "", "original_data": {"audio_sha256": digest}},
            np.full(3, number % 60, np.uint16),
        )
        for number, digest in enumerate(digests)
    ]
    store = ArtifactStore(tmp_path)
    shards = publish_shards(store, utterances, (1,) * len(utterances))
    earlier = EarlierCodes([shards.path], shards.facts.codec, digests, print)
    for number in (3, OPEN + 9, 0, 3):
        codes = earlier.get(digests[number])
        assert codes is not None and codes.tolist() == [number % 60] * 3
    assert Path("/proc/self/maps").read_text().count(str(shards.path)) <= OPEN


def test_codes_of_a_damaged_artifact_are_not_reused(
    tmp_path: Path, store: ArtifactStore, sample_list: Path
) -> None:
    handle = publish(store, sample_list)
    codes = handle.path / "shard-00001.codes.npy"
    content = bytearray(codes.read_bytes())
    content[-1] ^= 1
    codes.write_bytes(content)
    facts = encode(tmp_path / "run", sample_list, reuse=[handle.path])
    assert (facts.encoded, facts.reused_codes) == (8, 22)
    encode(tmp_path / "fresh", sample_list)
    assert digests(tmp_path / "run") == digests(tmp_path / "fresh")


def test_a_file_that_changed_after_indexing_is_set_aside(
    tmp_path: Path, samples: list[Sample]
) -> None:
    path = tmp_path / "clip.g722"
    path.write_bytes(Path(samples[0].wav_path).read_bytes()[:-800])
    write_samples(
        tmp_path / "kept.jsonl",
        [samples[0].model_copy(update={"wav_path": str(path)}), samples[1]],
    )
    facts = encode(tmp_path / "run", tmp_path / "kept.jsonl")
    assert (facts.samples, facts.set_aside) == (1, 1)
    (record,) = read_set_aside(tmp_path / "run" / "result" / "set_aside.jsonl")
    assert (record.what, record.reason) == (samples[0].id, "changed since it was indexed")


def test_a_clip_too_short_for_a_code_is_set_aside(tmp_path: Path, samples: list[Sample]) -> None:
    published("neucodec").save_pretrained(tmp_path / "codec")
    short = tmp_path / "short.wav"
    soundfile.write(short, np.full(80, 0.1), 16_000)
    five_ms = Sample(id="short", wav_path=str(short), transcript="", duration=0.005)
    write_samples(tmp_path / "kept.jsonl", [five_ms, *samples[:3]])
    facts = encode(tmp_path / "run", tmp_path / "kept.jsonl", codec=tmp_path / "codec")
    assert (facts.samples, facts.set_aside) == (3, 1)
    (record,) = read_set_aside(tmp_path / "run" / "result" / "set_aside.jsonl")
    assert (record.what, record.reason) == ("short", "too short for the codec")
