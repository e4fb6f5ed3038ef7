"""Counts of all stages: any wrong count is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.arrays.conftest import Utterance, publish_shards
from tts_assets.arrays.arrays import ArrayError
from tts_assets.arrays.merge import check_counts, merge
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Build,
    CodeArrays,
    Handle,
    RawCorpus,
    SampleManifest,
    SpeechSegments,
)
from tts_assets.corpora.index import SCHEMA

COUNTS = {"utterances": 17, "not_usable": 3, "clips": 17, "kept": 15, "rejected": 2}
CORPUS_FACTS = {"corpus": "asterisk", "language": "en"}
CORPUS_FACTS |= {"licence": "", "hours": 0.01, "speakers": 1}


def lines(path: Path, count: int) -> None:
    path.write_text("".join(json.dumps({"id": str(n)}) + "\n" for n in range(count)))


def publish(
    store: ArtifactStore, kind: type[Handle], inputs: dict[str, Handle], files: Any, facts: Any
) -> Handle:
    build = Build(kind.kind, inputs, {}, "1", partition="asterisk")
    result = store.work_folder(build) / "result"
    result.mkdir()
    for name, count in files.items():
        if name.endswith(".parquet"):
            ids = {"id": [str(n) for n in range(count)]}
            empty = pl.DataFrame(schema=SCHEMA)
            pl.concat([empty, pl.DataFrame(ids)], how="diagonal").write_parquet(result / name)
        else:
            lines(result / name, count)
    return store.publish(kind, build, result, facts)


def lineage(
    store: ArtifactStore, utterances: list[Utterance], segmented: bool, recordings: int = 0
) -> CodeArrays:
    """13 samples in arrays, 2 that could not be encoded, and all that came before them."""
    c = COUNTS
    files = {"utterances.parquet": c["utterances"], "set_aside.jsonl": c["not_usable"]}
    counts = {"utterances": c["utterances"], "set_aside": c["not_usable"]}
    entries = {"entries": c["utterances"] + c["not_usable"]}
    source = publish(store, RawCorpus, {}, files, CORPUS_FACTS | counts | entries | {"root": ""})
    if segmented:
        files = {"utterances.parquet": c["clips"], "set_aside.jsonl": 0}
        counts = {"utterances": c["clips"], "set_aside": 0, "recordings": recordings}
        facts = CORPUS_FACTS | counts | {"recorded_hours": 0.0}
        source = publish(store, SpeechSegments, {"raw": source}, files, facts)
    files = {"kept.jsonl": c["kept"], "rejected.jsonl": c["rejected"]}
    counts = {"samples_in": c["clips"], "kept": c["kept"], "rejected": c["rejected"]}
    facts = {"corpus": "asterisk", "reasons": {}, "hours": 0.01, "speakers": 1} | counts
    samples = publish(store, SampleManifest, {"source": source}, files, facts)
    shards = publish_shards(store, utterances, (6, 7), inputs={"samples": samples}, set_aside=2)
    build = Build("code_arrays", {"shards": shards}, {}, "2", partition="asterisk")
    result = store.work_folder(build) / "result"
    result.mkdir()
    arrays = store.publish(
        CodeArrays, build, result, merge(shards, ValidationSplit(fraction=0.5), result)
    )
    assert isinstance(arrays, CodeArrays)
    return arrays


@pytest.mark.parametrize(("segmented", "recordings"), [(False, 0), (True, 0), (True, 17)])
def test_the_counts_of_all_stages_add_up(
    store: ArtifactStore, utterances: list[Utterance], segmented: bool, recordings: int
) -> None:
    arrays = lineage(store, utterances, segmented, recordings)
    numbers = check_counts(store, arrays)
    assert numbers["train"] + numbers["val"] == numbers["encoded"] == 13
    assert numbers["not_encoded"] == 2
    assert numbers["entries"] == 20
    assert {name: n for name, n in numbers.items() if name in COUNTS} == {
        name: n for name, n in COUNTS.items() if segmented or name != "clips"
    }


@pytest.mark.parametrize(
    ("asset", "file", "message"),
    [
        ("raw_corpus", "set_aside.jsonl", r"raw_corpus/.*set aside are 19, but should be 20"),
        ("filtered_samples", "kept.jsonl", r"kept \+ rejected are 16, but should be 17"),
        ("codec_shards", "set_aside.jsonl", r"encoded \+ set aside are 14, but should be 15"),
    ],
)
def test_a_lost_line_is_found(
    store: ArtifactStore, utterances: list[Utterance], asset: str, file: str, message: str
) -> None:
    arrays = lineage(store, utterances, segmented=True)
    path = store.current(asset, "asterisk").path / file
    size = path.stat().st_size
    lost = path.read_bytes().splitlines()[:-1]
    path.write_bytes((b"\n".join(lost) + b"\n").ljust(size, b" "))
    with pytest.raises(ArrayError, match=message):
        check_counts(store, arrays)


def test_recordings_that_were_not_segmented_are_found(
    store: ArtifactStore, utterances: list[Utterance]
) -> None:
    arrays = lineage(store, utterances, segmented=True, recordings=16)
    with pytest.raises(ArrayError, match=r"speech_segments/.*recordings are 16, but should be 17"):
        check_counts(store, arrays)


def test_the_error_names_a_stage_that_is_no_longer_stored(
    store: ArtifactStore, utterances: list[Utterance]
) -> None:
    arrays = lineage(store, utterances, segmented=False)
    source = store.current("filtered_samples", "asterisk").path
    source.rename(source.with_name("elsewhere"))
    with pytest.raises(ArtifactError, match="is not a published artifact"):
        check_counts(store, arrays)
