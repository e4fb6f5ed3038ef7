"""Published codecs: fetches them; converts original X-Codec-2 checkpoints; trains X-Codec-2.

    python -m tts_assets.codec.original CHECKPOINT FOLDER

A training checkpoint (``.ckpt``) and the published ``model.safetensors`` have the same names of
weights. Every weight of ``transformers.Xcodec2Model`` is looked up by its original name. If weights
are missing, left over, or of another shape, the error lists them and nothing is written. Three
changes go beyond names:

* weight normalization (``weight_g``, ``weight_v``) becomes the plain weight g v / |v|;
* ``c_attn`` stacks queries, keys and values along its rows;
* the original applies rotary embeddings to neighbouring dimensions of a head, transformers to its
  two halves: the rows of queries and keys are reordered, the even rows of a head first.

:class:`PublishedCodec` computes in training what the class of ``transformers`` computes in
inference (Ye et al., 2025): w2v-BERT 2.0 as a frozen semantic encoder, the waveform branch, the
quantizer with its two bounds. Its semantic features are the target of the loss that the paper calls
semantic reconstruction (``semantic.features = "codec"``).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel, Xcodec2Config, Xcodec2Model

from tts_assets.codec.backends import WEIGHTS_FILE, open_complete, snac_sizes
from tts_assets.codec.config import CODEBOOKS_FILE, ORIGINAL, CodecArchitecture, files_of
from tts_assets.codec.xcodec2 import (
    HOP,
    LogFilterbank,
    backbone_sizes,
    encoder_parts,
    initialize_published,
)
from tts_assets.core.artifacts import CodecFacts, apply_umask
from tts_assets.core.config import ConfigError
from tts_assets.core.hub import from_hub

HUB_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json")
PICKLED = "pytorch_model.bin"
SEMANTIC_LAYERS = 16  # of the 24 of w2v-BERT 2.0: X-Codec-2 uses hidden state 16
# Names of transformers -> original names. Numbers are kept; {n+1} is one more.
NAMES = (
    (r"acoustic_encoder\.conv1\.", "CodecEnc.conv_blocks.0."),
    (r"acoustic_encoder\.snake1\.act\.", "CodecEnc.conv_final_block.0.act."),
    (r"acoustic_encoder\.conv2\.", "CodecEnc.conv_final_block.1."),
    (r"acoustic_encoder\.block\.(\d+)\.snake1\.act\.", "CodecEnc.conv_blocks.{n+1}.block.3.act."),
    (r"acoustic_encoder\.block\.(\d+)\.conv1\.", "CodecEnc.conv_blocks.{n+1}.block.4."),
    (r"semantic_encoder\.", "semantic_model."),
    (r"semantic_adapter\.conv1\.", "SemanticEncoder_module.initial_conv."),
    (r"semantic_adapter\.conv2\.", "SemanticEncoder_module.residual_blocks.1."),
    (r"semantic_adapter\.conv3\.", "SemanticEncoder_module.residual_blocks.3."),
    (r"semantic_adapter\.conv4\.", "SemanticEncoder_module.final_conv."),
    (r"fc_encoder\.", "fc_prior."),
    (r"quantizer\.", "generator.quantizer."),
    (r"acoustic_decoder\.fc\.", "fc_post_a."),
    (r"acoustic_decoder\.head\.linear\.", "generator.head.out."),
    (r"acoustic_decoder\.norm\.", "generator.backbone.final_layer_norm."),
    (r"acoustic_decoder\.layers\.(\d+)\.input_layernorm\.", "{layer}.att_norm."),
    (r"acoustic_decoder\.layers\.(\d+)\.post_attention_layernorm\.", "{layer}.ffn_norm."),
    (r"acoustic_decoder\.layers\.(\d+)\.self_attn\.o_proj\.", "{layer}.att.c_proj."),
    (r"acoustic_decoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.", "{layer}.att.c_attn."),
    (r"acoustic_decoder\.layers\.(\d+)\.mlp\.", "{layer}.mlp."),
    (r"acoustic_decoder\.", "generator.backbone."),
)
RESIDUAL_UNIT = re.compile(
    r"acoustic_encoder\.block\.(\d+)\.res_unit([123])\.(snake1\.act|conv1|snake2\.act|conv2)\."
)
IN_UNIT = {"snake1.act": "0.act", "conv1": "1", "snake2.act": "2.act", "conv2": "3"}
# Weights that only training needs, and constants that follow from the sizes.
LEFT_OVER = re.compile(
    r"(SemanticDecoder_module|fc_post_s|discriminator|spec_discriminator|criteria|model_spk|"
    r"perception_model|mel_conv)\.|.*(sample\.filter|lowpass\.filter|istft\.window|"
    r"rotary_embed\..*|rope\..*)$|generator\.quantizer\.(layers|rvqs|fsqs)\."
)
SEMANTIC_LAYER = re.compile(r"semantic_model\.encoder\.layers\.(\d+)\.")


class PublishedCodec(nn.Module):
    """``Xcodec2Model`` as the trainer of codecs needs it. The semantic encoder stays frozen."""

    def __init__(self, model: Xcodec2Model) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config
        self.filterbank = LogFilterbank(per_clip=True)
        model.semantic_encoder.requires_grad_(False)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a folder of transformers in float32. Raises ValueError if weights are missing."""
        return cls(open_complete(Xcodec2Model, folder)).train()

    @classmethod
    def build(cls, size: CodecArchitecture, seed: int) -> Self:
        """Random weights that follow from ``seed``, around a pretrained semantic encoder.

        Raises ValueError if the folder of the semantic encoder lacks weights of its first layers.
        """
        assert size.semantic_model is not None
        folder = size.semantic_model
        semantic = open_complete(Wav2Vec2BertModel, folder, config=_semantic_config(folder))
        config = Xcodec2Config(
            **backbone_sizes(size),
            encoder_hidden_size=size.acoustic_hidden,
            downsampling_ratios=list(size.ratios),
            semantic_model_config=semantic.config,
            quantization_dim=size.hidden + semantic.config.hidden_size,
            quantization_levels=list(size.levels),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Xcodec2Model(config)
            initialize_published(model)
        model.semantic_encoder.load_state_dict(semantic.state_dict())
        return cls(model).train()

    def train(self, mode: bool = True) -> Self:
        """As of a module; the semantic encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        self.model.semantic_encoder.eval()
        return self

    def semantic_features(self, waves: Tensor) -> Tensor:
        """Waveforms (batch, samples), a multiple of 320, to features (batch, codes, size).

        The extractor of the published codec adds a sample and pads to whole hops, so there is one
        more feature than codes; it is left out here, and read by :meth:`latents`.
        """
        return self._features(waves)[:, :-1]

    @torch.no_grad()
    def _features(self, waves: Tensor) -> Tensor:
        bands = self.filterbank(F.pad(waves, (0, HOP)))
        features: Tensor = self.model.semantic_encoder(bands).last_hidden_state
        return features

    def latents(self, waves: Tensor) -> Tensor:
        """Waveforms (batch, samples), a multiple of 320, to latents (batch, codes, dimensions).

        They are the projections before either bound.
        """
        semantic = self.model.semantic_adapter(self._features(waves).transpose(1, 2))
        # On CPUs with AMX some strided convolutions are wrong in bfloat16; see xcodec2.py.
        with torch.autocast("cpu", enabled=False):
            acoustic = self.model.acoustic_encoder(F.pad(waves, (0, HOP)).unsqueeze(1))
        frames = torch.cat([semantic, acoustic], dim=1).transpose(1, 2)
        projected: Tensor = self.model.quantizer.project_in(self.model.fc_encoder(frames))
        return projected[:, :-1]

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents to quantized frames (batch, codes, hidden) and codes (batch, codes, 1)."""
        quantizer = self.model.quantizer
        quantized, codes = quantizer.quantizer(quantizer.quantizer.bound(latents.float()))
        return quantizer.project_out(quantized.to(latents.dtype)), codes.unsqueeze(-1)

    def waves(self, quantized: Tensor) -> Tensor:
        """Quantized frames (batch, codes, hidden) to waveforms (batch, samples)."""
        made: Tensor = self.model.acoustic_decoder(quantized).squeeze(1)
        return made

    def encoder_parts(self) -> list[nn.Module]:
        """All modules that determine the codes of a clip."""
        return encoder_parts(self.model)

    def published(self) -> Xcodec2Model:
        """The model whose config and weights make a codec folder."""
        return self.model


def _semantic_config(folder: Path) -> Wav2Vec2BertConfig:
    """The first layers of a w2v-BERT; a smaller one is used whole."""
    config = Wav2Vec2BertConfig.from_pretrained(folder)
    config.num_hidden_layers = min(config.num_hidden_layers, SEMANTIC_LAYERS)
    config.layerdrop = 0.0
    config.apply_spec_augment = False
    return config


class OriginalError(ValueError):
    """A file is no original X-Codec-2 checkpoint of the given sizes."""


class UnusedClass:
    """Replaces every class that a checkpoint's hyper-parameters name, and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_original(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by their original names.

    No code of the file runs: classes other than tensors (Lightning also saves the configuration)
    become :class:`UnusedClass`. Raises :class:`OriginalError` if the file has no plain weights.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        unused_classes: list[Any] = [
            (type("UnusedClass", (UnusedClass,), {}), name) for name in unknown
        ]
        with torch.serialization.safe_globals(unused_classes):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise OriginalError(f"{path} cannot be read as plain weights: {error}") from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise OriginalError(f"{path} holds no weights: expected a state_dict of tensors")
    return tensors


def original_name(name: str) -> str:
    """The original name of a weight of ``Xcodec2Model``; queries, keys, values are in ``c_attn``.

    Raises :class:`OriginalError` for an unknown name.
    """
    unit = RESIDUAL_UNIT.match(name)
    if unit:
        block, number, part = int(unit[1]) + 1, int(unit[2]) - 1, IN_UNIT[unit[3]]
        rest = name[unit.end() :]
        return f"CodecEnc.conv_blocks.{block}.block.{number}.block.{part}.{rest}"
    for pattern, original in NAMES:
        found = re.match(pattern, name)
        if found:
            number = int(found[1]) if found.groups() else 0
            original = original.replace("{n+1}", str(number + 1))
            original = original.replace("{layer}", f"generator.backbone.transformers.{number}")
            return original + name[found.end() :]
    raise OriginalError(f"no original name is known for {name}")


def converted(weights: dict[str, Tensor], config: Xcodec2Config) -> Xcodec2Model:
    """The model of transformers with these weights, float32, in evaluation mode.

    Raises :class:`OriginalError` that lists weights that are missing, misshapen, or left over.
    """
    model = Xcodec2Model(config)
    used: set[str] = set()
    missing: list[str] = []
    found: dict[str, Tensor] = {}
    for name, target in model.state_dict().items():
        sources = original_sources(original_name(name), weights)
        if sources is None:
            missing.append(original_name(name))
            continue
        used.update(sources)
        tensor = combined([weights[source].float() for source in sources])
        if "_proj." in name and ".c_attn." in sources[0]:
            tensor = attention_rows(tensor, name, config.num_attention_heads)
        if tensor.shape != target.shape:
            missing.append(f"{sources[0]} as {tuple(target.shape)}, not {tuple(tensor.shape)}")
        found[name] = tensor
    semantic: Any = config.semantic_model_config
    layers = semantic.num_hidden_layers
    extra = [name for name in weights.keys() - used if not left_over(name, layers)]
    if missing or extra:
        raise OriginalError(
            f"not an original X-Codec-2 of these sizes; missing: {listed(missing)}; left over: "
            f"{listed(extra)}. For other than the published sizes give the Xcodec2Config as JSON"
        )
    model.load_state_dict(found)
    return model.eval()


def original_sources(name: str, weights: dict[str, Tensor]) -> list[str] | None:
    """The one or two names that hold a weight (weight norm has two); None if there are none."""
    # the package xcodec2 0.1.5 calls the activation's beta "bias"
    for candidate in (name, re.sub(r"\.act\.beta$", ".act.bias", name)):
        if candidate in weights:
            return [candidate]
    stem = name.removesuffix("weight")
    for magnitude, direction in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        if stem != name and stem + magnitude in weights and stem + direction in weights:
            return [stem + magnitude, stem + direction]
    return None


def combined(parts: list[Tensor]) -> Tensor:
    """One plain weight, or the weight of (magnitudes (out, 1, 1), directions)."""
    if len(parts) == 1:
        return parts[0]
    magnitude, direction = parts
    return torch._weight_norm(direction, magnitude, 0)


def attention_rows(fused: Tensor, name: str, heads: int) -> Tensor:
    """Queries, keys or values of ``c_attn`` (3 hidden, hidden), (hidden, hidden).

    Rows are in the order of transformers. ``name`` has ``.q_proj.``, ``.k_proj.`` or ``.v_proj.``.
    """
    query, key, value = fused.chunk(3)
    if ".v_proj." in name:
        return value
    rows = query if ".q_proj." in name else key
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return pairs.transpose(1, 2).reshape(rows.shape)


def left_over(name: str, layers: int) -> bool:
    """Whether a codec does not need a weight; of w2v-BERT it uses the first ``layers`` only."""
    layer = SEMANTIC_LAYER.match(name)
    return bool(LEFT_OVER.match(name)) or (layer is not None and int(layer[1]) >= layers)


def listed(names: Iterable[str]) -> str:
    """The first eight names, sorted, for a message."""
    names = sorted(names)
    shown = ", ".join(names[:8]) or "nothing"
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def convert(checkpoint: Path, folder: Path, config: Path | None = None) -> None:
    """Convert an original checkpoint and write the codec folder.

    ``config`` is an ``Xcodec2Config`` as JSON, for other than the published sizes; by default the
    checkpoint's name with the suffix ``.json``, if it exists. Raises :class:`OriginalError`.
    """
    if not checkpoint.is_file() or checkpoint.suffix not in ORIGINAL:
        raise OriginalError(f"{checkpoint} is not a file with a suffix of {ORIGINAL}")
    if config is not None and not config.is_file():
        raise OriginalError(f"there is no file {config} with the sizes of {checkpoint}")
    config = config or checkpoint.with_suffix(".json")
    sizes = Xcodec2Config.from_json_file(config) if config.is_file() else Xcodec2Config()
    converted(read_original(checkpoint), sizes).save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        apply_umask(weights)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Convert an original X-Codec-2 checkpoint")
    parser.add_argument("checkpoint", type=Path, help="a .ckpt or .safetensors file")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, help="Xcodec2Config as JSON, for other sizes")
    arguments = parser.parse_args()
    try:
        convert(arguments.checkpoint, arguments.folder, arguments.config)
    except OriginalError as error:
        raise SystemExit(str(error)) from None


def fetch(
    name: str, source: Mapping[str, str], root: Path, folder: Path, codebooks: int | None = None
) -> None:
    """Write the codec that :func:`identify` identified as ``source`` into ``folder``.

    An original checkpoint is converted. ``codebooks``: how many of several are used.
    """
    path = root / name
    if path.is_dir():
        for file in files_of(path):
            shutil.copyfile(file, folder / file.name)
    elif path.is_file():
        convert(path, folder)
    else:
        download(source["name"], source["revision"], folder)
    if codebooks is not None:
        (folder / CODEBOOKS_FILE).write_text(json.dumps({"codebooks": codebooks}) + "\n")
    if (folder / PICKLED).is_file() and not any(folder.glob("*.safetensors")):
        without_pickle(folder)


def fetch_checked(
    name: str, source: Mapping[str, str], root: Path, folder: Path, codebooks: int | None
) -> CodecFacts:
    """:func:`fetch`, and the facts of the codec, so that only what can be loaded is published."""
    from tts_assets.codec.model import Codec

    fetch(name, source, root, folder, codebooks)
    return Codec.load(folder).facts


def download(name: str, revision: str, folder: Path) -> None:
    """Download the safetensors of one commit of a published model, but no code.

    SNAC is published without safetensors: its weights are downloaded as a pickle, see
    :func:`without_pickle`.
    """
    from huggingface_hub import snapshot_download

    def get(*patterns: str) -> None:
        with from_hub(name):
            snapshot_download(
                name, revision=revision, local_dir=folder, allow_patterns=list(patterns)
            )

    get(*HUB_FILES)
    if not any(folder.glob("*.safetensors")) and snac_sizes(folder):
        get(PICKLED)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # bookkeeping of huggingface_hub


def without_pickle(folder: Path) -> None:
    """Replace the weights of a SNAC by safetensors. No code of the pickle is executed.

    Raises :class:`ConfigError` for another codec.
    """
    if not snac_sizes(folder):
        raise ConfigError(f"{folder / PICKLED} is a pickle: save the codec as safetensors")
    weights = torch.load(folder / PICKLED, map_location="cpu", weights_only=True)
    save_file({name: own.contiguous() for name, own in weights.items()}, folder / WEIGHTS_FILE)
    (folder / PICKLED).unlink()


if __name__ == "__main__":
    main()
