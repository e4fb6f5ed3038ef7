"""Shards of real clips: the codes are the loudness of each 20 ms, 64 steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tts_assets.core.artifacts import ArtifactStore, Build, CodecShards, Handle, ShardFacts
from tts_assets.core.audio import read_wave

FRAME = 320  # 20 ms at 16 kHz
CODEBOOK = 64


class Utterance(NamedTuple):
    sample: dict[str, Any]
    codes: np.ndarray


def loudness_codes(path: Path) -> np.ndarray:
    """One code a frame: root mean square in steps of 1.25 dB, from -80 to 0 dB."""
    wave = read_wave(path, 16000)
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    decibel = 20 * np.log10(np.sqrt((frames**2).mean(axis=1)) + 1e-4)
    return np.clip((decibel + 80) / 1.25, 0, CODEBOOK - 1).astype(np.uint16)


@pytest.fixture(scope="session")
def utterances(clips: Path) -> list[Utterance]:
    """The clips as samples with codes; ids are the keys of the corpus."""
    found = []
    for line in (clips / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        path = clips / sample["wav_path"]
        sample |= {"id": sample["original_data"]["key"], "wav_path": str(path)}
        found.append(Utterance(sample, loudness_codes(path)))
    return found


def write_shard(folder: Path, number: int, utterances: Sequence[Utterance]) -> None:
    name = f"shard-{number:05}"
    lengths = np.array([len(u.codes) for u in utterances], dtype=np.int64)
    codes = [u.codes for u in utterances] or [np.empty(0, np.uint16)]
    np.save(folder / f"{name}.codes.npy", np.concatenate(codes))
    np.save(folder / f"{name}.index.npy", np.cumsum(lengths) - lengths)
    lines = [json.dumps(u.sample, ensure_ascii=False) + "\n" for u in utterances]
    (folder / f"{name}.samples.jsonl").write_text("".join(lines))


def publish_shards(
    store: ArtifactStore,
    utterances: Sequence[Utterance],
    layout: Sequence[int],
    corpus: str = "asterisk",
    *,
    inputs: Mapping[str, Handle] | None = None,
    set_aside: int = 0,
    **wrong_facts: Any,
) -> CodecShards:
    """Publish ``codec_shards[corpus]`` with ``layout`` utterances in each shard, and a line for
    each of ``set_aside`` others."""
    assert sum(layout) == len(utterances)
    build = Build(
        "codec_shards", inputs or {}, {"layout": list(layout)} | wrong_facts, "1", partition=corpus
    )
    result = store.work_folder(build) / "result"
    result.mkdir()
    first = 0
    for number, size in enumerate(layout):
        write_shard(result, number, utterances[first : first + size])
        first += size
    (result / "set_aside.jsonl").write_text("{}\n" * set_aside)
    codes = sum(len(u.codes) for u in utterances)
    facts = {
        "corpus": corpus,
        "shards": len(layout),
        "samples_in": len(utterances) + set_aside,
        "speakers": len({u.sample["speaker_id"] for u in utterances}),
        "samples": len(utterances),
        "set_aside": set_aside,
        "codes": codes,
        "hours": codes / 50 / 3600,
        "codec": "c0dec",
        "sample_rate": 16000,
        "token_rate": 50.0,
        "codebook_size": CODEBOOK,
    }
    handle = store.publish(CodecShards, build, result, ShardFacts(**facts | wrong_facts))
    assert isinstance(handle, CodecShards)
    return handle
