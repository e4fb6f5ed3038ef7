"""Waveform to codes and back, with the vendored codec and with one of transformers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Xcodec2Config,
    Xcodec2Model,
)

from tts_assets.audio import Wave
from tts_assets.codec.features import LogFilterbank
from tts_assets.codec.losses import SpectralLoss
from tts_assets.codec.model import Codec


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
        assert distance < 0.7 < 2.0 < of_silence


def test_codes_and_waveforms_do_not_depend_on_batch_mates(
    vendored: Codec, waves: list[Wave]
) -> None:
    together = vendored.encode(waves)
    made = vendored.decode(together)
    for index, wave in enumerate(waves):
        (alone,) = vendored.encode([wave])
        assert np.array_equal(alone, together[index])
        assert np.array_equal(vendored.decode([alone])[0], made[index])


def test_codes_depend_on_what_lies_around_them_only(vendored: Codec, waves: list[Wave]) -> None:
    """Features are not normalized over the clip: a voice prompt's codes are those of the clip."""
    longer = np.concatenate([waves[0][: 320 * 40], waves[1]])
    (codes,) = vendored.encode([waves[0]])
    (mixed,) = vendored.encode([longer])
    assert np.mean(codes[:30] == mixed[:30]) > 0.95


def test_codes_are_spread_over_the_codebook(vendored: Codec, waves: list[Wave]) -> None:
    codes = np.concatenate(vendored.encode(waves))
    assert codes.min() >= 0
    assert codes.max() < vendored.codebook_size
    assert len(np.unique(codes)) > 0.5 * len(codes)


def test_the_filterbank_is_kaldis(waves: list[Wave]) -> None:
    wave = waves[0][: len(waves[0]) // 320 * 320]
    expected = SeamlessM4TFeatureExtractor()(
        np.pad(wave, 160), sampling_rate=16_000, return_tensors="pt"
    )["input_features"]
    computed = LogFilterbank(per_clip=True)(torch.from_numpy(wave).unsqueeze(0))
    torch.testing.assert_close(computed, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("bad", [[-1, 3], [0, 1920]])
def test_codes_of_another_codec_are_refused(vendored: Codec, bad: list[int]) -> None:
    with pytest.raises(ValueError, match=r"codes lie in \[0, 1920\)"):
        vendored.decode([np.array(bad)])


def test_an_empty_waveform_is_refused(vendored: Codec) -> None:
    with pytest.raises(ValueError, match="shape"):
        vendored.encode([np.zeros(0, dtype=np.float32)])


def test_a_folder_without_a_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no codec"):
        Codec.load(tmp_path)
    Wav2Vec2BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'wav2vec2-bert' model"):
        Codec.load(tmp_path)


def test_a_model_of_transformers_is_read_with_its_own_conventions(
    tmp_path: Path, waves: list[Wave]
) -> None:
    semantic = Wav2Vec2BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config = Xcodec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=32,
        encoder_hidden_size=2,
        semantic_model_config=semantic,
        quantization_dim=64,
    )
    torch.manual_seed(0)
    Xcodec2Model(config).save_pretrained(tmp_path)
    codec = Codec.load(tmp_path)
    assert (codec.sample_rate, codec.token_rate, codec.codebook_size) == (16_000, 50.0, 65_536)
    codes = codec.encode(waves)
    assert [len(clip) for clip in codes] == [math.ceil(len(wave) / 320) for wave in waves]
    assert len(codec.decode(codes[:1])[0]) == len(codes[0]) * 320
