"""Configuration of the codec: its source, its training, its decoder, and the encoding of corpora.

The classes whose docstring names a table, for example ``[codec.train]``, are tables of
``dagster_project.toml``. The classes ``*Program`` are the ``run.json`` of the launched programs.
This module imports no torch, because Dagster's definitions import it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tts_assets.audio_models.whisper import whisper_identity
from tts_assets.codec.training_config import (
    CodecAdversarialConfig,
    DecoderAdversarialConfig,
    TrainingRecipe,
)
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import CodecFacts, sha256_file
from tts_assets.core.config import Config, ConfigError
from tts_assets.core.hub import HUB_NAME, MAIN, commit_of
from tts_assets.core.metadata import Markdown, Metadata
from tts_assets.core.program import ProgramConfig

UINT16_CODES = 65_536  # shards store codes as uint16; X-Codec-2's codebook has this size
RATIOS = (20, 16)  # default strides of the waveform branch; their product is the samples per code
BATCH_TOKENS = 1500  # 30 s of audio: larger batches gain little on a core; a rank stays below 1 GB
ORIGINAL = (
    ".ckpt",
    ".safetensors",
)  # suffixes of the X-Codec-2 checkpoints of its authors

MODEL_CARD = "README.md"
CODEBOOKS_FILE = "codebooks.json"  # of a codec folder: how many codebooks are used


class CodecArchitecture(Config):
    """The size of an X-Codec-2 model (Ye et al., 2025).

    The product of ``ratios`` is the number of samples per code. The filterbank of the encoder has
    a frame every 10 ms, two per code, so the model runs at 16 kHz with 320 samples per code.

    Without ``semantic_model`` the codec is a compact one (``xcodec2.py``). With it, it is the
    published model around a pretrained w2v-BERT, whose folder this is (``original.py``).
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"semantic_model"})

    hidden: int = Field(288, gt=0, description="channels of the decoder; a multiple of 32")
    layers: int = Field(2, ge=0, description="attention layers of the decoder")
    heads: int = Field(4, gt=0)
    intermediate: int = Field(864, gt=0)
    semantic_model: Path | None = Field(None, description="a folder of w2v-BERT 2.0")
    semantic_hidden: int = Field(192, gt=0, description="channels of the filterbank branch")
    acoustic_hidden: int = Field(
        0, ge=0, description="channels of the waveform branch at 16 kHz; 0: no such branch"
    )
    ratios: tuple[int, ...] = RATIOS
    levels: tuple[int, ...] = Field(
        (5, 5, 5, 4, 4),
        min_length=1,
        description="quantization levels of each dimension of a code; for a given codebook size, "
        "more dimensions are better",
    )

    @property
    def codebook_size(self) -> int:
        """The number of different codes."""
        return math.prod(self.levels)

    @model_validator(mode="after")
    def _check(self) -> Self:
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
        if self.semantic_model is not None and not self.acoustic_hidden:
            raise ValueError(
                "the published model has a waveform branch: write acoustic_hidden = 48 and "
                "ratios = [2, 2, 4, 4, 5], its sizes, beside semantic_model"
            )
        if self.hidden % 32 or self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(
                f"hidden {self.hidden} must be a multiple of 32 (group norm), and of twice "
                f"heads {self.heads} (rotary embedding)"
            )
        if min(self.levels) < 2 or self.codebook_size > UINT16_CODES:
            raise ValueError(
                f"levels {self.levels} make {self.codebook_size} codes; use 2 or more levels per "
                f"dimension and at most {UINT16_CODES} codes, for example [5, 5, 5, 4, 4]"
            )
        return self


