"""X-Codec-2 at any size, trainable from scratch, based on the classes of ``transformers``.

Four things differ from the published model (Ye et al., 2025). The first three are recorded in
``config.json``:

* The quantizer bounds its input once (``quantizer_bound: single``). The published one bounds it
  twice; tanh(tanh(x)) reaches the inner levels only and stalls training from scratch (log10-mel L1
  0.47 after 1,300 steps, against 0.36 with a single bound).
* The semantic encoder has no layers. It is a projection of the filterbank, which is whitened with
  statistics of the training audio (``features: level``; see :class:`Whitening`). Earlier codecs
  (``absolute``) normalized every frame instead.
* The waveform branch is optional (``waveform_branch``).
* The initialization. The default of transformers (standard deviation 0.02) does not train: all
  latents fall into one cell of the quantizer, and the output is zero.

:class:`LogFilterbank` is Kaldi's log-mel filterbank as ``SeamlessM4TFeatureExtractor`` computes it
(the largest difference on speech is 1e-4), but batched and on any device. The feature extractors
that transformers has for these codecs import torchaudio, or process one clip at a time in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Xcodec2Config,
    Xcodec2Model,
)
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Quantizer

from tts_assets.codec.config import CodecArchitecture

SAMPLE_RATE = 16_000
HOP = 320  # samples per code: two filterbank frames of 10 ms
FRAME, SHIFT, FFT = 400, 160, 512
PREEMPHASIS = 0.97
FLOOR = 1.192092955078125e-07  # Kaldi's epsilon
DIMENSION = 160  # 80 mel bands x two frames


class LogFilterbank(nn.Module):
    """Log-mel features of waveforms, two frames of 80 bands per code.

    ``per_clip`` normalizes every mel band to zero mean and unit variance over the clip, as the
    published codecs expect. Codecs of this project do without, so the features and the code of a
    frame depend on its surroundings only, not on the whole clip. ``centred`` pads half a hop at
    both ends, which gives as many frames as hops (NeuCodec has no such padding and one frame less).
    """

    mel: Tensor
    window: Tensor

    def __init__(self, per_clip: bool = False, centred: bool = True) -> None:
        super().__init__()
        self.per_clip, self.centred = per_clip, centred
        source = SeamlessM4TFeatureExtractor()
        mel = torch.tensor(source.mel_filters, dtype=torch.float32)
        window = torch.tensor(source.window, dtype=torch.float32)
        self.register_buffer("mel", mel, persistent=False)
        self.register_buffer("window", window, persistent=False)

    @torch.no_grad()
    def forward(self, waves: Tensor, frames: Sequence[int] = ()) -> Tensor:
        """Waveforms (batch, samples) at 16 kHz to features (batch, samples / 320, 160).

        ``waves``: float32 in [-1, 1], a multiple of 320 samples. ``frames``: for a padded batch,
        the number of features of each clip; features after them are undefined.
        """
        padding = (HOP // 2, HOP // 2) if self.centred else (0, 0)
        parts = F.pad(waves * 2**15, padding).unfold(-1, FRAME, SHIFT)
        parts = parts - parts.mean(-1, keepdim=True)
        before = torch.cat([parts[..., :1], parts[..., :-1]], dim=-1)
        parts = (parts - PREEMPHASIS * before) * self.window
        power = torch.fft.rfft(parts, FFT).abs().square()
        bands = (power @ self.mel).clamp_min(FLOOR).log()
        width = bands.shape[1] // 2
        if self.per_clip:
            lengths = frames or [width] * len(waves)
            clips = [clip[: 2 * length] for clip, length in zip(bands, lengths, strict=True)]
            bands = pad_sequence([standardized(clip) for clip in clips], batch_first=True)
        return bands[:, : 2 * width].reshape(len(waves), width, DIMENSION)


def standardized(bands: Tensor) -> Tensor:
    """(time, bands), normalized to zero mean and unit variance in every band."""
    return (bands - bands.mean(dim=0)) / (bands.var(dim=0) + 1e-7).sqrt()


SINGLE_BOUND = "single"
LEVEL = "level"
FAINTEST = -3.5  # deviations below a band's mean; see Whitening
RESIDUAL_GAIN = 0.3  # of the last layer of a residual branch: blocks start near the identity


class SingleBoundQuantizer(Xcodec2Quantizer):
    """Finite scalar quantization (Mentzer et al., 2023) with one bound.

    The numbering of the codes is that of the published class.
    """

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (batch, codes, hidden) to quantized frames and codes (batch, codes, 1)."""
        return self.quantize(self.project_in(hidden_states))

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (batch, codes, dimensions) to quantized frames (batch, codes, hidden) and codes
        (batch, codes, 1)."""
        quantized, codes = self.quantizer(latents)
        return self.project_out(quantized.to(latents.dtype)), codes.unsqueeze(-1)


class Whitening(nn.Module):
    """Standardizes every band of the filterbank (..., 160) by statistics of the training audio.

    It replaces the layer norm before the semantic encoder. A layer norm removes the mean of each
    frame, which is its loudness; the few channels of the waveform branch must then transmit it.
    After 900 steps of 8 s the demo's codec has a log-mel L1 of 0.613 and a WER of 51 % with the
    layer norm, and 0.534 and 32 % with this module and no waveform branch.

    In evaluation mode values are clamped to :data:`FAINTEST`, below which nearly no training data
    lies. Digital silence lies up to nine deviations below the mean; without the clamp the demo's
    codec decoded it to loud noise (-12 dB; speech has -17 dB). Clamped to -3.5 the output is below
    -60 dB, after speech below -80 dB. The clamp changes 0.5 % of the codes of held-out speech, most
    of them in the zero padding at a clip's end. -4 does not silence noise of 1e-6; -3 changes 2 %
    of the codes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIMENSION))
        self.bias = nn.Parameter(torch.zeros(DIMENSION))

    def forward(self, bands: Tensor) -> Tensor:
        """(..., 160) to the same shape."""
        whitened = bands * self.weight + self.bias
        return whitened if self.training else whitened.clamp_min(FAINTEST)


