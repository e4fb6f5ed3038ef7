"""Clips in padded batches have the same latents as alone, and therefore the same codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import Xcodec2Config, Xcodec2Model

from tests.codec.conftest import compact, published, small
from tts_assets.codec.backends import Backend, CompactBackend, PublishedBackend
from tts_assets.codec.config import CodecArchitecture
from tts_assets.codec.model import PROBED, BatchEncoder, Codec, RoundingError
from tts_assets.codec.xcodec2 import HOP, build
from tts_assets.core.accounting import SetAside
from tts_assets.core.audio import Wave

MODELS = (
    "ours",
    "ours with a waveform branch",
    "xcodec2 relative_key",
    "xcodec2 relative",
    "neucodec relative_key",
    "neucodec rotary",
)


def open_backend(name: str) -> Backend:
    if name == "ours":
        return CompactBackend(compact())
    if name == "ours with a waveform branch":
        return CompactBackend(build(CodecArchitecture(acoustic_hidden=2), seed=0))
    return PublishedBackend(published(*name.split()), "cpu")


def doubled(backend: Backend) -> Backend:
    """In double precision, where rounding is a billionth of the effect of a wrong mask."""
    assert isinstance(backend, CompactBackend | PublishedBackend)
    backend.model.double()
    if isinstance(backend, PublishedBackend):
        backend.filterbank.double()
    return backend


def padded(backend: Backend, waves: Sequence[Wave]) -> tuple[torch.Tensor, list[int]]:
    hops = [backend.hops(len(wave)) for wave in waves]
    batch = torch.zeros(len(waves), max(hops) * HOP, dtype=torch.float64)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return batch, hops


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_the_latents_of_a_clip_do_not_depend_on_its_batch(name: str, waves: list[Wave]) -> None:
    backend = doubled(open_backend(name))
    clips = [waves[0], waves[1][:9_000], waves[2][:6_400], waves[2][:1_500]]
    batch, hops = padded(backend, clips)
    together = backend.latents(batch, hops)
    unmasked = backend.latents(batch, [max(hops)] * len(hops))
    for row, clip in enumerate(clips):
        count = backend.codes(len(clip))
        alone = backend.latents(*padded(backend, [clip]))[0, :count]
        assert (together[row, :count] - alone).abs().max() < 1e-9
        if hops[row] < max(hops):
            assert (unmasked[row, :count] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ours", "xcodec2", "neucodec"])
def test_codes_of_batches_are_those_of_every_clip_alone(name: str, waves: list[Wave]) -> None:
    codec = Codec(open_backend(name), "cpu")
    clips = [wave[start : start + 16_000] for wave in waves for start in range(0, 9_600, 1_600)]
    clips.sort(key=len, reverse=True)
    encoder = BatchEncoder(codec)
    broken = SetAside("it", "no such file")
    results = list(encoder.batches(enumerate([broken, *clips]), budget=300))
    assert max(len(batch) for batch in results) == 6
    encoded = dict(item for batch in results for item in batch)
    assert encoded.pop(0) == broken
    for number, clip in enumerate(clips, start=1):
        assert np.array_equal(encoded[number], codec.encode([clip])[0])
    assert encoder.effort["encoded"] == len(clips)
    assert encoder.effort["padded"] >= encoder.effort["codes"] == sum(map(len, encoded.values()))
    if name == "ours":
        assert encoder.effort["again"] < len(clips) / 2


def test_a_clip_on_the_boundary_between_two_codes_is_encoded_again(waves: list[Wave]) -> None:
    model = compact()
    codec = Codec(CompactBackend(model), "cpu")
    pair = [waves[0][:16_000], waves[1][:9_600]]
    encoder = BatchEncoder(codec)
    encoder.encode([wave[:12_800] for wave in waves] + pair[:1])  # the probes
    assert encoder.effort["again"] == PROBED
    encoder.encode(pair)
    assert encoder.effort["again"] == PROBED, "no clip is near a boundary yet"
    with torch.no_grad():  # move the boundary of one dimension to a latent of the second clip
        latents = codec.latents(pair[1:])[0]
        levels = codec.quantize(latents[None])[1][0, :, 1]
        code = int((levels + 0.5).abs().argmin())  # the latent nearest to the boundary at -0.5
        on_it = torch.full_like(latents[:1], -0.5)
        bias = boundary_input(codec, on_it)[0, 1] - latents[code, 1]
        model.quantizer.project_in.bias[1] += bias
    margin = codec.margins(codec.quantize(codec.latents(pair))[1])[1, code]
    assert margin < encoder.tolerance < 1e-3
    before = encoder.effort["again"]
    encoded = encoder.encode(pair)
    assert encoder.effort["again"] > before
    for clip, codes in zip(pair, encoded, strict=True):
        assert np.array_equal(codes, codec.encode([clip])[0])


def boundary_input(codec: Codec, levels: torch.Tensor) -> torch.Tensor:
    """The latents that become ``levels``: the inverse of the quantizer's bound."""
    fsq = codec.backend.quantizer
    half = (fsq.levels - 1) * (1 + 1e-3) / 2
    offset = torch.where(fsq.levels % 2 == 0, 0.5, 0.0)
    return ((levels + offset) / half).atanh() - (offset / half).atanh()


def test_batches_that_round_unlike_the_probes_are_rejected(
    vendored: Codec, waves: list[Wave]
) -> None:
    encoder = BatchEncoder(vendored)
    encoder.encode([*waves, waves[0]])
    encoder.difference, wide = 1e-9, 0.5
    with pytest.raises(RoundingError, match="batch_tokens = 1"):
        codes, levels = vendored.quantize(vendored.latents(waves[:1]))
        encoder._again(waves[0], levels[0] + wide, codes[0], False)


def test_a_model_that_cannot_be_masked_is_encoded_clip_by_clip(waves: list[Wave]) -> None:
    config = Xcodec2Config(**small(num_hidden_layers=0, add_adapter=True, adapter_stride=1))
    codec = Codec(PublishedBackend(Xcodec2Model(config), "cpu"), "cpu")
    assert codec.masking_problem is not None
    assert "adapter" in codec.masking_problem
    encoder = BatchEncoder(codec)
    for codes, wave in zip(encoder.encode(waves), waves, strict=True):
        assert np.array_equal(codes, codec.encode([wave])[0])
    assert encoder.effort["padded"] == encoder.effort["codes"]
