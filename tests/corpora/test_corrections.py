"""Corrections beside a corpus: what they change, their versions, and lines that are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from dagster import DagsterInstance

from tests.corpora.test_assets import CORPUS, reused, run
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.config import ConfigError
from tts_assets.corpora.corrections import Correction, Corrections
from tts_assets.corpora.samples import Sample, read_samples

ONE, TWO = "0" * 16, "1" * 16


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", [CORPUS])
        yield instance


def test_the_last_line_of_a_clip_counts(tmp_path: Path) -> None:
    layer = Corrections.of(tmp_path, "ann")
    assert layer.identity() == {} and not layer.path.exists()
    layer = layer.add(Correction(id=ONE, text=" two\n three ", was="too"))
    first = layer.identity()
    layer = layer.add(Correction(id=TWO, drop=True, was="four"))
    rows = pl.LazyFrame({"id": [TWO, "2" * 16, ONE], "text": ["four", "five", "too"]})
    assert layer.apply(rows).collect().to_dicts() == [
        {"id": TWO, "text": "four", "dropped": True},
        {"id": "2" * 16, "text": "five", "dropped": False},
        {"id": ONE, "text": "two three", "dropped": False},
    ]
    layer = layer.add(Correction(id=TWO, was="four"))  # restored
    assert layer.identity() == first
    again = Corrections.of(tmp_path, "ann")
    assert again == layer and len(again.lines) == 3
    assert again.source_text(ONE) == "too" and again.source_text("2" * 16) is None


def test_lines_by_hand_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "corrections" / "ann.jsonl"
    path.parent.mkdir()
    for line, message in (
        ('{"id": "x", "drop": true}', "ann.jsonl:2: id: "),
        (f'{{"id": "{ONE}", "text": " "}}', "the text is empty"),
        (f'{{"id": "{ONE}", "text": "a", "drop": true}}', "leave text or drop out"),
        (f'{{"id": "{ONE}", "txt": "a"}}', "did you mean 'text'?"),
        ("[]", "no JSON object"),
        ("{", "ann.jsonl:2: no JSON"),
    ):
        path.write_text(f'{{"id": "{TWO}", "drop": true}}\n{line}\n')
        with pytest.raises(ConfigError) as refused:
            Corrections.of(tmp_path, "ann")
        assert message in str(refused.value)
    path.write_text(f'{{"id": "{TWO}", "drop": true}}')  # an editor left the last line open
    Corrections.of(tmp_path, "ann").add(Correction(id=ONE, text="two"))
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [TWO, ONE]


@pytest.mark.slow
def test_a_correction_makes_only_the_samples_again(
    instance: DagsterInstance, store: ArtifactStore, corpus: Path
) -> None:
    def kept() -> dict[str, Sample]:
        samples = read_samples(store.current("filtered_samples", CORPUS).path / "kept.jsonl")
        return {sample.id: sample for sample in samples}

    assert run(instance, store, corpus).success
    before, handle = kept(), store.current("filtered_samples", CORPUS)
    changed, dropped, *_ = before
    layer = Corrections.of(corpus.parent, CORPUS)
    layer.add(Correction(id=changed, text="Track 9.")).add(Correction(id=dropped, drop=True))
    assert reused(run(instance, store, corpus)) == [True, True, False]
    after = kept()
    assert after.keys() == before.keys() - {dropped}
    assert after[changed].transcript == "Track nine."
    assert after[changed].original_data["text"] == "Track 9."
    assert {name: after[name] for name in after if name != changed} == {
        name: before[name] for name in after if name != changed
    }
    facts = store.current("filtered_samples", CORPUS).facts
    assert facts.model_dump()["reasons"] == {"dropped by a correction": 1}
    layer.add(Correction(id=changed)).add(Correction(id=dropped))
    assert reused(run(instance, store, corpus)) == [True, True, True]
    assert store.current("filtered_samples", CORPUS).manifest == handle.manifest
