"""The decoder as ONNX: onnxruntime makes the waveforms of the codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.speaking import Speaking
from tts_assets import export
from tts_assets.codec.model import Codec
from tts_assets.core.config import ConfigError
from tts_assets.export import decoded, inverse_transform, write_decoder
from tts_assets.serving.served_model import read_card


def test_waveforms_are_those_of_the_codec(speaking: Speaking, tmp_path: Path) -> None:
    folder = speaking.serving.path
    path = write_decoder(folder, read_card(folder), tmp_path)
    codes = np.arange(40) * 5 % 256
    [expected] = Codec.load(speaking.codec.path).decode([codes])
    found = decoded(path, codes)
    assert found.shape == expected.shape == (40 * 320,)
    assert np.abs(expected).max() > 1e-3
    assert np.allclose(found, expected, atol=1e-5)


def test_the_filters_are_the_inverse_transform() -> None:
    window = torch.hann_window(16)
    spectrum = torch.randn(9, dtype=torch.complex64)
    parts = torch.cat([spectrum.real, spectrum.imag])
    assert torch.allclose(
        parts @ inverse_transform(16, window), torch.fft.irfft(spectrum, 16) * window, atol=1e-6
    )


def test_a_decoder_that_differs_is_not_written(
    speaking: Speaking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGEST_DIFFERENCE", 1e-12)
    folder = speaking.serving.path
    with pytest.raises(ConfigError, match=r"decoder.onnx differs from the codec by"):
        write_decoder(folder, read_card(folder), tmp_path)
    assert not list(tmp_path.iterdir())
