"""Assets of speaker encoders: only if configured, published once, used for purity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
from dagster import AssetSpec, DagsterInstance, ExecuteInProcessResult, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.speakers.conftest import TESTED, recipe
from tts_assets.core.accounting import read_set_aside
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    CorpusFacts,
    Handle,
    RawCorpus,
    SampleFacts,
    SampleManifest,
    SpeakerEncoderCheckpoint,
    SpeakerPurity,
    SpeakerReport,
    SpeechSegments,
)
from tts_assets.core.audio import read_clip, resample
from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.corpora.samples import Sample, write_samples
from tts_assets.definitions import build_assets as all_assets
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.settings import load_settings
from tts_assets.speakers.assets import build_assets
from tts_assets.speakers.config import SpeakersConfig

pytestmark = pytest.mark.slow


def run(
    config: dict[str, Any], store: ArtifactStore, instance: DagsterInstance, partition: str = ""
) -> ExecuteInProcessResult:
    """Materialize the encoder and its report, or the purity of one corpus."""
    assets = build_assets(SpeakersConfig(**config), Shape(processes=1), Path())
    specs = [
        AssetSpec(key, partitions_def=corpus_partitions)
        for key in ("speech_segments", "filtered_samples")
    ]
    chosen = "speaker_purity" if partition else ["speaker_encoder", "speaker_report"]
    return materialize(
        [*specs, *assets],
        selection=chosen,
        instance=instance,
        partition_key=partition or None,
        resources={
            "store": ArtifactStoreResource(root=str(store.root)),
            "io_manager": ArtifactIOManager(root=str(store.root)),
            "launcher": TorchrunLauncher(),
        },
    )


def publish_segments(store: ArtifactStore, index: Path) -> None:
    """Publish the index ``voices``, and its rows as the ``speech_segments`` of utterances."""
    raw = RawCorpus.open(index)
    shared = raw.facts.model_dump(include=set(CorpusFacts.model_fields))
    segment_facts = shared | {"recordings": 0, "recorded_hours": 0.0}
    kinds = {
        "raw_corpus": (RawCorpus, raw.facts),
        "speech_segments": (SpeechSegments, segment_facts),
    }
    for asset, (kind, facts) in kinds.items():
        build = Build(asset, {}, {}, "1", partition="voices")
        result = store.work_folder(build) / "result"
        result.mkdir()
        for name in ("utterances.parquet", "set_aside.jsonl"):
            shutil.copyfile(index / name, result / name)
        store.publish(kind, build, result, facts)


def publish_samples(store: ArtifactStore, samples: list[Sample]) -> None:
    build = Build("filtered_samples", {}, {"n": len(samples)}, "1", partition="voices")
    result = store.work_folder(build) / "result"
    result.mkdir()
    write_samples(result / "kept.jsonl", samples)
    facts = SampleFacts(
        corpus="voices",
        samples_in=len(samples),
        kept=len(samples),
        rejected=0,
        reasons={},
        hours=0.0,
        speakers=2,
    )
    store.publish(SampleManifest, build, result, facts)


def test_a_trained_encoder_and_its_report(store: ArtifactStore, index: Path) -> None:
    publish_segments(store, index)
    config = {
        "corpora": ["voices"],
        "test_speakers": TESTED,
        "min_seconds": 0.5,
        "train": recipe(steps=3).model_dump(exclude={"base"}),
    }
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["voices"])
        first, second = (run(config, store, instance) for _ in range(2))
    encoder, report = store.current("speaker_encoder"), store.current("speaker_report")
    assert isinstance(encoder, SpeakerEncoderCheckpoint) and encoder.facts.steps == 3
    assert isinstance(report, SpeakerReport) and 0 < report.facts.eer <= 1
    assert report.facts.beside == "resemblyzer" and report.facts.eer_beside is not None
    for name in ("speaker_encoder", "speaker_report"):
        events = [r.asset_materializations_for_node(name)[0] for r in (first, second)]
        assert [event.metadata["reused"].value for event in events] == [False, True]
    shown = events[0].metadata["report"].value
    assert "resemblyzer" in shown and shown.count("data:image/png;base64,") >= 3


@pytest.mark.parametrize("encoder", ["resemblyzer", "speaker_encoder"])
def test_an_utterance_of_another_voice_is_flagged(
    encoder: str, store: ArtifactStore, clips: Path, tmp_path: Path
) -> None:
    """One clip of the slow voice is labelled with the announcer's name."""
    samples = []
    for path in sorted((clips / "audio").glob("*.g722")):
        clip = read_clip(path)
        for speaker, speed in (("announcer", 1.0), ("slow", 0.7)):
            target = tmp_path / "audio" / f"{path.stem}-{speaker}.wav"
            target.parent.mkdir(exist_ok=True)
            soundfile.write(
                target, resample(clip.wave, round(clip.rate * speed), clip.rate), 16_000
            )
            name = "announcer" if target.stem == "conf-invalid-slow" else speaker
            samples.append(
                Sample(id=target.stem, wav_path=str(target), transcript="", speaker_id=name)
            )
    silent = tmp_path / "audio" / "silent.wav"
    soundfile.write(silent, np.zeros(16_000), 16_000)
    samples.append(Sample(id="silent", wav_path=str(silent), transcript="", speaker_id="slow"))
    nobody = str(tmp_path / "audio" / "conf-invalid-slow.wav")
    samples.append(Sample(id="nobody", wav_path=nobody, transcript="", speaker_id=""))
    publish_samples(store, samples)
    config = {
        "corpora": ["voices"],
        "checkpoint": "resemblyzer",
        "purity": {"encoder": encoder, "min_similarity": 0.5},
    }
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["voices"])
        if encoder == "speaker_encoder":
            publish_public(config, store, instance)
        result = run(config, store, instance, "voices")
    handle = store.current("speaker_purity", "voices")
    assert isinstance(handle, SpeakerPurity)
    rows = pl.read_parquet(handle.path / "purity.parquet")
    assert rows.filter("outlier")["id"].to_list() == ["conf-invalid-slow"]
    assert (handle.facts.utterances, handle.facts.set_aside) == (len(samples), 2)
    records = read_set_aside(handle.path / "set_aside.jsonl")
    assert {r.what: r.reason for r in records} == {"silent": "no speech", "nobody": "no speaker"}
    assert set(rows["speaker"]) == {"announcer", "slow"}
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed and check.severity.value == "WARN"
    assert check.metadata["ids"].value == ["conf-invalid-slow"]