class NoWaveform(nn.Module):
    """Replaces the waveform branch of a codec without one; its output is zero."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.hidden, self.hop = config.hidden_size, config.hop_length

    def forward(self, waves: Tensor) -> Tensor:
        """(batch, 1, samples) to (batch, hidden, codes)."""
        return waves.new_zeros(len(waves), self.hidden, waves.shape[-1] // self.hop)


class CompactConfig(Xcodec2Config):
    """Sizes of a :class:`CompactXcodec2`.

    The model type is its own, so that no other program opens the weights as an X-Codec-2. Once
    this module is imported, ``AutoModel`` opens them as what they are.
    """

    model_type = "compact_xcodec2"


class CompactXcodec2(Xcodec2Model):
    """``Xcodec2Model`` with a single bound and a built-in filterbank."""

    config_class = CompactConfig
    quantizer: SingleBoundQuantizer
    acoustic_encoder: Any

    def __init__(self, config: CompactConfig) -> None:
        super().__init__(config)
        self.quantizer = SingleBoundQuantizer(config)
        self.filterbank = LogFilterbank()
        if config.features == LEVEL:
            self.semantic_encoder.feature_projection.layer_norm = Whitening()
        if not getattr(config, "waveform_branch", True):
            self.acoustic_encoder = NoWaveform(config)

    @torch.no_grad()
    def features(self, waves: Tensor) -> Tensor:
        """Waveforms (batch, samples), a multiple of 320, to semantic features (batch, codes,
        hidden)."""
        found: Tensor = self.semantic_encoder(self.filterbank(waves)).last_hidden_state
        return found

    def latents(self, waves: Tensor) -> Tensor:
        """Waveforms (batch, samples), a multiple of 320, to latents (batch, codes, dimensions)."""
        return self.joined(self.features(waves), waves)

    def joined(self, features: Tensor, waves: Tensor) -> Tensor:
        """Semantic features (batch, codes, hidden) and waveforms (batch, samples) to latents."""
        semantic = self.semantic_adapter(features.transpose(1, 2))
        # On CPUs with AMX, oneDNN 3.12 (torch 2.13) computes some strided convolutions wrongly in
        # bfloat16, here that of (2, 4, 32 / 16): pytorch#169688. With so few channels bfloat16 is
        # not faster either.
        with torch.autocast("cpu", enabled=False):
            acoustic = self.acoustic_encoder(waves.unsqueeze(1))
        frames = torch.cat([semantic, acoustic], dim=1).transpose(1, 2)
        return self.quantizer.project_in(self.fc_encoder(frames))

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents to quantized frames (batch, codes, hidden) and codes (batch, codes, 1)."""
        return self.quantizer.quantize(latents)

    def waves(self, quantized: Tensor) -> Tensor:
        """Quantized frames (batch, codes, hidden) to waveforms (batch, samples)."""
        return self.acoustic_decoder(quantized).squeeze(1)

    def moved(self, device: torch.device | str) -> Self:
        """``to(device)`` with a precise return type, which transformers' decorators hide."""
        nn.Module.to(self, device)
        return self

    def encoder_parts(self) -> list[nn.Module]:
        """All modules that determine the codes of a clip."""
        return encoder_parts(self)

    def published(self) -> Self:
        """The model whose config and weights make a codec folder."""
        return self


