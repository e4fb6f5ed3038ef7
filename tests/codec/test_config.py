"""Invalid configurations and sources are rejected with a message that says how to fix them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.codec.conftest import VENDORED
from tts_assets.codec.config import CodecConfig, identify
from tts_assets.codec.training_config import REFERENCE
from tts_assets.core.config import ConfigError


def train(**changes: Any) -> dict[str, Any]:
    return {"train": {"corpora": {"a": 1.0}, **changes}}


def decoder(**changes: Any) -> dict[str, Any]:
    return {"checkpoint": "x", "decoder": {"corpora": {"a": 1.0}, **changes}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of checkpoint and train"),
        ({"checkpoint": "x", **train()}, "exactly one of checkpoint and train"),
        ({"revision": "0" * 40, "checkpoint": "a/b"}, "checkpoint = 'owner/name@revision'"),
        ({"chekpoint": "x"}, "did you mean 'checkpoint'"),
        (train(architecture={"ratios": [2, 2]}), r"multiply to 4.*\[20, 16\]"),
        (train(architecture={"ratios": [10, 32]}), "acoustic_hidden = 0 leaves out"),
        (train(architecture={"hidden": 100}), "multiple of 32"),
        (train(architecture={"levels": [8] * 6}), "262144 codes.*at most 65536"),
        (train(freeze_encoder=True), "needs a base"),
        (train(window_seconds=[20]), "between 1 and batch_seconds"),
        (train(corpora={"a": 0.0}), "no positive weight"),
        (train(adversarial={"start": 1.0}), "less than 1"),
        (train(adversarial={"sizes": [16]}), "between 32"),
        (train(adversarial={"periods": [0]}), "2 or more samples"),
        (train(base="x", architecture={"layers": 3}), "leave architecture out"),
        (decoder(adversarial={"freeze_encoder": True}), "freeze_encoder"),
        (train(adversarial={"share": 0.5}), "'share' was removed, its value is always 0.5"),
        (train(spread_weight=0.5), "now called 'covariance_weight'"),
        (train(ema=0.9), "'ema' was removed, its value is always 0.999"),
        (decoder(speeds=[0.9]), "'speeds' was removed"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CodecConfig.parse(values, "codec")


def test_toml_can_leave_out_the_adversarial_stage() -> None:
    config = CodecConfig.parse(train(adversarial=False), "codec")
    assert config.train is not None and config.train.adversarial is None
    assert CodecConfig.parse(config.model_dump(mode="json"), "codec") == config


def test_a_decoder_has_the_adversarial_stage_of_the_reference() -> None:
    config = CodecConfig.parse(decoder(adversarial={"warmup": 7}), "codec").decoder
    assert config is not None and config.adversarial is not None
    assert config.first_adversarial_step == 0 and config.adversarial.window_fraction == 1.0
    assert config.adversarial.discriminators == REFERENCE
    # Decoders that were trained when these were keys keep their fingerprints.
    assert config.adversarial.canonical() == {
        "objective": "least_squares",
        "overlap": 2,
        "share": 1.0,
        "start": 0.0,
        "generator_lr": None,
        "warmup": 7,
        "sizes": [78, 126, 206, 334, 542, 876, 1418, 2296],
        "periods": [2, 3, 5, 7, 11],
        "channels": 32,
        "lr": 1e-4,
        "adversarial_weight": 1.0,
        "feature_weight": 1.0,
    }
    with pytest.raises(ConfigError, match=r"write lr in \[codec\.decoder\]"):
        CodecConfig.parse(decoder(adversarial={"generator_lr": 1e-4}), "codec")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("examples/codecs/anouncer-16khz", "neither a folder nor a file"),
        ("anouncer", "neither a folder nor a file"),
        ("weights.pt", r"ends in one of .*\.ckpt"),
    ],
)
def test_other_names_and_files_are_no_checkpoint(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=message):
        identify(name, tmp_path)


def test_a_local_folder_has_no_revision() -> None:
    with pytest.raises(ConfigError, match="neither a folder nor a file"):
        identify(f"{VENDORED}@main", Path())


def test_a_missing_file_of_sizes_is_reported(tmp_path: Path) -> None:
    (tmp_path / "codec.ckpt").write_bytes(b"")
    from tts_assets.codec.original import OriginalError, convert

    with pytest.raises(OriginalError, match=r"no file .*sizes\.json"):
        convert(tmp_path / "codec.ckpt", tmp_path / "codec", tmp_path / "sizes.json")
