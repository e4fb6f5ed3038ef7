"""Decoders for a codec's codes: other rates, exact resume, silence, and codecs that use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.codec.conftest import VENDORED, published
from tests.support.interrupting import assert_same_bytes_after_a_stop
from tts_assets.codec.config import DecoderProgram, DecoderRecipe
from tts_assets.codec.decoder import (
    OUTPUTS,
    CodecDecoder,
    DecoderOutput,
    copy_fitting_weights,
    decoder_config,
)
from tts_assets.codec.model import Codec
from tts_assets.codec.train_decoder import decoder_trainer, main
from tts_assets.codec.training_config import DecoderAdversarialConfig, DiscriminatorSizes
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import DecoderFacts, sha256_file
from tts_assets.core.audio import Wave
from tts_assets.core.config import ConfigError


@pytest.fixture(autouse=True)
def small_discriminators(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = DiscriminatorSizes((78,), (3,), channels=4)
    monkeypatch.setattr(DecoderAdversarialConfig, "discriminators", sizes)


def recipe(**changes: Any) -> DecoderRecipe:
    values: dict[str, Any] = {
        "corpora": {"asterisk_en": 1.0},
        "start": "scratch",
        "steps": 4,
        "batch_seconds": 1,
        "warmup": 1,
        "adversarial": DecoderAdversarialConfig(warmup=1),
        "eval_every": 100,
        "save_every": 100,
    }
    return DecoderRecipe(**values | changes)


def write(
    folder: Path, recipe: DecoderRecipe, samples: Path, codec: Path = VENDORED, **more: Any
) -> DecoderProgram:
    folder.mkdir(exist_ok=True)
    program = DecoderProgram(
        run_dir=folder,
        recipe=recipe,
        codec=codec,
        codec_content="digest",
        samples={"asterisk_en": samples},
        validation=ValidationSplit(fraction=0.2),
        **more,
    )
    (folder / "run.json").write_text(program.to_json())
    return program


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("rate", "hop", "upsampling"), [(24_000, 480, [[], []]), (48_000, 160, [[3, 2], [9, 6]])]
)
def test_a_decoder_decodes_the_same_codes_at_another_rate(
    tmp_path: Path,
    sample_list: Path,
    waves: list[Wave],
    capfd: pytest.CaptureFixture[str],
    rate: int,
    hop: int,
    upsampling: list[list[int]],
) -> None:
    write(tmp_path, recipe(sample_rate=rate, steps=2), sample_list)
    main([str(tmp_path / "run.json")])
    assert f"utterances were recorded below {rate} Hz, down to 16000" in capfd.readouterr().err
    facts = DecoderFacts.from_json(tmp_path / "result.json")
    assert (facts.sample_rate, facts.hop_length, facts.codec) == (rate, rate // 50, "digest")
    assert json.loads((tmp_path / "result" / "model_config.json").read_text()) == {
        "model_type": "codec_decoder",
        "sample_rate": rate,
        "token_rate": 50,
        "hop_length": hop,
        "upsample_factors": upsampling[0],
        "kernel_sizes": upsampling[1],
    }
    codec = Codec.load(VENDORED).use_decoder(tmp_path / "result")
    assert (codec.input_rate, codec.sample_rate, codec.hop_length) == (16_000, rate, rate // 50)
    (codes,) = codec.encode(waves[:1])
    assert np.array_equal(codes, Codec.load(VENDORED).encode(waves[:1])[0])
    (made,) = codec.decode([codes])
    assert len(made) == len(codes) * rate // 50 and np.isfinite(made).all()


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bytes(tmp_path: Path, sample_list: Path) -> None:
    def prepared(folder: Path) -> DecoderProgram:
        return write(folder, recipe(), sample_list)

    parts = assert_same_bytes_after_a_stop(tmp_path, prepared, decoder_trainer, main, after=2)
    published = {path.name for path in (parts / "result").iterdir()}
    assert {"model.safetensors", "config.json", "model_config.json", "recipe.json"} <= published


def test_the_codecs_own_decoder_is_a_better_initialization(
    tmp_path: Path, sample_list: Path
) -> None:
    """At 16 kHz all weights of the codec's decoder fit; at 24 kHz all but those of the head."""
    found = {}
    for start in ("codec", "scratch"):
        changes: dict[str, Any] = {"start": start, "steps": 1, "adversarial": None}
        write(tmp_path / start, recipe(sample_rate=16_000, lr=1e-6, **changes), sample_list)
        main([str(tmp_path / start / "run.json")])
        found[start] = metrics(tmp_path / start)[-1]["val_mel"]
    assert found["codec"] < 0.5 * found["scratch"]


@pytest.mark.slow
def test_the_loss_falls_and_a_trained_decoder_continues(
    tmp_path: Path, sample_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecoderRecipe, "min_lr_ratio", 1.0)
    more: dict[str, Any] = {"adversarial": None, "lr": 3e-3}
    write(tmp_path / "first", recipe(steps=40, **more), sample_list)
    main([str(tmp_path / "first" / "run.json")])
    losses = [record["loss"] for record in metrics(tmp_path / "first")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    start = tmp_path / "first" / "result"
    again = recipe(steps=1, start=str(start), **more | {"lr": 1e-6})
    write(tmp_path / "second", again, sample_list, start=start)
    main([str(tmp_path / "second" / "run.json")])
    assert metrics(tmp_path / "second")[0]["loss"] < np.mean(losses[:5])
    recorded = json.loads((tmp_path / "second" / "result" / "recipe.json").read_text())
    assert recorded["start"] == sha256_file(start / "model.safetensors")


def test_a_decoder_is_trained_for_a_published_codec(tmp_path: Path, sample_list: Path) -> None:
    published("neucodec").save_pretrained(tmp_path / "codec")
    changes: dict[str, Any] = {"start": "codec", "steps": 1, "adversarial": None}
    write(tmp_path, recipe(sample_rate=48_000, **changes), sample_list, tmp_path / "codec")
    main([str(tmp_path / "run.json")])
    assert DecoderFacts.from_json(tmp_path / "result.json").codebook_size == 65_536


def test_inconsistent_rates_are_rejected() -> None:
    values = {"sample_rate": 48_000, "token_rate": 50, "hop_length": 160}
    with pytest.raises(ConfigError, match="are not 48000 Hz"):
        DecoderOutput.parse(values, "model_config.json")
    bad = values | {"upsample_factors": [3, 2], "kernel_sizes": [8, 6]}
    with pytest.raises(ConfigError, match="larger by an even number"):
        DecoderOutput.parse(bad, "model_config.json")
    with pytest.raises(ConfigError, match="has the size of the codec's own"):
        DecoderRecipe.parse({"corpora": {"a": 1.0}, "size": {"hidden": 32}}, "decoder")


@pytest.mark.parametrize(("family", "rate"), [("xcodec2", 16_000), ("neucodec", 24_000)])
@pytest.mark.parametrize("wanted", [16_000, 24_000, 48_000])
def test_weights_of_a_published_decoder_are_copied(family: str, rate: int, wanted: int) -> None:
    """All weights if the rate is the same, all but the head if it is another."""
    trained = published(family)
    decoder = CodecDecoder(decoder_config(trained.config), OUTPUTS[wanted])
    new = copy_fitting_weights(trained.acoustic_decoder, decoder)
    own, theirs = decoder.state_dict(), trained.acoustic_decoder.state_dict()
    assert (not new) == (wanted == rate) and all(name.startswith("head.") for name in new)
    assert all(torch.equal(own[name], theirs[name]) for name in own.keys() - set(new))
