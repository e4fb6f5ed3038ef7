"""The time to encode a corpus again after one of its 1,000 clips has changed.

    python benchmarks/one_changed_clip.py

materializes ``codec_shards`` of the demo's clips and of quieter copies of them, with one rank a
core. Then it changes the gain of one clip and materializes again, which must encode that clip only.
It prints a Markdown table for two codecs: the vendored one, for which the start of the program
takes longer than encoding half an hour, and one with random weights whose encoder is a third as
wide as that of the published X-Codec-2 (eight minutes on two cores).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import soundfile
import torch
from dagster import AssetSpec, DagsterInstance, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tts_assets.codec.assets import build_assets
from tts_assets.codec.backends import save_codec
from tts_assets.codec.config import CodecArchitecture, CodecConfig
from tts_assets.codec.xcodec2 import build, calibrate
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    CodecShards,
    SampleFacts,
    SampleManifest,
    sha256_file,
)
from tts_assets.core.audio import Wave, read_wave
from tts_assets.core.compute import Shape
from tts_assets.corpora.filter import KEPT_FILE
from tts_assets.corpora.samples import Sample, write_samples
from tts_assets.orchestration.dependencies import corpus_partitions

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples/corpora/asterisk_en"
VENDORED = ROOT / "examples/codecs/announcer-16khz"
CLIPS, SHARD = 1000, 128
LARGER = CodecArchitecture(acoustic_hidden=16, ratios=(2, 2, 4, 4, 5))


def demo_waves() -> list[Wave]:
    """The waveforms of the demo corpus at 16 kHz."""
    lines = (CORPUS / "samples.jsonl").read_text().splitlines()
    return [read_wave(CORPUS / json.loads(line)["wav_path"], 16_000) for line in lines]


def clip(path: Path, wave: Wave, gain: float) -> Sample:
    """Write a clip. Returns its sample as in ``filtered_samples``."""
    soundfile.write(path, gain * wave, 16_000)
    return Sample(
        id=path.stem,
        wav_path=str(path),
        transcript=path.stem,
        duration=len(wave) / 16_000,
        sample_rate=16_000,
        original_data={"audio_sha256": sha256_file(path)},
    )


def larger_codec(folder: Path, waves: list[Wave]) -> Path:
    model = build(LARGER, seed=1)
    windows = [torch.from_numpy(wave[:12_800]) for wave in waves if len(wave) > 12_800]
    calibrate(model, torch.stack(windows[:30]))
    folder.mkdir()
    save_codec(model, folder, "fp32")
    return folder


def encode(store: ArtifactStore, codec: Path, samples: list[Sample]) -> tuple[CodecShards, float]:
    """Publish the sample list, materialize its shards; these and the seconds that it took."""
    identity = {"digests": [s.original_data["audio_sha256"] for s in samples]}
    listed = Build("filtered_samples", {}, identity, "1", partition="clips")
    result = store.work_folder(listed) / "result"
    result.mkdir()
    write_samples(result / KEPT_FILE, samples)
    counts = {"samples_in": len(samples), "kept": len(samples), "rejected": 0, "speakers": 1}
    facts = SampleFacts(corpus="clips", reasons={}, hours=0.0, **counts)
    store.publish(SampleManifest, listed, result, facts)
    shape = Shape(processes=len(os.sched_getaffinity(0)))
    config = CodecConfig(checkpoint=str(codec), shard_samples=SHARD)
    upstream = AssetSpec("filtered_samples", partitions_def=corpus_partitions)
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["clips"])
        run = materialize(
            [upstream, *build_assets(config, ValidationSplit(), shape, ROOT)],
            instance=instance,
            partition_key="clips",
            resources={
                "store": ArtifactStoreResource(root=str(store.root)),
                "io_manager": ArtifactIOManager(root=str(store.root)),
                "launcher": TorchrunLauncher(),
            },
        )
        (step,) = (s for s in run.get_step_success_events() if s.step_key == "codec_shards")
    handle = store.current("codec_shards", "clips")
    assert isinstance(handle, CodecShards)
    return handle, step.step_success_data.duration_ms / 1000


def main() -> None:
    waves = demo_waves()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        gains = [(number, 1.0 if number < len(waves) else 0.8) for number in range(CLIPS)]
        samples = [
            clip(folder / f"{number:04d}.wav", waves[number % len(waves)], gain)
            for number, gain in gains
        ]
        codecs = {"vendored": VENDORED, "larger": larger_codec(folder / "codec", waves)}
        for number, (codec_name, codec) in enumerate(codecs.items(), start=1):
            store = ArtifactStore(folder / f"storage-{codec_name}")
            full, whole_time = encode(store, codec, samples)
            assert (full.facts.encoded, full.facts.set_aside) == (CLIPS, 0)
            changed, gain = CLIPS // 2, 0.5 + 0.1 * number
            path = folder / f"changed-{codec_name}.wav"
            samples[changed] = clip(path, waves[changed], gain)
            again, change_time = encode(store, codec, samples)
            assert (again.facts.encoded, again.facts.reused_codes) == (1, CLIPS - 1)
            rows.append((codec_name, full.facts, whole_time, change_time))
    print(f"torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores\n")
    print("| codec | clips | hours | all, s | one changed, s | ratio |")
    print("|---|---|---|---|---|---|")
    for codec_name, facts, whole, change in rows:
        ratio = f"{change / whole:.1%}"
        print(
            f"| {codec_name} | {facts.samples} | {facts.hours:.2f} | {whole:.1f} | {change:.1f} "
            f"| {ratio} |"
        )


if __name__ == "__main__":
    main()
