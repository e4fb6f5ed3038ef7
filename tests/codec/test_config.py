"""Invalid configurations and sources are rejected with a message that says how to fix them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.codec.conftest import VENDORED
from tts_assets.codec.config import CodecConfig
from tts_assets.codec.sources import identify
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
        ({"revision": "0" * 40, **train()}, "revision goes with checkpoint"),
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


def test_a_decoder_keeps_its_discriminators_if_one_key_is_given() -> None:
    config = CodecConfig.parse(decoder(adversarial={"start": 0.5}), "codec").decoder
    assert config is not None and config.adversarial is not None
    adversarial = config.adversarial
    assert (adversarial.start, adversarial.window_fraction) == (0.5, 1.0)
    assert len(adversarial.sizes) == 8 and adversarial.periods == (2, 3, 5, 7, 11)


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
        identify(name, None, tmp_path)


def test_a_local_folder_has_no_revision() -> None:
    with pytest.raises(ConfigError, match=r"leave codec\.revision out"):
        identify(str(VENDORED), "0" * 40, Path())


def test_a_missing_file_of_sizes_is_reported(tmp_path: Path) -> None:
    (tmp_path / "codec.ckpt").write_bytes(b"")
    from tts_assets.codec.original import OriginalError, convert

    with pytest.raises(OriginalError, match=r"no file .*sizes\.json"):
        convert(tmp_path / "codec.ckpt", tmp_path / "codec", tmp_path / "sizes.json")
