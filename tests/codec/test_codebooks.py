"""Codecs with several codebooks: small random models of the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from tests.support.codecs import MODELS, saved
from tts_assets.codec.config import DecoderProgram, DecoderRecipe
from tts_assets.codec.model import BatchEncoder, Codec, RoundingError
from tts_assets.codec.residual import ResidualBackend, margin
from tts_assets.codec.shard_files import Frame, nested_pattern
from tts_assets.codec.train_decoder import initial_decoder
from tts_assets.core.accounting import SetAside
from tts_assets.core.audio import Wave, resample
from tts_assets.core.config import ConfigError


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def codec(
    request: pytest.FixtureRequest,
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Codec:
    kind = request.param
    if kind not in folders:
        folders[kind] = saved(kind, tmp_path_factory.mktemp(kind))
    return Codec.load(folders[kind])


each_codec = pytest.mark.parametrize("codec", MODELS, indirect=True)


def at_rate(codec: Codec, waves: list[Wave]) -> list[Wave]:
    return [resample(wave, 16_000, codec.input_rate) for wave in waves]


def package_codes(codec: Codec, wave: Wave) -> list[Tensor]:
    """The codes of each codebook by the package's own code, for a clip padded with zeros."""
    model: Any = codec.backend.model
    count = len(codec.facts.codebooks)
    width = -(-len(wave) // codec.hop_length) * codec.hop_length
    clip = torch.zeros(1, 1, width)
    clip[0, 0, : len(wave)] = torch.from_numpy(wave)
    kind = type(model).__name__
    if kind == "DacModel":
        found = model.encode(clip, n_quantizers=count).audio_codes[0]
    elif kind == "EncodecModel":
        found = model.encode(clip, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0, 0]
    elif kind == "MimiModel":
        found = model.encode(clip, num_quantizers=count).audio_codes[0]
    else:
        return [codes[0] for codes in model.encode(torch.from_numpy(wave)[None, None])]
    return list(found)[:count]


def package_wave(codec: Codec, codes: list[Tensor]) -> Tensor:
    """The waveform by the package's own code."""
    model: Any = codec.backend.model
    together = [own[None] for own in codes]
    kind = type(model).__name__
    if kind == "EncodecModel":
        found = model.decode(torch.stack(together, dim=1)[None], [None]).audio_values[0, 0]
    elif kind == "DacModel":
        found = model.decode(audio_codes=torch.stack(together, dim=1)).audio_values[0]
    elif kind == "MimiModel":
        found = model.decode(torch.stack(together, dim=1)).audio_values[0, 0]
    else:
        found = model.decode(together)[0, 0]
    assert isinstance(found, Tensor)
    return found


@each_codec
@torch.inference_mode()
def test_codes_and_waveforms_are_those_of_the_package(codec: Codec, waves: list[Wave]) -> None:
    size = codec.facts.codebooks[0]
    for wave in at_rate(codec, [waves[0], waves[1][:9_000], waves[2][:700]]):
        (flat,) = codec.encode([wave])
        expected = package_codes(codec, wave)
        positions = len(codec.frame)
        assert len(flat) == codec.codes(len(wave)) == positions * -(-len(wave) // codec.hop_length)
        assert codec.frame.problem(flat) == ""
        frames = flat.reshape(-1, positions)
        taken = [0] * len(expected)
        for k, codebook in enumerate(codec.facts.pattern):
            rate = codec.facts.pattern.count(codebook)
            own = expected[codebook].numpy()[taken[codebook] :: rate]
            assert np.array_equal(frames[:, k] - k * size, own)
            taken[codebook] += 1
        (made,) = codec.decode([flat])
        whole = package_wave(codec, expected).numpy()
        assert len(made) == codec.samples(len(flat)) == len(frames) * codec.hop_length
        np.testing.assert_array_equal(made[: len(whole)], whole)
        assert len(made) - len(whole) < 16


@each_codec
def test_facts_describe_the_stream(codec: Codec) -> None:
    facts = codec.facts
    assert codec.frame.sizes == facts.frame == (64,) * len(facts.pattern)
    assert facts.codebook_size == 64 * len(facts.pattern)
    assert facts.token_rate == len(facts.pattern) * facts.sample_rate / facts.hop_length
    assert codec.input_rate == facts.sample_rate
    assert codec.masking_problem is None
    assert type(facts).model_validate_json(facts.model_dump_json()) == facts


@each_codec
@torch.inference_mode()
def test_latents_do_not_depend_on_the_batch(codec: Codec, waves: list[Wave]) -> None:
    """In double precision, where rounding is a billionth of the effect of a wrong mask."""
    backend = codec.backend
    assert isinstance(backend, ResidualBackend)
    backend.model.double()
    clips = at_rate(codec, [waves[0], waves[1][:9_000], waves[2][:400]])
    hops = [backend.hops(len(wave)) for wave in clips]
    batch = torch.zeros(len(clips), max(hops) * backend.hop, dtype=torch.float64)
    for row, wave in zip(batch, clips, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    together = backend.latents(batch, hops)
    for row, count in enumerate(hops):
        alone = backend.latents(batch[row : row + 1, : count * backend.hop], [count])[0]
        assert (together[row, : len(alone)] - alone).abs().max() < 1e-9


@each_codec
def test_codes_of_batches_are_those_of_every_clip_alone(codec: Codec, waves: list[Wave]) -> None:
    clips = at_rate(codec, [w[start:] for w in waves for start in range(0, 6_400, 1_600)])
    clips.sort(key=len, reverse=True)
    encoder = BatchEncoder(codec)
    budget = 4 * codec.codes(len(clips[0]))
    for batch in encoder.batches(enumerate(clips), budget):
        for index, codes in batch:
            assert not isinstance(codes, SetAside)
            assert np.array_equal(codes, codec.encode([clips[index]])[0])
    assert encoder.effort["encoded"] == len(clips)
    assert encoder.effort["padded"] > encoder.effort["codes"]
    assert encoder.effort["again"] < len(clips)
    assert 0 < encoder.difference < 1e-3


@each_codec
def test_levels_behind_a_code_that_rounding_changed_do_not_count(
    codec: Codec, waves: list[Wave]
) -> None:
    (wave,) = at_rate(codec, waves[:1])
    encoder = BatchEncoder(codec)
    levels, codes = encoder._alone(wave)
    other, behind, first = codes.copy(), levels.clone(), levels.clone()
    other[0] += 1
    behind[1] += 1
    first[0] += 1
    assert np.array_equal(encoder._again(wave, behind, other, False), codes)
    for level, known in ((first, other), (behind, codes)):
        with pytest.raises(RoundingError):
            encoder._again(wave, level, known, False)


@each_codec
@torch.inference_mode()
def test_no_code_changes_within_its_margin(codec: Codec, waves: list[Wave]) -> None:
    """Each level moved by its margin in a random direction keeps its code; far beyond, many do."""
    backend = codec.backend
    assert isinstance(backend, ResidualBackend)
    codes, levels = codec.quantize(codec.latents(at_rate(codec, waves[:1])))
    margins = backend.margins(levels)
    assert margins.shape == codes.shape and (margins >= 0).all() and (margins > 0).any()
    tables = backend.tables()
    frames = torch.from_numpy(codes).unflatten(1, (-1, len(codec.frame)))
    moved = torch.sign(torch.randn(levels.shape, generator=torch.Generator().manual_seed(0)))
    for scale in (1.0, 50.0):
        shifted = (levels + scale * margins[..., None] * moved).unflatten(1, frames.shape[1:])
        same = []
        for k, codebook in enumerate(codec.facts.pattern):
            distances = torch.cdist(shifted[:, :, k].double(), tables[codebook].double()[None])
            same.append(distances.argmin(-1) == frames[:, :, k] - backend.offsets[k])
        assert bool(torch.stack(same).all()) == (scale == 1.0)


def test_the_margin_of_a_vector_between_two_entries_is_zero() -> None:
    table = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    vectors = torch.tensor([[[1.0, 0.5], [0.2, 0.0]]])
    assert margin(vectors, table)[0].tolist() == pytest.approx([0.0, 0.8 / 2**0.5], abs=1e-3)


@each_codec
def test_broken_frames_are_not_decoded(codec: Codec, waves: list[Wave]) -> None:
    (codes,) = codec.encode(at_rate(codec, waves[:1]))
    with pytest.raises(ValueError, match="last frame is broken: it has"):
        codec.decode([codes[:-1]])
    swapped = codes.copy()
    swapped[[len(codec.frame), len(codec.frame) + 1]] = codes[
        [len(codec.frame) + 1, len(codec.frame)]
    ]
    with pytest.raises(ValueError, match=r"frame 1 is broken: its code .* position 1 of a frame"):
        codec.decode([swapped])


@pytest.mark.parametrize(("kind", "known"), [("dac", 3), ("encodec", 4), ("mimi", 4)])
def test_the_first_codebooks_can_be_used_alone(
    kind: str, known: int, tmp_path: Path, waves: list[Wave]
) -> None:
    whole = Codec.load(saved(kind, tmp_path / "whole"))
    some = Codec.load(saved(kind, tmp_path / "some", codebooks=2))
    assert (len(whole.frame), len(some.frame)) == (known, 2)
    (wave,) = at_rate(whole, waves[:1])
    codes, fewer = whole.encode([wave])[0], some.encode([wave])[0]
    assert np.array_equal(codes.reshape(-1, known)[:, :2], fewer.reshape(-1, 2))
    assert len(some.decode([fewer])[0]) == len(whole.decode([codes])[0])
    with pytest.raises(ValueError, match=f"codebooks is 9; this codec has between 1 and {known}"):
        Codec.load(saved(kind, tmp_path / "many", codebooks=9))


@pytest.mark.parametrize("kind", ["dac", "encodec", "mimi"])
def test_the_first_codebook_alone_has_frames_of_one_code(
    kind: str, waves: list[Wave], tmp_path: Path
) -> None:
    one = Codec.load(saved(kind, tmp_path / "one", codebooks=1))
    assert one.frame == Frame((one.codebook_size,)) and one.facts.frame == ()
    codes = one.encode(at_rate(one, waves[:1]))[0]
    assert len(codes) * one.hop_length == len(one.decode([codes])[0])


def test_a_stereo_encodec_is_refused(tmp_path: Path) -> None:
    config = EncodecConfig(
        num_filters=2, hidden_size=8, codebook_dim=8, audio_channels=2, normalize=True
    )
    EncodecModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use facebook/encodec_24khz"):
        Codec.load(tmp_path)


@pytest.mark.parametrize("codec", ["snac"], indirect=True)
@torch.inference_mode()
def test_the_noise_of_snac_is_the_same_in_each_call(codec: Codec, waves: list[Wave]) -> None:
    (codes,) = codec.encode(at_rate(codec, waves[:1]))
    first, again = codec.decode([codes, codes])
    assert np.array_equal(first, again)
    start = codec.decode([codes[: 7 * 6]])[0]
    inside = codec.hop_length * 3
    np.testing.assert_allclose(first[:inside], start[:inside], atol=1e-5)


@pytest.mark.parametrize("codec", ["dac"], indirect=True)
def test_a_separate_decoder_is_for_one_codebook(codec: Codec, tmp_path: Path) -> None:
    recipe = DecoderRecipe(corpora={"a": 1.0})
    program = DecoderProgram(
        run_dir=tmp_path, recipe=recipe, codec=tmp_path, codec_content="", samples={"a": tmp_path}
    )
    run: Any = None  # it is not reached
    with pytest.raises(ConfigError, match="one codebook, this one is a DacModel: remove"):
        initial_decoder(run, program, codec)


@pytest.mark.parametrize("codec", ["snac"], indirect=True)
@torch.inference_mode()
def test_frames_of_snac_have_the_order_of_orpheus(codec: Codec, waves: list[Wave]) -> None:
    """As its authors write them, with 64 instead of 4,096 codes at each position."""
    (wave,) = at_rate(codec, waves[:1])
    coarse, middle, fine = (codes.tolist() for codes in package_codes(codec, wave))
    expected = []
    for i in range(len(coarse)):
        frame = [coarse[i], middle[2 * i], fine[4 * i], fine[4 * i + 1]]
        frame += [middle[2 * i + 1], fine[4 * i + 2], fine[4 * i + 3]]
        expected += [code + 64 * position for position, code in enumerate(frame)]
    assert codec.encode([wave])[0].tolist() == expected


def test_patterns() -> None:
    assert nested_pattern((4, 2, 1)) == (0, 1, 2, 2, 1, 2, 2)
    assert len(nested_pattern((8, 4, 2, 1))) == 15
    frame = Frame((4, 2))
    assert frame.positions([0, 3, 4, 5]).tolist() == [0, 0, 1, 1]
    assert frame.whole(np.array([0, 5, 3, 4, 1])).tolist() == [0, 5, 3, 4]
    assert frame.whole(np.array([0, 5, 4, 4])).tolist() == [0, 5]
    assert frame.problem(np.array([0, 5])) == ""
    assert Frame((6,)).whole(np.array([0, 5, 4])).tolist() == [0, 5, 4]
