"""Original X-Codec-2 checkpoints: the same weights under other names; no code of them runs."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Xcodec2Config

from tests.codec.conftest import CORPUS, published, small
from tts_assets.codec.model import Codec
from tts_assets.codec.original import OriginalError, attention_rows, convert
from tts_assets.core.audio import Wave, read_wave

PUBLISHED = Path(__file__).with_name("xcodec2_published.json")
UNIT = {"snake1": "0", "conv1": "1", "snake2": "2", "conv2": "3"}


def original_weights(model: Any) -> dict[str, Tensor]:
    """A model's weights under the names of the authors' training program.

    They are written out after the modules of its source: CodecEnc, SemanticEncoder_module,
    fc_prior, generator.
    """
    own = model.state_dict()
    made: dict[str, Tensor] = {}

    def move(original: str, name: str) -> None:
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in own:
                made[f"{original}.{kind}"] = own.pop(f"{name}.{kind}")

    def normalized(original: str, name: str) -> None:
        weight = own.pop(f"{name}.weight")
        norm = weight.flatten(1).norm(dim=1)[:, None, None]
        made[f"{original}.weight_g"], made[f"{original}.weight_v"] = norm, 3 * weight / norm
        made[f"{original}.bias"] = own.pop(f"{name}.bias")

    def activation(original: str, name: str) -> None:
        for part in ("alpha", "beta"):
            made[f"{original}.act.{part}"] = own.pop(f"{name}.act.{part}")
        made[f"{original}.upsample.filter"] = torch.zeros(1, 1, 12)
        made[f"{original}.downsample.lowpass.filter"] = torch.zeros(1, 1, 12)

    encoder = "acoustic_encoder"
    normalized("CodecEnc.conv_blocks.0", f"{encoder}.conv1")
    for block in range(5):
        original, name = f"CodecEnc.conv_blocks.{block + 1}.block", f"{encoder}.block.{block}"
        for unit in range(3):
            for part, index in UNIT.items():
                add = activation if part.startswith("snake") else normalized
                add(f"{original}.{unit}.block.{index}", f"{name}.res_unit{unit + 1}.{part}")
        activation(f"{original}.3", f"{name}.snake1")
        normalized(f"{original}.4", f"{name}.conv1")
    activation("CodecEnc.conv_final_block.0", f"{encoder}.snake1")
    normalized("CodecEnc.conv_final_block.1", f"{encoder}.conv2")
    for index, name in enumerate(
        ("initial_conv", "residual_blocks.1", "residual_blocks.3", "final_conv"), start=1
    ):
        move(f"SemanticEncoder_module.{name}", f"semantic_adapter.conv{index}")
    move("fc_prior", "fc_encoder")
    move("fc_post_a", "acoustic_decoder.fc")
    for part in ("project_in", "project_out"):
        move(f"generator.quantizer.{part}", f"quantizer.{part}")
    for layer in range(model.config.num_hidden_layers):
        original = f"generator.backbone.transformers.{layer}"
        name = f"acoustic_decoder.layers.{layer}"
        q, k, v = (own.pop(f"{name}.self_attn.{part}_proj.weight") for part in "qkv")
        neighbours = [in_neighbours(rows, model.config.num_attention_heads) for rows in (q, k)]
        made[f"{original}.att.c_attn.weight"] = torch.cat([*neighbours, v])
        move(f"{original}.att.c_proj", f"{name}.self_attn.o_proj")
        move(f"{original}.att_norm", f"{name}.input_layernorm")
        move(f"{original}.ffn_norm", f"{name}.post_attention_layernorm")
        move(f"{original}.mlp.fc1", f"{name}.mlp.fc1")
        move(f"{original}.mlp.fc2", f"{name}.mlp.fc2")
    move("generator.backbone.final_layer_norm", "acoustic_decoder.norm")
    move("generator.head.out", "acoustic_decoder.head.linear")
    made["generator.head.istft.window"] = torch.hann_window(8)
    for name in list(own):
        if name.startswith("acoustic_decoder."):
            made[name.replace("acoustic_decoder.", "generator.backbone.")] = own.pop(name)
        elif name.startswith("semantic_encoder."):
            made[name.replace("semantic_encoder.", "semantic_model.")] = own.pop(name)
    assert not own
    made["semantic_model.encoder.layers.23.ffn1.output_dense.bias"] = torch.zeros(1)
    made["discriminator.discriminators.0.convs.0.bias"] = torch.zeros(1)
    made["fc_post_s.weight"] = torch.zeros(1)
    return made


def weights_of(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights that follow from names, shapes and their order; constants of the source are 0."""
    generator = np.random.default_rng(0)
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        drawn = generator.standard_normal(shape)
        if name.endswith((".filter", ".window")):
            drawn = 0 * drawn
        elif name.endswith(".weight_g"):
            drawn = 0.7 + 0.1 * np.tanh(drawn)
        elif len(shape) > 1:
            drawn *= 0.7 / math.sqrt(math.prod(shape[1:]))
        else:
            drawn = (1.0 if name.endswith("weight") else 0.0) + 0.3 * drawn
        made[name] = torch.from_numpy(drawn).float()
    return made