def publish_public(config: dict[str, Any], store: ArtifactStore, instance: DagsterInstance) -> None:
    assets = build_assets(SpeakersConfig(**config), Shape(processes=1), Path())
    resources = {
        "store": ArtifactStoreResource(root=str(store.root)),
        "io_manager": ArtifactIOManager(root=str(store.root)),
    }
    materialize([assets[0]], instance=instance, resources=resources)  # type: ignore[list-item]
    found: Handle = store.current("speaker_encoder")
    assert json.loads((found.path / "config.json").read_text())["audio"]["n_fft"] == 400


def test_assets_exist_only_if_configured() -> None:
    def keys(overrides: dict[str, Any]) -> set[str]:
        settings = load_settings(environment={}, overrides=overrides)
        return {
            key.to_user_string() for one in all_assets(settings) for key in getattr(one, "keys", ())
        }

    speakers = {"corpora": ["asterisk_en"], "checkpoint": "resemblyzer", "purity": {}}
    more = keys({"speakers": speakers}) - keys({})
    assert more == {"speaker_encoder", "speaker_report", "speaker_purity"}
    with pytest.raises(ConfigError, match=r"\[speakers\] has corpus 'nowhere'"):
        keys({"speakers": {**speakers, "corpora": ["nowhere"]}})
    with pytest.raises(ConfigError, match="give exactly one of checkpoint and train"):
        keys({"speakers": {"corpora": ["asterisk_en"]}})
