"""Semantic targets: Whisper's own features, which the codes learn to predict."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from faster_whisper import WhisperModel
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.support.codec_training import opened, write
from tests.support.interrupting import assert_same_bytes_after_a_stop
from tts_assets.audio_models.whisper import packaged_model
from tts_assets.codec.config import CodecArchitecture, CodecProgram, CodecRecipe, SemanticConfig
from tts_assets.codec.model import Codec
from tts_assets.codec.semantic import WhisperFeatures, read_encoder
from tts_assets.codec.train import codec_trainer, main
from tts_assets.core.audio import Wave


@pytest.fixture(scope="module")
def features() -> WhisperFeatures:
    return WhisperFeatures.load(packaged_model())


def whole_codes(wave: Wave) -> torch.Tensor:
    """(1, samples) of a clip, cut to a whole number of codes."""
    return torch.from_numpy(wave[: len(wave) // 320 * 320])[None]


def test_features_are_those_of_faster_whisper(features: WhisperFeatures, waves: list[Wave]) -> None:
    reference = WhisperModel(str(packaged_model()), device="cpu", compute_type="float32")
    for wave in waves:
        clip = whole_codes(wave)
        bands = features.log_mel(clip)[0].numpy()
        theirs = reference.feature_extractor(clip[0].numpy())[:, : bands.shape[1]]
        # faster-whisper appends silence, which changes the last frame.
        assert np.abs(bands - theirs)[:, :-1].max() < 1e-4
        encoded = reference.encode(bands)
        wanted = np.asarray(encoded.to_device(ctranslate2.Device.cpu))[0]
        found = features.raw(clip)[0].numpy()
        assert found.shape == (clip.shape[1] // 320, 384)
        assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_features_are_standardized_over_the_training_audio(
    features: WhisperFeatures, speech: list[Wave]
) -> None:
    clips = torch.cat([whole_codes(wave)[:, :16_000] for wave in speech])
    features.calibrate(clips)
    found = features(clips).flatten(0, 1)
    assert found.mean(dim=0).abs().max() < 1e-3
    assert found.std(dim=0).quantile(0.9) == pytest.approx(1, abs=1e-3)


def test_a_quantized_whisper_is_refused(tmp_path: Path) -> None:
    for path in packaged_model().iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.bin").unlink()
    spec = b"WhisperSpec\0"
    name = b"encoder/conv1/weight\0"
    parts = [np.uint32(6).tobytes(), np.uint16(len(spec)).tobytes(), spec]
    parts += [np.array([3, 1], np.uint32).tobytes(), np.uint16(len(name)).tobytes(), name]
    parts += [b"\1", np.uint32(2).tobytes(), b"\1", np.uint32(2).tobytes(), b"\0\0"]
    (tmp_path / "model.bin").write_bytes(b"".join(parts))
    with pytest.raises(ValueError, match="quantized weights: name a float16 model"):
        read_encoder(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="is no Whisper of CTranslate2"):
        read_encoder(tmp_path)


def recipe(tiny: CodecArchitecture, steps: int, semantic: SemanticConfig | None) -> CodecRecipe:
    return CodecRecipe(
        corpora={"asterisk_en": 1.0},
        architecture=tiny,
        steps=steps,
        batch_seconds=2,
        window_seconds=(1,),
        warmup=1,
        lr=3e-3,
        adversarial=None,
        eval_every=100,
        save_every=100,
        semantic=semantic,
    )


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bytes(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    targets = SemanticConfig(weight=1.0, audio_weight=1.0)

    def prepared(folder: Path) -> CodecProgram:
        return write(folder, recipe(tiny, 4, targets), sample_list)

    parts = assert_same_bytes_after_a_stop(tmp_path, prepared, codec_trainer, main, after=2)
    lines = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert all(line["semantic"] > 0 and line["semantic_audio"] > 0 for line in lines)
    published = load_file(parts / "result/model.safetensors")
    assert not [name for name in published if "head.first" in name]
    assert Codec.load(parts / "result").codebook_size == 125


@pytest.mark.slow
def test_the_codes_learn_to_predict_the_features(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    with opened(tmp_path, recipe(tiny, 40, SemanticConfig(weight=1.0)), sample_list) as trainer:
        errors = [trainer.train_step(step)["semantic"] for step in range(40)]
    assert np.mean(errors[-10:]) < 0.9 * np.mean(errors[:3])


def test_a_table_without_weights_is_refused() -> None:
    with pytest.raises(ValidationError, match="leave the table semantic out"):
        SemanticConfig(weight=0.0)