def in_neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows of a head from (first half, second half) to (pair, pair, …), as the original's."""
    first, second = rows.reshape(heads, 2, -1, rows.shape[1]).unbind(1)
    return torch.stack([first, second], dim=2).reshape(rows.shape)


@pytest.fixture(scope="module")
def model() -> Any:
    return published("xcodec2")


def save(folder: Path, model: Any, weights: dict[str, Tensor], **more: Any) -> Path:
    path = folder / "xcodec2.ckpt"
    torch.save({"state_dict": weights, "global_step": 1, **more}, path)
    path.with_suffix(".json").write_text(model.config.to_json_string(use_diff=False))
    return path


def test_a_checkpoint_becomes_the_same_codec(tmp_path: Path, model: Any, waves: list[Wave]) -> None:
    convert(save(tmp_path, model, original_weights(model)), tmp_path / "codec")
    model.save_pretrained(tmp_path / "own")
    own, made = (Codec.load(tmp_path / name) for name in ("own", "codec"))
    codes = own.encode(waves)
    assert all(np.array_equal(a, b) for a, b in zip(codes, made.encode(waves), strict=True))
    for a, b in zip(own.decode(codes), made.decode(codes), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_published_source_computes_the_same(tmp_path: Path) -> None:
    """``xcodec2_published.json``: names and shapes of the authors' training module, its parts built
    small from their source, and what that source made of a clip with the weights of
    :func:`weights_of`: the codes, and every 500th sample of their resynthesis."""
    truth = json.loads(PUBLISHED.read_text())
    path = tmp_path / "xcodec2.ckpt"
    torch.save({"state_dict": weights_of(truth["shapes"])}, path)
    config = Xcodec2Config(**small(num_hidden_layers=1) | {"intermediate_size": 128})
    path.with_suffix(".json").write_text(config.to_json_string(use_diff=False))
    convert(path, tmp_path / "codec")
    codec = Codec.load(tmp_path / "codec")
    (codes,) = codec.encode([read_wave(CORPUS / truth["clip"], 16_000)])
    assert len(set(truth["codes"])) > 20
    assert np.mean(codes == np.array(truth["codes"])) > 0.95
    (made,) = codec.decode([np.array(truth["codes"])])
    np.testing.assert_allclose(made[::500], truth["wave"], atol=1e-4)
    assert np.abs(truth["wave"]).max() > 0.01


def test_rotating_neighbours_is_rotating_halves() -> None:
    """Scores of queries and keys as the original's attention computes them (rotary embeddings of
    neighbouring dimensions) and as transformers does, from the converted rows."""
    torch.manual_seed(0)
    heads, size, frequencies = 2, 8, 10_000.0 ** (-torch.arange(4) / 4)
    fused, hidden = torch.randn(3 * heads * size, 16), torch.randn(5, 16)

    def scores(query: Tensor, key: Tensor, halves: bool) -> Tensor:
        spun = []
        for rows in (query, key):
            vectors = (hidden @ rows.T).reshape(5, heads, size)
            order = (2, 4) if halves else (4, 2)
            parts = vectors.reshape(5, heads, *order)
            a, b = parts.unbind(2 if halves else 3)
            angle = torch.arange(5)[:, None, None] * frequencies
            spun.append(torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle))
        return torch.einsum("ihd,jhd->hij", spun[0], spun[1].conj()).real

    query, key, _ = fused.chunk(3)
    converted = (attention_rows(fused, f".{part}_proj.", heads) for part in "qk")
    torch.testing.assert_close(scores(*converted, halves=True), scores(query, key, halves=False))


def test_weights_that_do_not_fit_are_named(tmp_path: Path, model: Any) -> None:
    weights = original_weights(model)
    weights["generator.backbone.new_part.weight"] = weights.pop("fc_prior.bias")
    weights["fc_post_a.weight"] = torch.zeros(3, 3)
    with pytest.raises(OriginalError, match=r"fc_post_a\.weight as ") as error:
        convert(save(tmp_path, model, weights), tmp_path / "codec")
    assert "fc_prior.bias" in str(error.value)
    assert "left over: generator.backbone.new_part.weight" in str(error.value)
    assert not (tmp_path / "codec").exists()


class Configuration:
    """Lightning saves such an object beside the weights; reading it must not need its class."""

    def __init__(self) -> None:
        self.rate = 16_000


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def test_a_checkpoint_runs_no_code(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = original_weights(model)
    convert(save(tmp_path, model, weights, hyper_parameters=Configuration()), Path("codec"))
    assert Codec.load(Path("codec")).codebook_size == 65_536
    with contextlib.suppress(OriginalError):  # rejected or ignored: it must not run
        convert(save(tmp_path, model, weights, hyper_parameters=Harmful()), Path("codec"))
    assert not Path("harm").exists()
