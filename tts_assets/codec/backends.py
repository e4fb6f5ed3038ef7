"""Backends of :class:`~tts_assets.codec.model.Codec` with one codebook: our codecs, X-Codec-2,
NeuCodec. ``residual.py`` has those with several.

:class:`ClipEnds` makes an encoder compute for each clip of a padded batch what it computes for the
clip alone. Every module that mixes time steps must find after the end of a clip what it finds there
without a batch:

* a convolution finds its zero padding, also in deeper layers, where biases have made the padding
  nonzero;
* the anti-aliased activation of X-Codec-2 finds the clip's last value, which it pads with, before
  its upsampling and again before its downsampling;
* the attention of w2v-BERT is masked by transformers, and its convolutions are causal, so padding
  does not leak back;
* the filterbank normalizes by the statistics of the clip alone (see
  :class:`~tts_assets.codec.xcodec2.LogFilterbank`).

All other modules work on single frames. The values after the end that are read are overwritten in
place; they belong to no clip.

Codec folders have ``config.json``, ``model.safetensors``, and ``recipe.json`` of trained codecs,
which records how published weights were trained. It has the keys of the canonical form of the
recipe (see :class:`~tts_assets.core.config.Config`), which renamed keys do not change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Wav2Vec2BertModel
from transformers.models.encodec import modeling_encodec as encodec
from transformers.models.neucodec import modeling_neucodec as neucodec
from transformers.models.xcodec2 import modeling_xcodec2 as xcodec2

from tts_assets.codec.config import CODEBOOKS_FILE
from tts_assets.codec.semantic import ContentCodec, ContentConfig
from tts_assets.codec.training_config import TrainingRecipe
from tts_assets.codec.xcodec2 import (
    HOP,
    SAMPLE_RATE,
    SINGLE_BOUND,
    CompactConfig,
    CompactXcodec2,
    LogFilterbank,
    NoWaveform,
)
from tts_assets.core.artifacts import CodecFacts, atomic_write, sha256_file

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
UPSAMPLING = (xcodec2.Xcodec2UpSample1d, neucodec.NeuCodecUpSample1d)
DOWNSAMPLING = (xcodec2.Xcodec2DownSample1d, neucodec.NeuCodecDownSample1d)
FRAMEWISE = (nn.ReLU, xcodec2.Xcodec2SnakeBeta, neucodec.NeuCodecSnakeBeta, NoWaveform)


def is_compact(folder: Path) -> bool:
    """Whether a folder holds a codec of this project, as opposed to a published one."""
    path = folder / CONFIG_FILE
    return path.is_file() and json.loads(path.read_text()).get("quantizer_bound") == SINGLE_BOUND


def snac_sizes(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a SNAC, which names no model type; empty for another codec."""
    path = folder / CONFIG_FILE
    values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return values if "vq_strides" in values and "model_type" not in values else {}


def codebooks_of(folder: Path) -> int | None:
    """How many codebooks of a codec are used; None: all."""
    path = folder / CODEBOOKS_FILE
    return int(json.loads(path.read_text())["codebooks"]) if path.is_file() else None


def save_codec(
    model: PreTrainedModel,
    folder: Path,
    dtype: Literal["fp32", "fp16"],
    exact: Iterable[nn.Module] = (),
) -> None:
    """Write config and weights; ``fp16`` halves the file and is read back as float32.

    Tensors of the modules ``exact`` that half precision would change stay float32.
    """
    save_weights(model, folder, dtype, exact)
    model.config.architectures = [type(model).__name__]
    with atomic_write(folder / CONFIG_FILE) as aside:
        aside.write_text(model.config.to_json_string(use_diff=False))


def save_weights(
    model: nn.Module,
    folder: Path,
    dtype: Literal["fp32", "fp16"],
    exact: Iterable[nn.Module] = (),
) -> None:
    """Write ``model.safetensors``; tensors of the modules ``exact`` stay lossless."""
    kept = {id(t) for part in exact for t in part.state_dict(keep_vars=True).values()}
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        full = tensor.detach().cpu().contiguous()
        stored = full.to(DTYPES[dtype])
        lossy = id(tensor) in kept and not torch.equal(stored.to(full.dtype), full)
        tensors[name] = full if lossy else stored
    with atomic_write(folder / WEIGHTS_FILE) as aside:
        save_file(tensors, aside)


def read_weights(model: nn.Module, folder: Path) -> None:
    """Load ``model.safetensors`` into ``model`` as float32."""
    weights = load_file(folder / WEIGHTS_FILE)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})


