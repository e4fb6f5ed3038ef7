"""Lhotse manifests as lhotse 1.33 writes them; parts are cut with exact samples."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support.corpus_layouts import index, write
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.audio import read_clip, resample
from tts_assets.core.config import ConfigError, digest_of

RATE = 16_000


@pytest.fixture(scope="module")
def speech(clips: Path) -> np.ndarray:
    """All clips one after the other, 32 s."""
    return np.concatenate([read_clip(path).wave for path in sorted(clips.rglob("*.g722"))])


def manifest(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        write(path, text)


def recording(path: str, channels: int = 1, **changes: Any) -> dict[str, Any]:
    source = {"type": "file", "channels": list(range(channels)), "source": path}
    values = {"id": Path(path).stem, "sources": [source], "sampling_rate": RATE, "duration": 32.0}
    return {**values, "channel_ids": source["channels"], **changes}


def supervision(name: str, start: float, duration: float, **changes: Any) -> dict[str, Any]:
    values = {"id": f"{name}-{start}", "recording_id": name, "start": start, "duration": duration}
    return {**values, "channel": 0, "text": f"{start}", **changes}


def test_parts_are_cut_and_whole_recordings_are_used_in_place(
    speech: np.ndarray, tmp_path: Path
) -> None:
    root = tmp_path / "c"
    (root / "audio").mkdir(parents=True)
    soundfile.write(root / "audio" / "long.wav", speech, RATE)
    soundfile.write(root / "audio" / "short.flac", speech[:RATE], RATE)
    manifest(
        root / "x_recordings_dev.jsonl.gz",
        [recording("audio/long.wav"), recording(str(root / "audio" / "short.flac"))],
    )
    told = {"speaker": "ann", "language": "hu", "gender": "F", "custom": {"snr": 20}}
    manifest(
        root / "x_supervisions_dev.jsonl.gz",
        [
            supervision("long", 0.5, 1.25, **told),
            supervision("long", 30.001, 1.0, language="English"),
            supervision("short", 0.0, 1.0),
        ],
    )
    rows, set_aside = index(root, tmp_path / "out", "lhotse", speaker="bob")
    assert not set_aside
    first, last, whole = (
        rows.filter(text=text).row(0, named=True) for text in ("0.5", "30.001", "0.0")
    )
    assert (whole["audio"], whole["pooled"]) == ("audio/short.flac", False)
    assert (first["duration"], first["speaker"], first["language"]) == (1.25, "ann", "hu")
    assert (last["duration"], last["speaker"], last["language"]) == (1.0, "bob", "en")
    pool = tmp_path / "storage" / "audio"
    exact, _ = soundfile.read(root / "audio" / "long.wav", dtype="int16")
    for row, start in ((first, 8000), (last, 480_016)):
        audio, rate = soundfile.read(pool / row["audio"], dtype="int16")
        assert rate == RATE and soundfile.info(pool / row["audio"]).subtype == "PCM_16"
        np.testing.assert_array_equal(audio, exact[start : start + len(audio)])
    assert json.loads(first["extra"])["original_data"] == {
        "supervision": {"id": "long-0.5", "gender": "F", "custom": {"snr": 20}},
        "recording": "audio/long.wav",
        "recording_sha256": sha256_file(root / "audio" / "long.wav"),
        "start": 0.5,
        "end": 1.75,
    }


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "ULAW", "PCM_24", "PCM_32", "FLOAT", "VORBIS", "MPEG_LAYER_III"]
)
def test_cuts_keep_the_sample_values_of_each_type(
    speech: np.ndarray, tmp_path: Path, subtype: str
) -> None:
    root = tmp_path / "c"
    root.mkdir()
    name = {"VORBIS": "a.ogg", "MPEG_LAYER_III": "a.mp3"}.get(subtype, "a.wav")
    soundfile.write(root / name, speech[: 8 * RATE] * 1.0001, RATE, subtype=subtype)
    manifest(root / "recordings.jsonl", [recording(name)])
    manifest(root / "supervisions.jsonl", [supervision("a", 2.0, 3.0)])
    rows, _ = index(root, tmp_path / "out", "lhotse")
    cut, _ = soundfile.read(tmp_path / "storage" / "audio" / rows["audio"][0])
    source, _ = soundfile.read(root / name)
    difference = np.abs(cut - source[2 * RATE : 5 * RATE]).max()
    exact = subtype in ("PCM_U8", "ULAW", "PCM_24")
    assert difference == 0 if exact else 0 < difference <= 2**-23


def test_channels_are_separated(speech: np.ndarray, tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    both = np.stack([speech[:RATE], speech[RATE : 2 * RATE]], axis=1)
    soundfile.write(root / "a.wav", both, RATE)
    manifest(root / "recordings.jsonl", [recording("a.wav", channels=2)])
    sides = [supervision("a", 0.0, 1.0, channel=side, text=str(side)) for side in (0, 1)]
    manifest(root / "supervisions.jsonl", [*sides, supervision("a", 0.0, 1.0, channel=[0, 1])])
    rows, _ = index(root, tmp_path / "out", "lhotse")
    for side in (0, 1):
        (row,) = rows.filter(text=str(side)).iter_rows(named=True)
        clip = read_clip(tmp_path / "storage" / "audio" / row["audio"])
        assert row["channels"] == clip.channels == 1
        np.testing.assert_allclose(clip.wave, both[:, side], atol=2**-15)
    (whole,) = rows.filter(text="0.0").iter_rows(named=True)
    assert (whole["audio"], whole["channels"]) == ("a.wav", 2)


def test_unusable_supervisions_are_set_aside(speech: np.ndarray, tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    soundfile.write(root / "a.wav", speech[: 4 * RATE], RATE)
    soundfile.write(root / "b.wav", resample(speech[:RATE], RATE, 8000), 8000)
    (root / "empty.wav").write_bytes(b"")
    url = [{"type": "url", "channels": [0], "source": "https://example.com/a.wav"}]
    manifest(
        root / "recordings.jsonl",
        [
            recording("a.wav"),
            recording("b.wav"),
            recording("empty.wav"),
            recording("../out.wav"),
            recording("c.wav", sources=url),
            recording("d.wav", transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]),
            recording("e.wav"),
            recording("a.wav"),
        ],
    )
    manifest(
        root / "supervisions.jsonl",
        [
            supervision("a", 1.0, 1.0),
            supervision("a", 3.0, 2.0),
            supervision("a", -1.0, 2.0),
            supervision("a", 1.0, 0.0),
            supervision("a", 1.0, 1.0, channel=3),
            supervision("b", 0.0, 1.0),
            supervision("empty", 0.0, 1.0),
            supervision("out", 0.0, 1.0),
            supervision("c", 0.0, 1.0),
            supervision("d", 0.0, 1.0),
            supervision("nobody", 0.0, 1.0),
            {"recording_id": ["a"]},
            supervision("a", 0.0, 1.0, text=["words"]),
        ],
    )
    rows, set_aside = index(root, tmp_path / "out", "lhotse")
    assert len(rows) == 2
    assert {record.what: record.reason for record in set_aside} == {
        "supervisions.jsonl:2": "not within its recording",
        "supervisions.jsonl:3": "no start or duration",
        "supervisions.jsonl:4": "no start or duration",
        "supervisions.jsonl:5": "no such channel",
        "supervisions.jsonl:7": "empty file",
        "supervisions.jsonl:8": "path outside the corpus",
        "supervisions.jsonl:9": "source is no file",
        "supervisions.jsonl:10": "recording to be transformed",
        "supervisions.jsonl:11": "no such recording",
        "supervisions.jsonl:12": "no such recording",
        "supervisions.jsonl:13": "a field of another type",
        "recordings.jsonl:7": "no supervision",
        "recordings.jsonl:8": "no id of its own",
    }


def test_a_truncated_manifest_is_read_to_its_end(speech: np.ndarray, tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    soundfile.write(root / "a.wav", speech[: 9 * RATE], RATE)
    manifest(root / "recordings.jsonl.gz", [recording("a.wav")])
    rows = [supervision("a", n / 50, 0.5, text=digest_of(n)) for n in range(400)]
    manifest(root / "supervisions.jsonl.gz", rows)
    packed = (root / "supervisions.jsonl.gz").read_bytes()
    (root / "supervisions.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    rows, set_aside = index(root, tmp_path / "out", "lhotse")
    assert 100 < len(rows) < 300
    (record,) = set_aside
    assert (record.what, record.reason) == (f"supervisions.jsonl.gz:{len(rows) + 1}", "truncated")


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no recordings\.jsonl\.gz"):
        index(tmp_path, tmp_path / "none", "lhotse")
    manifest(tmp_path / "a_recordings.jsonl.gz", [])
    with pytest.raises(ConfigError, match=r"has no a_supervisions\.jsonl\.gz"):
        index(tmp_path, tmp_path / "again", "lhotse")
