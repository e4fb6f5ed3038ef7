"""Waveforms to codes and back, with the vendored codec and with models of transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig

from tests.codec.conftest import VENDORED, compact, published
from tts_assets.codec.backends import CompactBackend, Precision
from tts_assets.codec.losses import SpectralLoss
from tts_assets.codec.model import Codec
from tts_assets.codec.xcodec2 import LogFilterbank
from tts_assets.core.audio import Wave
from tts_assets.settings import load_settings


def test_a_clip_survives_the_round_trip(vendored: Codec, waves: list[Wave]) -> None:
    codes = vendored.encode(waves)
    made = vendored.decode(codes)
    loss = SpectralLoss()
    for wave, clip, back in zip(waves, codes, made, strict=True):
        assert len(clip) == math.ceil(len(wave) / 320)
        assert len(back) == len(clip) * vendored.hop_length
        pair = [torch.from_numpy(w[: len(wave)]).unsqueeze(0) for w in (back, wave)]
        _, distance = loss(*pair)
        _, of_silence = loss(torch.zeros_like(pair[1]), pair[1])
        assert distance < 0.9 < 2.0 < of_silence  # the decoder chooses the intonation


def test_the_vendored_codec_has_the_recorded_recipe(vendored: Codec) -> None:
    """``make codec-demo`` trains the decoder on by the same recipe, from what it has become."""
    recorded = json.loads((VENDORED / "recipe.json").read_text())
    profile = load_settings(environment={"TTS_PROFILE": "codec_demo"}).codec.train.canonical()
    assert profile.pop("base") == "examples/codecs/announcer-16khz"
    assert profile.pop("architecture")  # not that of the base
    assert len(recorded.pop("base")) == 64 and profile == recorded
    assert vendored.codebook_size == 4096


def test_codes_and_waveforms_do_not_depend_on_other_clips(
    vendored: Codec, waves: list[Wave]
) -> None:
    together = vendored.encode(waves)
    made = vendored.decode(together)
    for index, wave in enumerate(waves):
        (alone,) = vendored.encode([wave])
        assert np.array_equal(alone, together[index])
        assert np.array_equal(vendored.decode([alone])[0], made[index])


def test_codes_of_a_filterbank_depend_on_nearby_audio_only(waves: list[Wave]) -> None:
    """Features are not normalized over the clip, so a voice prompt has the codes of its clip."""
    codec = Codec(CompactBackend(compact()), "cpu")
    longer = np.concatenate([waves[0][: 320 * 40], waves[1]])
    (codes,) = codec.encode([waves[0]])
    (mixed,) = codec.encode([longer])
    assert np.mean(codes[:30] == mixed[:30]) > 0.95


def test_codes_are_spread_over_the_codebook(vendored: Codec, waves: list[Wave]) -> None:
    codes = np.concatenate(vendored.encode(waves))
    assert codes.min() >= 0
    assert codes.max() < vendored.codebook_size
    assert len(np.unique(codes)) > 0.5 * len(codes)


def test_silence_stays_silent(vendored: Codec, waves: list[Wave]) -> None:
    """Digital silence and noise below half a 16-bit step, fainter than speech in most bands."""
    faint = np.random.default_rng(0).standard_normal(48_000).astype(np.float32)
    for silence in (0 * faint, 1e-6 * faint, 1e-5 * faint):
        (alone,) = vendored.decode(vendored.encode([silence]))
        assert np.sqrt(np.mean(alone**2)) < 0.001
        after_speech = np.concatenate([waves[0], silence])
        (made,) = vendored.decode(vendored.encode([after_speech]))
        # Whisper's features are relative to the loudest frame of a clip.
        assert np.sqrt(np.mean(made[len(waves[0]) + 1600 : len(after_speech)] ** 2)) < 0.01


def test_the_filterbank_equals_kaldis(waves: list[Wave]) -> None:
    wave = waves[0][: len(waves[0]) // 320 * 320]
    expected = SeamlessM4TFeatureExtractor()(
        np.pad(wave, 160), sampling_rate=16_000, return_tensors="pt"
    )["input_features"]
    computed = LogFilterbank(per_clip=True)(torch.from_numpy(wave).unsqueeze(0))
    torch.testing.assert_close(computed, expected, atol=2e-3, rtol=0)


def test_codes_of_another_codec_are_rejected(vendored: Codec) -> None:
    size = vendored.codebook_size
    for bad in ([-1, 3], [0, size]):
        with pytest.raises(ValueError, match=rf"codes lie in \[0, {size}\)"):
            vendored.decode([np.array(bad)])


def test_an_empty_waveform_is_rejected(vendored: Codec) -> None:
    with pytest.raises(ValueError, match="shape"):
        vendored.encode([np.zeros(0, dtype=np.float32)])


def test_a_folder_without_a_codec_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no codec"):
        Codec.load(tmp_path)
    Wav2Vec2BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'wav2vec2-bert' model"):
        Codec.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "rate", "hop"), [("xcodec2", 16_000, 320), ("neucodec", 24_000, 480)]
)
def test_a_model_of_transformers_is_read_with_its_own_conventions(
    tmp_path: Path, waves: list[Wave], kind: str, rate: int, hop: int
) -> None:
    published(kind).save_pretrained(tmp_path)
    codec = Codec.load(tmp_path)
    assert (codec.input_rate, codec.sample_rate, codec.hop_length) == (16_000, rate, hop)
    assert (codec.token_rate, codec.codebook_size) == (50.0, 65_536)
    codes = codec.encode(waves)
    rounded = math.ceil if kind == "xcodec2" else math.floor
    assert [len(clip) for clip in codes] == [rounded(len(wave) / 320) for wave in waves]
    assert len(codec.decode(codes[:1])[0]) == len(codes[0]) * hop


@pytest.mark.parametrize("kind", ["ours", "xcodec2", "neucodec"])
def test_a_padded_batch_has_the_codes_of_its_clips(
    tmp_path: Path, vendored: Codec, waves: list[Wave], kind: str
) -> None:
    codec = vendored
    if kind != "ours":
        published(kind).save_pretrained(tmp_path)
        codec = Codec.load(tmp_path)
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], True)
    codes, counts = codec.encode_batch(padded, lengths)
    alone = codec.encode(waves)
    assert counts.tolist() == list(map(len, alone))
    for row, clip in zip(codes.numpy(), alone, strict=True):
        assert np.mean(row[: len(clip)] == clip) > 0.99 and not row[len(clip) :].any()
    pair = torch.from_numpy(np.stack([alone[0][:40], alone[1][:40]]))
    together = codec.decode_batch(pair)
    assert together.shape == (2, 40 * codec.hop_length)
    np.testing.assert_allclose(together[1], codec.decode([pair[1].numpy()])[0], atol=1e-4)


def agreement(codec: Codec, other: Codec, waves: list[Wave]) -> float:
    pairs = zip(codec.encode(waves), other.encode(waves), strict=True)
    return float(np.mean(np.concatenate([a == b for a, b in pairs])))


def test_half_precision_gives_the_same_codes(vendored: Codec, speech: list[Wave]) -> None:
    assert agreement(vendored, Codec.load(VENDORED, precision="bf16"), speech) == 1


def test_half_precision_applies_to_a_published_semantic_encoder(
    tmp_path: Path, waves: list[Wave]
) -> None:
    published("xcodec2").save_pretrained(tmp_path)
    full, half = (Codec.load(tmp_path, precision=p).latents(waves[:1]) for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_gives_nearly_the_same_codes(
    vendored: Codec, speech: list[Wave], precision: Precision
) -> None:
    assert agreement(vendored, Codec.load(VENDORED, "cuda", precision), speech) >= 0.99


def test_a_model_without_all_weights_is_rejected(tmp_path: Path) -> None:
    published("xcodec2").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["fc_encoder.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights.*fc_encoder\.weight"):
        Codec.load(tmp_path)