def open_compact(folder: Path) -> CompactXcodec2:
    """Read a folder that :func:`save_codec` wrote; float32, on the CPU, in training mode.

    Raises ValueError for any other folder.
    """
    if not (folder / WEIGHTS_FILE).is_file() or not is_compact(folder):
        raise ValueError(
            f"{folder} is no codec of this project ({WEIGHTS_FILE} and a {CONFIG_FILE} with "
            f'"quantizer_bound": "{SINGLE_BOUND}")'
        )
    values = json.loads((folder / CONFIG_FILE).read_text())
    model: CompactXcodec2
    if values["model_type"] == ContentConfig.model_type:
        model = ContentCodec(ContentConfig.from_dict(values))
    else:  # folders of earlier versions have the model type of X-Codec-2
        values["model_type"] = CompactConfig.model_type
        model = CompactXcodec2(CompactConfig.from_dict(values))
    read_weights(model, folder)
    return model.train()


def open_complete(kind: Any, folder: Path, hint: str = "", **settings: Any) -> Any:
    """A model of transformers in float32. ``kind`` is a class with ``from_pretrained``.

    Raises ValueError, whose message ends with ``hint``, if the folder lacks weights.
    """
    model, found = kind.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **settings
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of the class {type(model).__name__}, the "
            f"first is {missing[0]}{hint}"
        )
    return model