class SemanticConfig(Config):
    """Features of a frozen encoder as further targets of a codec (see ``semantic.py``).

    ``features``: those of Whisper tiny.en, or those of the codec's own w2v-BERT, which the
    published recipe of X-Codec-2 reconstructs. Both losses are mean squared errors of standardized
    features: 1 means that nothing is predicted.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"whisper": ""}

    features: Literal["whisper", "codec"] = "whisper"
    weight: float = Field(1.0, ge=0, description="of the features predicted from the codes")
    audio_weight: float = Field(
        0.0, ge=0, description="of the features of decoded audio against those of the recording"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.weight and not self.audio_weight:
            raise ValueError("both weights are 0: leave the table semantic out")
        if self.features == "codec" and self.audio_weight:
            raise ValueError(
                'with features = "codec" the target is what the codes hold: leave audio_weight out'
            )
        return self


class CodecRecipe(TrainingRecipe):
    """``[codec.train]``: a codec trained on ``corpora``.

    ``base`` is a codec folder that initializes the weights: one of this project, or an X-Codec-2
    in the format of transformers, which is trained as the published function. With
    ``freeze_encoder`` only the decoder is trained: the codes stay the same, and shards that were
    made with the base stay valid.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"spread_weight": "covariance_weight"}
    added_keys: ClassVar[frozenset[str]] = frozenset({"semantic", "voice"})

    architecture: CodecArchitecture = CodecArchitecture()
    adversarial: CodecAdversarialConfig | None = Field(
        CodecAdversarialConfig(), description="false: spectral losses only, no discriminators"
    )
    base: Path | None = None
    freeze_encoder: bool = False
    voice: tuple[str, ...] = Field(
        (),
        description="corpora of the one voice that is decoded: the codes follow from Whisper's "
        "features and hold what is said, whoever says it",
    )
    semantic: SemanticConfig | None = None
    covariance_weight: float = Field(
        1.0,
        ge=0,
        description="of the loss that keeps latents of a compact codec centred, scaled and "
        "uncorrelated",
    )
    speeds: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="each window is played at one of these speeds"
    )
    gains: tuple[float, ...] = Field(
        (0.0,), min_length=1, description="dB; each window is amplified by one of these gains"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.freeze_encoder and self.base is None:
            raise ValueError("freeze_encoder needs a base: a random encoder learns nothing")
        if self.base is not None and self.architecture != CodecArchitecture():
            raise ValueError("the base has its own architecture: leave architecture out")
        config = self.adversarial
        if config and config.freeze_encoder and config.start == 0 and self.base is None:
            raise ValueError(
                "adversarial.start = 0 would freeze a random encoder: write start = 0.6, or "
                "adversarial.freeze_encoder = false"
            )
        if unknown := sorted(set(self.voice) - set(self.corpora)):
            raise ValueError(f"voice {unknown}: corpora has {sorted(self.corpora)}")
        others = self.voice and set(self.corpora) - set(self.voice)
        if others and not (self.semantic and self.semantic.audio_weight):
            raise ValueError(
                f"nothing trains the speech of {sorted(others)}, which are not in voice: write "
                "semantic = { audio_weight = 1.5 }, or leave them out"
            )
        if self.voice and self.architecture.semantic_model is not None:
            raise ValueError("with voice the encoder is Whisper's: leave semantic_model out")
        if min(self.speeds) < 0.5 or max(self.speeds) > 2:
            raise ValueError(
                f"speeds {self.speeds} must lie between 0.5 and 2; write for example "
                "[0.9, 1.0, 1.1]"
            )
        if min(self.gains) < -120 or max(self.gains) > 20:
            raise ValueError(
                f"gains {self.gains} must lie between -120 (silence) and 20 dB; write for example "
                "[-12, 0, 0]"
            )
        return self

    def placed(self, base: Path | None, semantic_model: Path | None) -> CodecRecipe:
        """This recipe with the folders of the base and of the semantic encoder."""
        architecture = self.architecture.model_copy(update={"semantic_model": semantic_model})
        return self.model_copy(update={"base": base, "architecture": architecture})


class DecoderRecipe(TrainingRecipe):
    """``[codec.decoder]``: a separate decoder for the codec's codes, at another sample rate.

    ``start``: ``codec`` copies all weights of the codec's own decoder that fit (the backbone of a
    published one does; the head does if the rate is the same), ``scratch`` draws random weights,
    and a folder continues a decoder that was trained before. The losses are those of the reference
    trainer: multi-resolution mel, loudness, and least-squares discriminators of periods and STFTs.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {
        **TrainingRecipe.removed_keys,
        "mel_weight": 15.0,
        "loudness_weight": 1.0,
        "speeds": [1.0],
        "gains": [0.0],
        "size": None,
    }
    replaced_keys: ClassVar[Mapping[str, str]] = {
        "size": "a decoder has the size of the codec's own; delete it"
    }

    sample_rate: Literal[16_000, 24_000, 48_000] = 24_000
    start: str = "codec"
    steps: int = Field(20_000, gt=0)
    window_seconds: tuple[int, ...] = Field((1,), min_length=1)
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    adversarial: DecoderAdversarialConfig | None = Field(
        DecoderAdversarialConfig(), description="false: spectral losses only, no discriminators"
    )


class CodecReportConfig(Config):
    """``[codec.report]``: the held-out utterances of ``corpora`` that codecs are compared on."""

    removed_keys: ClassVar[Mapping[str, Any]] = {"longest_seconds": 12.0}

    corpora: tuple[str, ...] = Field(min_length=1)
    clips: int = Field(40, gt=0)
    whisper: str = Field("", description='as in [evaluation]; empty: tiny.en; "none": no WER')

    def identified(self) -> CodecReportConfig:
        """This configuration with a Whisper that is a folder named by the digest of its files."""
        return self.model_copy(update={"whisper": whisper_identity(self.whisper)})


class CodecConfig(Config):
    """``[codec]``: give either ``checkpoint`` or ``train``.

    ``checkpoint`` is a folder, a Hugging Face name (``HKUSTAudio/xcodec2-hf``), or an original
    X-Codec-2 ``.ckpt`` or ``.safetensors``, which is converted (see ``original.py``). A name is
    pinned to a commit; ``owner/name@revision`` names a branch, a tag or a commit. ``codebooks``
    uses the first codebooks only of a codec that has more.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"codebooks"})
    replaced_keys: ClassVar[Mapping[str, str]] = {
        "revision": "write checkpoint = 'owner/name@revision'"
    }

    checkpoint: str | None = None
    codebooks: int | None = Field(None, gt=0, description="of DAC, EnCodec or Mimi; unset: all")
    train: CodecRecipe | None = None
    decoder: DecoderRecipe | None = None
    report: CodecReportConfig | None = None
    shard_samples: int = Field(512, gt=0, description="utterances in one shard")
    batch_tokens: int = Field(
        BATCH_TOKENS, gt=0, description="codes in one batch with padding; 1: clips one by one"
    )

    @property
    def corpora(self) -> set[str]:
        """The corpora that the codec or its decoder is trained on."""
        return {name for one in (self.train, self.decoder) if one for name in one.corpora}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.checkpoint is None) == (self.train is None):
            raise ValueError("give exactly one of checkpoint and train")
        if self.codebooks is not None and self.train is not None:
            raise ValueError("codecs that are trained here have one codebook: remove codebooks")
        return self