AutoConfig.register(CompactConfig.model_type, CompactConfig)
AutoModel.register(CompactConfig, CompactXcodec2)


def encoder_parts(model: Any) -> list[nn.Module]:
    """All modules of an ``Xcodec2Model`` that determine the codes of a clip."""
    own = [model.semantic_encoder, model.semantic_adapter, model.acoustic_encoder]
    return [*own, model.fc_encoder, model.quantizer.project_in]


def build(architecture: CodecArchitecture, seed: int) -> CompactXcodec2:
    """A codec with random weights that follow from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CompactXcodec2(compact_config(architecture))
        _initialize(model)
    return model


def backbone_sizes(size: CodecArchitecture) -> dict[str, Any]:
    """The sizes of a decoder's backbone under their names in transformers."""
    return {
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "head_dim": size.hidden // size.heads,
    }


def compact_config(size: CodecArchitecture) -> CompactConfig:
    """The configuration of a compact codec."""
    semantic = Wav2Vec2BertConfig(
        hidden_size=size.semantic_hidden,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=size.semantic_hidden,
        feature_projection_input_dim=DIMENSION,
        apply_spec_augment=False,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )
    own: dict[str, Any] = {
        "quantizer_bound": SINGLE_BOUND,
        "features": LEVEL,
        "waveform_branch": size.acoustic_hidden > 0,
    }
    return CompactConfig(
        **backbone_sizes(size),
        encoder_hidden_size=max(1, size.acoustic_hidden),
        downsampling_ratios=list(size.ratios),
        semantic_model_config=semantic,
        sampling_rate=SAMPLE_RATE,
        activation_dropout=0.0,
        quantization_dim=size.hidden + size.semantic_hidden,
        quantization_levels=list(size.levels),
        **own,
    )


@torch.no_grad()
def _initialize(model: CompactXcodec2) -> None:
    initialize_published(model, waveform_branch=model.config.waveform_branch)


@torch.no_grad()
def initialize_published(model: Any, waveform_branch: bool = True) -> None:
    """Initialize an ``Xcodec2Model`` or a subclass."""
    _draw_weights(model)
    if waveform_branch:
        for block in model.acoustic_encoder.block:
            for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
                unit.conv2.weight.mul_(RESIDUAL_GAIN)
    _start_near_identity(model.acoustic_decoder, model.acoustic_decoder.head)


@torch.no_grad()
def initialize_decoder(decoder: Any) -> None:
    """Initialize a separate decoder, ``Xcodec2Decoder`` or a subclass with an upsampler."""
    _draw_weights(decoder)
    _start_near_identity(decoder, getattr(decoder.head, "istft", decoder.head))


def _draw_weights(model: nn.Module) -> None:
    """Draw variance-preserving weights; set biases to zero."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _start_near_identity(decoder: Any, head: Any) -> None:
    """Scale down the ends of residual branches; draw the phases of the head."""
    ends: list[Any] = [block.conv2 for block in (*decoder.prior_net, *decoder.post_net)]
    for layer in decoder.layers:
        ends += [layer.self_attn.o_proj, layer.mlp.fc2]
    for end in ends:
        end.weight.mul_(RESIDUAL_GAIN)
    magnitudes = head.linear.out_features // 2
    head.linear.weight.mul_(0.5)
    head.linear.bias[:magnitudes] = -1.0  # log magnitude, about that of speech
    head.linear.bias[magnitudes:].uniform_(-math.pi, math.pi)


@torch.no_grad()
def calibrate(model: CompactXcodec2, waves: Tensor) -> None:
    """Fit the model to training audio (batch, samples) in place.

    The filterbank is whitened, and the latents are centred.
    """
    features = model.filterbank(waves).flatten(0, 1)
    spread = features.std(dim=0).clamp_min(0.05)
    whitening = model.semantic_encoder.feature_projection.layer_norm
    whitening.weight.copy_(1 / spread)
    whitening.bias.copy_(-features.mean(dim=0) / spread)
    centre_latents(model.quantizer.project_in, model.latents(waves))


@torch.no_grad()
def centre_latents(project: nn.Linear, latents: Tensor) -> None:
    """Give every dimension of the latents (batch, codes, dimensions) of ``project`` zero mean and
    unit variance."""
    latents = latents.flatten(0, 1)
    spread = latents.std(dim=0)
    project.weight.div_(spread[:, None])
    project.bias.sub_(latents.mean(dim=0)).div_(spread)