def facts_of(model: PreTrainedModel) -> CodecFacts:
    """The facts of a codec of this project, X-Codec-2 or NeuCodec, which the next stages check."""
    config: Any = model.config
    rate = getattr(config, "output_sampling_rate", None) or config.sampling_rate
    return CodecFacts(
        sample_rate=rate,
        hop_length=config.hop_length,
        token_rate=rate / config.hop_length,
        codebook_size=math.prod(config.quantization_levels),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def write_recipe(recipe: TrainingRecipe, folder: Path, key: str, weights: Path | None) -> None:
    """Write ``recipe.json``.

    If the training started from ``weights``, their digest is written under ``key`` and the
    architecture, which is theirs, is left out. A path would mean nothing on another machine and
    would make equal results differ.
    """
    values = recipe.canonical()
    if weights is not None:
        values.pop("architecture", None)
        values[key] = sha256_file(weights)
    with atomic_write(folder / "recipe.json") as aside:
        aside.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


class ClipEnds:
    """Forward hooks that restore the padding after the end of each clip of a batch.

    The hooks do nothing outside of :meth:`at`.
    """

    def __init__(self, part: nn.Module) -> None:
        """Register the hooks in all modules of ``part``."""
        self.lengths: Sequence[int] = ()
        self.total = 0
        self.positions: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        for module in part.modules():
            if isinstance(module, nn.Conv1d) and module.padding != (0,):
                module.register_forward_pre_hook(self._zero)
            elif isinstance(module, encodec.EncodecConv1d):
                module.register_forward_pre_hook(self._zero_mirrored)
            elif isinstance(module, UPSAMPLING + DOWNSAMPLING):
                module.register_forward_pre_hook(self._repeat_last)

    @contextmanager
    def at(self, lengths: Sequence[int], total: int) -> Iterator[None]:
        """Within the block, clip ``i`` fills the fraction ``lengths[i] / total`` of the input.

        The fraction holds at the resolution of every module.
        """
        padded = any(length < total for length in lengths)
        self.lengths, self.total = (lengths, total) if padded else ((), 0)
        try:
            yield
        finally:
            self.lengths, self.total = (), 0
            self.positions.clear()

    def _zero(self, module: nn.Conv1d, inputs: tuple[Tensor]) -> None:
        if self.lengths:
            assert isinstance(module.padding[0], int)
            rows, positions, _ = self._after_ends(inputs[0], module.padding[0])
            inputs[0][rows, :, positions] = 0.0

    def _zero_mirrored(self, module: Any, inputs: tuple[Tensor]) -> None:
        """For a causal convolution that mirrors the start of a clip, in zeros if it is short."""
        if self.lengths:
            rows, positions, _ = self._after_ends(inputs[0], int(module.padding_total))
            inputs[0][rows, :, positions] = 0.0

    def _repeat_last(self, module: Any, inputs: tuple[Tensor]) -> None:
        if self.lengths:
            reach = module.pad if isinstance(module, UPSAMPLING) else module.pad_right
            rows, positions, last = self._after_ends(inputs[0], reach)
            inputs[0][rows, :, positions] = inputs[0][rows, :, last]

    def _after_ends(self, values: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row, position and last position of the clip, for ``reach`` values after each end.

        Raises ValueError if ``values`` (clips, channels, width) has no whole number of values for
        each unit of the total.
        """
        width = values.shape[-1]
        if width % self.total:
            raise ValueError(f"{width} values are not a whole number for each of {self.total}")
        found = self.positions.get((width, reach))
        if found is None:
            ends = [length * width // self.total for length in self.lengths]
            triples = [
                (row, position, end - 1)
                for row, end in enumerate(ends)
                for position in range(end, min(end + reach, width))
            ]
            table = torch.tensor(triples, dtype=torch.long, device=values.device).reshape(-1, 3)
            found = self.positions[width, reach] = (table[:, 0], table[:, 1], table[:, 2])
        return found


def masking_problem(model: Any) -> str | None:
    """The reason why clips of this model cannot share a padded batch; None if they can."""
    semantic = model.semantic_encoder
    if not isinstance(semantic, Wav2Vec2BertModel):
        return (
            f"its semantic encoder is a {type(semantic).__name__}, whose masking is not supported"
        )
    if semantic.config.add_adapter:
        return "its semantic encoder has an adapter, whose convolutions cannot be masked"
    if 1 in model.config.downsampling_ratios:
        return "with a stride of 1 it has one more frame than codes"
    known = (*UPSAMPLING, *DOWNSAMPLING, *FRAMEWISE)
    parts = (model.semantic_adapter, model.acoustic_encoder)
    return next(filter(None, (convolution_problem(part, known) for part in parts)), None)


def convolution_problem(part: nn.Module, known: tuple[type[nn.Module], ...]) -> str | None:
    """The reason why :class:`ClipEnds` cannot mask ``part``; None if it can.

    ``known`` are the modules that it masks, or that work on single frames.
    """
    for module in part.modules():
        leaf = next(module.children(), None) is None
        if leaf and not isinstance(module, (nn.Conv1d, *known)):
            return f"its {type(module).__name__} may mix time steps"
        if isinstance(module, nn.Conv1d) and not keeps_length(module):
            return f"{module} does not pad with zeros to a whole number of frames"
    return None


def keeps_length(module: nn.Conv1d) -> bool:
    """Whether a convolution pads with zeros so that output length = input length / stride."""
    (kernel,), (stride,), (dilation,) = module.kernel_size, module.stride, module.dilation
    if module.padding_mode != "zeros" or not isinstance(module.padding[0], int):
        return False
    length = 1000 * stride
    return (length + 2 * module.padding[0] - dilation * (kernel - 1) - 1) // stride == 999


Precision = Literal["fp32", "bf16"]


class Backend(Protocol):
    """One kind of codec, for inference. A *hop* is ``hop`` samples of the encoder's input.

    Quantizers round *levels*: they give the same code while no level changes by the code's margin.
    """

    facts: CodecFacts
    model: Any
    input_rate: int
    """Sample rate of the encoder's input, in Hz."""
    hop: int
    masking_problem: str | None
    """The reason why clips cannot share a padded batch; None if they can."""

    def hops(self, samples: int) -> int:
        """The number of hops that a clip of ``samples`` is padded to before it is encoded."""

    def codes(self, samples: int) -> int:
        """The number of codes of a clip of ``samples``; 0 if it is too short."""

    def latents(self, waves: Tensor, hops: Sequence[int]) -> Tensor:
        """Zero-padded clips (clips, samples) to the quantizer's inputs (clips, length, dimensions).

        ``hops``: the length of each clip. Values after the end of a clip are undefined.
        """

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents to codes (clips, codes), and their levels (clips, codes, dimensions)."""

    def margins(self, levels: Tensor) -> Tensor:
        """Levels to the margin of each code, (clips, codes)."""

    def dequantized(self, codes: Tensor) -> Tensor:
        """Codes (clips, codes) to the input of a decoder, (clips, length, hidden)."""

    def waves(self, frames: Tensor) -> Tensor:
        """Frames (clips, length, hidden) to (clips, samples) at the codec's rate."""


class ScalarQuantized:
    """What backends with finite scalar quantization share (Mentzer et al., 2023).

    A level is a dimension of a latent in units of quantization levels: a code follows by rounding.
    """

    input_rate, hop = SAMPLE_RATE, HOP
    quantizer: Any

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Backend.quantize`."""
        _, codes = self.quantizer(latents)
        return codes, self.quantizer.bound(latents.float())

    def margins(self, levels: Tensor) -> Tensor:
        """See :meth:`Backend.margins`: the distance from the nearest boundary of any dimension.

        Boundaries lie halfway between integers.
        """
        return (0.5 - (levels - levels.round()).abs()).amin(dim=-1)


class CompactBackend(ScalarQuantized):
    """A codec of this project, in float32.

    Its semantic encoder has no layers that bfloat16 would make faster, and bfloat16 changed one
    code in a hundred.
    """

    def __init__(self, model: CompactXcodec2) -> None:
        self.model = model.eval()
        self.quantizer = model.quantizer.quantizer
        self.facts = facts_of(model)
        self.masking_problem = masking_problem(model)
        self.ends = [ClipEnds(part) for part in (model.semantic_adapter, model.acoustic_encoder)]

    def hops(self, samples: int) -> int:
        """See :meth:`Backend.hops`; it is also the number of codes."""
        return math.ceil(samples / HOP)

    codes = hops

    def latents(self, waves: Tensor, hops: Sequence[int]) -> Tensor:
        """See :meth:`Backend.latents`."""
        total = waves.shape[-1] // HOP
        semantic = self.model.features(waves)
        with self.ends[0].at(hops, total), self.ends[1].at(hops, total):
            return self.model.joined(semantic, waves)

    def dequantized(self, codes: Tensor) -> Tensor:
        """See :meth:`Backend.dequantized`."""
        return self.model.quantizer.from_codes(codes.unsqueeze(-1))

    def waves(self, frames: Tensor) -> Tensor:
        """See :meth:`Backend.waves`."""
        return self.model.waves(frames)


class PublishedBackend(ScalarQuantized):
    """``Xcodec2Model`` or ``NeuCodecModel`` of transformers, with their feature conventions."""

    def __init__(self, model: Any, device: str, precision: Precision = "fp32") -> None:
        self.model, self.precision = model.eval(), precision
        self.quantizer = model.quantizer.quantizer
        self.facts = facts_of(model)
        self.masking_problem = masking_problem(model)
        self.centred = model.config.model_type == "xcodec2"
        self.filterbank = LogFilterbank(per_clip=True, centred=self.centred).to(device)
        self.semantic_ends = ClipEnds(model.semantic_adapter)
        self.acoustic_ends = ClipEnds(model.acoustic_encoder)

    def hops(self, samples: int) -> int:
        """See :meth:`Backend.hops`."""
        return samples // HOP + 1  # their extractors add one sample before they pad to whole hops

    def codes(self, samples: int) -> int:
        """See :meth:`Backend.codes`: NeuCodec rounds down, X-Codec-2 rounds up."""
        return math.ceil(samples / HOP) if self.centred else samples // HOP

    def latents(self, waves: Tensor, hops: Sequence[int]) -> Tensor:
        """See :meth:`Backend.latents`. All but the semantic encoder is float32."""
        model, total = self.model, waves.shape[-1] // HOP
        missing = 0 if self.centred else 1  # frames: see LogFilterbank
        frames = [count - missing for count in hops]
        features = self.filterbank(waves, frames)
        mask = None
        if min(hops) < total:
            counts = torch.tensor(frames, device=waves.device).unsqueeze(1)
            mask = torch.arange(features.shape[1], device=waves.device) < counts
        # The modules after it stay in float32: in bfloat16 they alone change one code in a hundred.
        with torch.autocast(waves.device.type, torch.bfloat16, self.precision == "bf16"):
            semantic = model.semantic_encoder(features, attention_mask=mask).last_hidden_state
        semantic = semantic.to(waves.dtype)
        with self.semantic_ends.at(frames, total - missing):
            semantic = model.semantic_adapter(semantic.transpose(1, 2))
        with self.acoustic_ends.at(hops, total):
            acoustic = model.acoustic_encoder(waves.unsqueeze(1))
        joined = torch.cat([semantic, acoustic[..., : semantic.shape[-1]]], dim=1).transpose(1, 2)
        projected = model.quantizer.project_in(model.fc_encoder(joined))
        return self.quantizer.bound(projected)  # these codecs bound twice: see xcodec2.py

    def dequantized(self, codes: Tensor) -> Tensor:
        """See :meth:`Backend.dequantized`."""
        return self.model.quantizer.from_codes(codes.unsqueeze(-1))

    def waves(self, frames: Tensor) -> Tensor:
        """See :meth:`Backend.waves`."""
        return self.model.decode(latents=frames.transpose(1, 2)).audio_values[:, 0]
