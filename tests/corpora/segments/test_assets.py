"""``speech_segments`` of recordings in a real Dagster run: card, accounting and samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dagster import DagsterInstance, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.support.links import linked_file
from tests.support.recordings import SpokenClip
from tts_assets.core.artifacts import ArtifactStore, sha256_file
from tts_assets.core.compute import Shape
from tts_assets.corpora.assets import build_assets
from tts_assets.corpora.config import CorpusConfig, DiscoveryConfig, FilterConfig
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.samples import located_samples
from tts_assets.corpora.segments import SegmentConfig

CORPUS = "talks"


@pytest.mark.slow
def test_recordings_become_samples_with_a_dataset_card(
    talk: tuple[Path, list[SpokenClip]], store: ArtifactStore
) -> None:
    config = CorpusConfig(
        path=talk[0], reader="speakers", language="en", licence="CC0", segments=SegmentConfig()
    )
    corpora = Corpora({CORPUS: config}, DiscoveryConfig(), talk[0])
    root = str(store.root)
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", [CORPUS])
        result = materialize(
            build_assets(corpora, FilterConfig(), shape=Shape(processes=2)),
            instance=instance,
            partition_key=CORPUS,
            resources={
                "store": ArtifactStoreResource(root=root),
                "io_manager": ArtifactIOManager(root=root),
                "launcher": TorchrunLauncher(),
            },
        )
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    account = {
        name: value.value
        for name, value in checks["every_second_is_accounted_for"].metadata.items()
    }
    assert account["recordings"] == 1
    assert account["seconds_kept"] > account["seconds_set_aside"] > 0

    (event,) = result.asset_materializations_for_node("speech_segments")
    card = str(event.metadata["card"].value)
    assert "| short | below 4 s |" in card
    assert "| question | ends with ? | 1 |" in card
    assert "data:image/png;base64," in card
    assert event.metadata["seconds/kept"].value > 20
    notebook = linked_file(event.metadata["listening"], store.root)
    assert notebook.read_text().count("data:audio/flac;base64,") >= 6
    assert "Question" in notebook.read_text()

    samples = list(located_samples(store.current("filtered_samples", CORPUS).path / "kept.jsonl"))
    assert len(samples) == account["clips"]
    recording = sha256_file(talk[0] / "ann/talk.wav")
    for sample in samples:
        assert Path(sample.wav_path).is_relative_to(store.audio_pool)
        assert sample.id == sample.original_data["audio_sha256"][:16]
        assert sample.original_data["recording"] == "ann/talk.wav"
        assert sample.original_data["recording_sha256"] == recording
        length = sample.original_data["end"] - sample.original_data["start"]
        assert abs(length - sample.duration) < 1e-4
        assert (sample.speaker_id, sample.original_data["licence"]) == ("ann", "CC0")
    rows = (store.current("speech_segments", CORPUS).path / "set_aside.jsonl").read_text()
    assert {json.loads(line)["reason"] for line in rows.splitlines()} == {"too short"}