def identify(name: str, root: Path) -> dict[str, str]:
    """The identity of a codec, independent of its path.

    Digests of its files by name, or its name and commit on the hub (see ``core/hub.py``). Raises
    :class:`ConfigError` if ``name`` is neither.
    """
    path = root / name
    if path.is_dir():
        return digests(path)
    if path.is_file() and path.suffix in ORIGINAL:
        sizes = path.with_suffix(".json")
        return {file.suffix: sha256_file(file) for file in (path, sizes) if file.is_file()}
    if path.is_file() or not (found := HUB_NAME.fullmatch(name)):
        raise ConfigError(
            f"codec.checkpoint {path} is neither a folder nor a file that ends in one of "
            f"{ORIGINAL}, nor {name!r} a name on the hub, as HKUSTAudio/xcodec2-hf is"
        )
    return {"name": found[1], "revision": commit_of(found[1], found[2] or MAIN)}


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a codec or decoder, by file name."""
    return {file.name: sha256_file(file) for file in files_of(folder)}


def start_digests(folder: Path | None, key: str) -> dict[str, str]:
    """The digests of the folder that a training starts from; empty without one.

    Raises :class:`ConfigError`, which names the configuration key ``key``, if it does not exist.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ConfigError(f"{key}: there is no folder {folder}; name one that was published")
    return digests(folder)


def files_of(folder: Path) -> list[Path]:
    """The files of a codec. The model card is not one: editing it must not retrain anything."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name != MODEL_CARD)


def model_card(folder: Path) -> Metadata:
    """Metadata: the model card of a codec folder, if it has one."""
    card = folder / MODEL_CARD
    return {"model_card": Markdown(card.read_text())} if card.is_file() else {}


class TrainingProgram(ProgramConfig):
    """A recipe, and the published sample lists (``filtered_samples``) of its corpora by name."""

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
    """``run.json`` of ``tts_assets.codec.train``."""

    recipe: CodecRecipe


class DecoderProgram(TrainingProgram):
    """``run.json`` of ``tts_assets.codec.train_decoder``.

    The decoder decodes the codes of the folder ``codec``, whose content digest is
    ``codec_content``. ``start`` is the folder of a decoder that initializes the weights.
    """

    recipe: DecoderRecipe
    codec: Path
    codec_content: str
    start: Path | None = None


class ShardProgram(ProgramConfig):
    """``run.json`` of ``tts_assets.codec.shards``, which encodes the samples of one corpus.

    ``codec_content`` is the digest of the codec, which the shards record. ``reuse`` lists earlier
    artifacts whose codes may be reused. Neither ``reuse`` nor ``batch_tokens`` changes the bytes.
    """

    corpus: str
    samples: Path
    codec: Path
    codec_content: str
    codec_facts: CodecFacts
    shard_samples: int = Field(512, gt=0)
    batch_tokens: int = Field(BATCH_TOKENS, gt=0)
    reuse: list[Path] = Field(default_factory=list)
