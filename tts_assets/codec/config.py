"""Configurations of the codec stage: where the codec comes from, its training, its shards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tts_assets.core.artifacts import CodecFacts
from tts_assets.core.config import Config, ConfigError
from tts_assets.core.hub import identity
from tts_assets.core.program import ProgramConfig
from tts_assets.core.split import ValidationSplit

UINT16_CODES = 65_536  # shards store codes as uint16; the largest X-Codec-2 has just as many
RATIOS = (20, 16)  # of the waveform branch: samples of a code
BATCH_TOKENS = 1500  # 30 s: on a core larger ones gain little, and a rank stays below 1 GB
ORIGINAL = (".ckpt", ".safetensors")  # files of X-Codec-2 as its authors publish it


class CodecArchitecture(Config):
    """The size of an X-Codec-2 model. The product of ``ratios`` is the samples of one code.

    The filterbank that feeds the encoder has a frame every 10 ms, two a code, so the model runs
    at 16 kHz with 320 samples a code.
    """

    hidden: int = Field(288, gt=0, description="channels of the decoder; a multiple of 32")
    layers: int = Field(2, ge=0, description="attention layers of the decoder")
    heads: int = Field(4, gt=0)
    intermediate: int = Field(864, gt=0)
    semantic_hidden: int = Field(192, gt=0, description="channels of the filterbank branch")
    acoustic_hidden: int = Field(
        0, ge=0, description="channels of the waveform branch at 16 kHz; 0: there is none"
    )
    ratios: tuple[int, ...] = RATIOS
    levels: tuple[int, ...] = Field(
        (5, 5, 5, 4, 4),
        min_length=1,
        description="of each dimension of a code; at one size more dimensions are better",
    )

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if math.prod(self.ratios) != 320 or min(self.ratios) < 2:
            raise ValueError(
                f"ratios {self.ratios} multiply to {math.prod(self.ratios)}; the filterbank has a "
                "frame for every 320 samples, and each must be 2 or more, so write for example "
                "[20, 16] or [2, 2, 4, 4, 5]"
            )
        if self.ratios != RATIOS and not self.acoustic_hidden:
            raise ValueError(
                "ratios are those of the waveform branch, which acoustic_hidden = 0 leaves out: "
                "give both, or neither"
            )
        if self.hidden % 32 or self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(
                f"hidden {self.hidden} must be a multiple of 32 (group norm), and of twice "
                f"heads {self.heads} (rotary embedding)"
            )
        if min(self.levels) < 2 or self.codebook_size > UINT16_CODES:
            raise ValueError(
                f"levels {self.levels} make {self.codebook_size} codes; use 2 or more levels a "
                f"dimension and at most {UINT16_CODES} codes, for example [5, 5, 5, 4, 4]"
            )
        return self


class AdversarialConfig(Config):
    """The adversarial stage: discriminators of STFTs and of periods, from ``start`` (a share of
    all steps) on.

    For ``warmup`` steps only the discriminators learn, then their weight rises as long again. The
    stage has a learning rate schedule of its own.
    """

    start: float = Field(0.5, ge=0, lt=1)
    generator_lr: float | None = Field(
        None, gt=0, description="the generator's highest in this stage; unset: that of before"
    )
    warmup: int = Field(200, ge=1)
    objective: Literal["hinge", "least_squares"] = "hinge"
    sizes: tuple[int, ...] = Field((1024, 512, 256), min_length=1, description="FFT sizes")
    overlap: int = Field(4, ge=2, le=8, description="FFT size / hop: frames that hear a sample")
    periods: tuple[int, ...] = Field((), description="of judges of every n-th sample (HiFi-GAN)")
    channels: int = Field(16, gt=0)
    share: float = Field(0.5, gt=0, le=1, description="of a step's windows that are judged")
    lr: float = Field(3e-4, gt=0)
    adversarial_weight: float = Field(0.15, ge=0)
    feature_weight: float = Field(0.4, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if min(self.sizes) < 32 or max(self.sizes) > 16_384:
            raise ValueError(
                f"sizes {self.sizes} must lie between 32, below which no frequencies are left to "
                "judge, and 16384, a window of one second"
            )
        if min(self.periods, default=2) < 2:
            raise ValueError(f"periods {self.periods} must be 2 or more samples")
        return self


class CodecAdversarialConfig(AdversarialConfig):
    """The adversarial stage of a codec, from ``start`` (a share of all steps) on.

    For ``warmup`` steps only the discriminators learn, then their weight rises as long again. The
    encoder is frozen: what judges teach it costs more words than what they teach the decoder
    (``benchmarks/codec_training-2026-11-23.md``).
    """

    freeze_encoder: bool = Field(True, description="its codes change no more")


class DecoderAdversarialConfig(AdversarialConfig):
    """The adversarial stage of a decoder, with the judges of the reference trainer."""

    start: float = Field(0.0, ge=0, lt=1)
    objective: Literal["hinge", "least_squares"] = "least_squares"
    sizes: tuple[int, ...] = Field(
        (78, 126, 206, 334, 542, 876, 1418, 2296), min_length=1, description="FFT sizes"
    )
    overlap: int = Field(2, ge=2, le=8, description="FFT size / hop: frames that hear a sample")
    periods: tuple[int, ...] = Field(
        (2, 3, 5, 7, 11), description="of judges of every n-th sample (HiFi-GAN)"
    )
    channels: int = Field(32, gt=0)
    share: float = Field(1.0, gt=0, le=1, description="of a step's windows that are judged")
    lr: float = Field(1e-4, gt=0)
    adversarial_weight: float = Field(1.0, ge=0)
    feature_weight: float = Field(1.0, ge=0)


class TrainingRecipe(Config):
    """What the trainings of a codec and of a decoder have in common. ``corpora``: name to weight
    of its hours."""

    corpora: dict[str, float] = Field(min_length=1)
    steps: int = Field(12_000, gt=0)
    batch_seconds: int = Field(16, gt=0, description="audio of one step over all ranks")
    window_seconds: tuple[int, ...] = Field((1, 1, 2, 4), min_length=1)
    speeds: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="each window is played at one of these: other voices"
    )
    gains: tuple[float, ...] = Field(
        (0.0,), min_length=1, description="dB; each window is played at one of these levels"
    )
    lr: float = Field(1e-3, gt=0)
    final_share: float = Field(0.05, ge=0, le=1, description="last lr / peak lr")
    warmup: int = Field(100, ge=1)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1, description="the published weights are an average")
    adversarial: AdversarialConfig | None = Field(
        AdversarialConfig(), description="false: no judges, spectra alone"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    export_dtype: Literal["fp32", "fp16"] = "fp32"
    eval_every: int = Field(1000, gt=0)
    save_every: int = Field(500, gt=0)
    seed: int = Field(777, ge=0)

    @property
    def first_judged(self) -> int:
        """The first step of the adversarial stage; behind the last if there is none."""
        judged = self.adversarial
        return self.steps if judged is None else round(judged.start * self.steps)

    def check_ranks(self, ranks: int) -> None:
        """Raise :class:`ConfigError` unless each rank gets as many windows of a step as the others:
        their gradients are averaged with equal weights."""
        if any(self.batch_seconds // length % ranks for length in self.window_seconds):
            even = ranks * math.lcm(*self.window_seconds)
            raise ConfigError(
                f"{ranks} processes cannot share the windows of {self.batch_seconds} s evenly: "
                f"set batch_seconds to a multiple of {even}, or start fewer"
            )

    @field_validator("adversarial", mode="before")
    @classmethod
    def _no_judges(cls, value: object) -> object:
        """TOML has no null."""
        return None if value is False else value

    @model_validator(mode="after")
    def _possible_data(self) -> Self:
        if max(self.window_seconds) > self.batch_seconds or min(self.window_seconds) < 1:
            raise ValueError(
                f"window_seconds {self.window_seconds} must lie between 1 and batch_seconds "
                f"{self.batch_seconds}"
            )
        if min(self.speeds) < 0.5 or max(self.speeds) > 2:
            raise ValueError(
                f"speeds {self.speeds} must lie between 0.5 and 2; write for example "
                "[0.9, 1.0, 1.1]"
            )
        if min(self.gains) < -40 or max(self.gains) > 20:
            raise ValueError(
                f"gains {self.gains} must lie between -40 and 20 dB; write for example [-12, 0, 0]"
            )
        bad = [name for name, weight in self.corpora.items() if weight <= 0]
        if bad:
            raise ValueError(f"corpora {bad} have no positive weight: leave them out")
        return self


class CodecRecipe(TrainingRecipe):
    """``[codec.train]``: a codec trained on ``corpora``.

    ``base`` names a checkpoint folder of this project to start from instead of random weights;
    ``freeze_encoder`` keeps its codes as they are, so that shards made with it stay valid, and
    trains the decoder alone.
    """

    architecture: CodecArchitecture = CodecArchitecture()
    adversarial: CodecAdversarialConfig | None = Field(
        CodecAdversarialConfig(), description="false: no judges, spectra alone"
    )
    base: Path | None = None
    freeze_encoder: bool = False
    spread_weight: float = Field(
        1.0, ge=0, description="keeps the latents centred, of unit variance and uncorrelated"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.freeze_encoder and self.base is None:
            raise ValueError("freeze_encoder needs a base: a random encoder learns nothing")
        if self.base is not None and self.architecture != CodecArchitecture():
            raise ValueError("a base has an architecture of its own: leave architecture out")
        judged = self.adversarial
        if judged and judged.freeze_encoder and judged.start == 0 and self.base is None:
            raise ValueError(
                "adversarial.start = 0 would freeze a random encoder: write start = 0.6, or "
                "adversarial.freeze_encoder = false"
            )
        return self


class DecoderSize(Config):
    """The size of a decoder's backbone, where it is not that of the codec."""

    hidden: int = Field(gt=0, description="channels; a multiple of 32")
    layers: int = Field(ge=0)
    heads: int = Field(gt=0)
    intermediate: int = Field(gt=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.hidden % 32 or self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(
                f"hidden {self.hidden} must be a multiple of 32 (group norm), and of twice "
                f"heads {self.heads} (rotary embedding)"
            )
        return self


class DecoderRecipe(TrainingRecipe):
    """``[codec.decoder]``: a decoder of its own for the codec's codes, at another rate.

    ``start``: ``codec`` takes over all weights of the codec's own decoder that fit (a public one's
    backbone does, its head where the rate is the same), ``scratch`` takes random ones; a folder
    goes on with a decoder that was trained before. The losses are those of the reference trainer:
    multi-resolution mel (weight 15), loudness, least-squares judges of periods and STFTs.
    """

    sample_rate: Literal[16_000, 24_000, 48_000] = 24_000
    start: str = "codec"
    size: DecoderSize | None = Field(None, description="with start = scratch")
    steps: int = Field(20_000, gt=0)
    window_seconds: tuple[int, ...] = Field((1,), min_length=1)
    lr: float = Field(1e-4, gt=0)
    mel_weight: float = Field(15.0, gt=0)
    loudness_weight: float = Field(1.0, ge=0, description="of the squared difference in dB")
    adversarial: DecoderAdversarialConfig | None = Field(
        DecoderAdversarialConfig(), description="false: no judges, spectra alone"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.size is not None and self.start != "scratch":
            raise ValueError('a size of its own has only a decoder from nothing: start = "scratch"')
        return self


class CodecReportConfig(Config):
    """``[codec.report]``: what codecs are compared on, held-out utterances of ``corpora``."""

    corpora: tuple[str, ...] = Field(min_length=1)
    clips: int = Field(40, gt=0)
    longest_seconds: float = Field(12.0, gt=0)
    language: str = "en"
    whisper: str = Field("", description="as in [evaluation]; nothing for the packaged tiny.en")

    def identified(self) -> CodecReportConfig:
        """The same with a Whisper that is a folder named by its files."""
        return self.model_copy(update={"whisper": identity(self.whisper)})


class CodecConfig(Config):
    """``[codec]``: give ``checkpoint`` or ``train``.

    ``checkpoint`` is a folder, a Hugging Face name (``HKUSTAudio/xcodec2-hf``) with its
    ``revision``, a commit (a branch would change under the recorded lineage), or an original
    X-Codec-2's ``.ckpt`` or ``.safetensors``, which is converted (see ``original.py``).
    """

    checkpoint: str | None = None
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    train: CodecRecipe | None = None
    decoder: DecoderRecipe | None = None
    report: CodecReportConfig | None = None
    shard_samples: int = Field(512, gt=0, description="utterances in one shard")
    batch_tokens: int = Field(
        BATCH_TOKENS, gt=0, description="codes of one batch with padding; 1: clips one by one"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.checkpoint is None) == (self.train is None):
            raise ValueError("give exactly one of checkpoint and train")
        if self.train is not None and self.revision is not None:
            raise ValueError("revision goes with checkpoint, the name of a published codec")
        return self


class TrainingProgram(ProgramConfig):
    """A recipe on published sample lists (``filtered_samples``), by corpus."""

    recipe: TrainingRecipe
    samples: dict[str, Path]
    validation: ValidationSplit = ValidationSplit()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = sorted(set(self.recipe.corpora) - set(self.samples))
        if missing:
            raise ValueError(f"no samples given for corpora {missing} of the recipe")
        return self


class CodecProgram(TrainingProgram):
    """``tts_assets.codec.train``: one codec."""

    recipe: CodecRecipe


class DecoderProgram(TrainingProgram):
    """``tts_assets.codec.train_decoder``: a decoder for the codes of ``codec``, whose content
    digest is ``codec_content``. ``start``: the folder of a decoder to go on with."""

    recipe: DecoderRecipe
    codec: Path
    codec_content: str
    start: Path | None = None


class ShardProgram(ProgramConfig):
    """``tts_assets.codec.shards``: encode one corpus' samples with a codec.

    ``codec_content`` is the digest of the codec, which the shards record. ``reuse`` names earlier
    artifacts whose codes may be taken over. Neither it nor ``batch_tokens`` changes a byte.
    """

    corpus: str
    samples: Path
    codec: Path
    codec_content: str
    codec_facts: CodecFacts
    shard_samples: int = Field(512, gt=0)
    batch_tokens: int = Field(BATCH_TOKENS, gt=0)
    reuse: list[Path] = Field(default_factory=list)
