"""Configuration of supervised fine-tuning (SFT).

:class:`SftRecipe` is the table ``[sft.<name>]``, the classes before it are its sub-tables.
:class:`SftProgram` is the file that ``python -m tts_assets.sft.train`` reads. Invalid settings are
rejected on load. The message says how to fix them.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from tts_assets.core.config import Config, ConfigError
from tts_assets.core.program import ProgramConfig
from tts_assets.speechlm.config import (
    BaseModel,
    VocabularyConfig,
    identified,
    phonemes_of_base,
    with_commit,
)

FORGOTTEN = "val_forgotten"  # metric: 1 in a validation at which a source was forgotten
TRANSCRIPTS = "text"  # the source name of the corpora's transcripts in pretraining
# Settings that change how a recipe is trained, but not the weights: a run may resume with others.
EXECUTION: Mapping[str, Any] = {
    "strategy": True,
    "checkpoints": {"keep_last", "keep_every"},  # not best, which selects the published weights
    "save_every": True,
    "gradient_checkpointing": True,
    "compile": True,
}
# Settings of the generated samples. They change files of the result, but not the weights.
SAMPLING: Mapping[str, Any] = {"sample_texts": True, "sample_every": True}


StrategyName = Literal["ddp", "fsdp", "zero2", "zero3"]
DEEPSPEED: tuple[StrategyName, ...] = ("zero2", "zero3")


class Concatenation(Config):
    """``[sft.<name>.concatenate]``: join random utterances of one speaker into one sample.

    Texts and codes are concatenated, in other groups in each epoch. Every utterance comes once an
    epoch (times the weight of its corpus), in groups of 1 to ``max_utterances`` utterances and at
    most ``max_seconds`` seconds.

    ``short_share`` of all samples are additional groups of 1 to ``max_short`` random utterances of
    at most ``short_seconds``, drawn with replacement. They teach a model with little data to
    combine known words in any order. ``repeat_share`` of the utterances in such a group repeat an
    earlier one of the group, because repetitions are rare by chance.

    Both maxima grow from 1 to their full size in the first ``grow_epochs`` epochs. A model from
    scratch first learns the sound of single words, then to find its position among several. With
    long groups from the start it over-fits to the recordings and ignores the text
    (``benchmarks/reading.md``).
    """

    max_utterances: int = Field(4, ge=1)
    max_seconds: float = Field(12.0, gt=0)
    short_share: float = Field(0.0, ge=0, lt=1)
    short_seconds: float = Field(1.5, gt=0)
    max_short: int = Field(8, ge=1)
    repeat_share: float = Field(0.0, ge=0, le=1)
    grow_epochs: int = Field(0, ge=0)

    def in_epoch(self, epoch: int) -> Concatenation:
        """The configuration with the maxima of this epoch, counted from 0."""
        if epoch >= self.grow_epochs:
            return self
        share = epoch / self.grow_epochs
        grown = {
            name: 1 + int(share * (getattr(self, name) - 1))
            for name in ("max_utterances", "max_short")
        }
        return self.model_copy(update=grown)


class Pretraining(Config):
    """``[sft.<name>.pretraining]``: train on windows of token streams, with a loss on every token.

    A window has ``max_seq_len`` tokens. The weights of ``corpora`` are epochs of speech.
    ``text_share`` of all tokens come from windows of text: the transcripts of the corpora, and
    ``texts`` in proportion to their weights.
    """

    text_share: float = Field(0.1, ge=0, lt=1)


class OptimizerConfig(Config):
    """``[sft.<name>.optimizer]``: AdamW, or Muon for the layers' matrices and AdamW for the rest.

    ``adamw_8bit`` has moments of 8 bits, which GPUs page to the memory of the host (bitsandbytes).
    The steps of Muon are scaled to the RMS of AdamW's steps, so one ``lr`` fits both. Weight decay
    applies to the matrices of the layers only. The schedule ``wsd`` (warm-up, stable, decay)
    decays in the last fifth of the steps.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"share_codes"})
    removed_keys: ClassVar[Mapping[str, Any]] = {"betas": [0.9, 0.95], "decay_share": 0.2}

    name: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup_share: float = Field(0.05, ge=0, lt=1, description="of all steps")
    final_share: float = Field(0.1, ge=0, le=1, description="last lr / peak lr")
    share_codes: bool = Field(
        False,
        description="codes of an FSQ codec with equal levels train their embeddings together: a "
        "model from scratch learns from fewer hours (docs/reading.md)",
    )


class Lora(Config):
    """``[sft.<name>.lora]``: low-rank adapters beside frozen matrices (Hu et al. 2022, LoRA).

    An adapter of ``rank`` adds ``alpha / rank`` times the product of its matrices. The published
    model has the adapters merged. ``targets`` are names such as ``q_proj``; empty: every linear
    layer except the output matrix. ``embeddings`` also trains the embedding tables. This is
    required where the base has no speech vocabulary yet. With ``four_bit`` the frozen matrices are
    NF4 (Dettmers et al. 2023, QLoRA); the published model has these rounded matrices. ``adapter``
    also publishes the adapters, for a server with many voices.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"four_bit", "adapter"})

    rank: int = Field(16, gt=0, le=512, description="vLLM serves adapters up to 512")
    alpha: int = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="of the inputs of the adapters")
    targets: tuple[str, ...] = ()
    embeddings: bool = False
    four_bit: bool = False
    adapter: bool = False

    @model_validator(mode="after")
    def _complete_adapter(self) -> Self:
        if self.adapter and (self.embeddings or self.four_bit):
            raise ValueError(
                "an adapter is served beside the base as it is: leave out lora.embeddings and "
                "lora.four_bit, or lora.adapter"
            )
        return self


class CheckpointConfig(Config):
    """``[sft.<name>.checkpoints]``: which checkpoints for a restart are kept.

    The newest ``keep_last`` are kept, and one every ``keep_every`` steps. ``best`` is the metric
    that selects the best weights: ``val_loss``, the loss of one corpus ``val_loss/<corpus>``, or a
    part of the loss such as ``val_speech_loss``.
    """

    keep_last: int = Field(2, ge=1)
    keep_every: int | None = Field(None, gt=0)
    best: str = "val_loss"


class GuardConfig(Config):
    """``[sft.<name>.guards]``: when a run ends before its last step (``sft/monitoring.py``).

    ``patience`` is the number of validations without an improvement of ``checkpoints.best``.
    ``forgetting`` is the relative rise that the validation loss of a source may have over its value
    before training: 0.1 allows 10 %.
    """

    patience: int | None = Field(None, ge=1)
    forgetting: float | None = Field(None, gt=0)
    on_forgetting: Literal["stop", "lower"] = Field(
        "stop", description="lower: continue at half the learning rate"
    )


class SftRecipe(Config):
    """``[sft.<name>]``: the base model, the data, and the length of a training.

    Give ``steps`` or ``epochs``. ``corpora`` maps names to epochs: with 1.5 an epoch has every
    utterance once and a random half of them twice. ``texts`` does the same for the sources of
    ``[texts]``; their answers are trained on. ``batch_tokens`` counts the tokens of one optimizer
    step over all ranks, ``micro_tokens`` limits one forward pass of one rank.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"eval_samples"})
    renamed_keys: ClassVar[Mapping[str, str]] = {
        "listen": "sample_texts",
        "listen_every": "sample_every",
    }

    base: BaseModel
    corpora: dict[str, float] = Field(min_length=1)
    texts: dict[str, float] = Field(default_factory=dict)
    pretraining: Pretraining | None = None
    vocabulary: VocabularyConfig = VocabularyConfig()
    lora: Lora | None = None
    steps: int | None = Field(
        None, ge=0, description="0: publish the base as it is, as a baseline for comparisons"
    )
    epochs: float | None = Field(None, gt=0)
    batch_tokens: int = Field(8192, gt=0)
    micro_tokens: int = Field(4096, gt=0)
    max_seq_len: int = Field(2048, gt=0)
    concatenate: Concatenation | None = None
    code_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="largest share of a sample's input codes that are replaced by padding, so that "
        "the model must use the text; each sample draws its share",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of the attention weights")
    text_loss_weight: float = Field(
        0.0, ge=0, description="loss: the mean over speech plus this times the mean over text"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the hardware multiplies it natively, else fp32"
    )
    strategy: StrategyName = Field(
        "ddp",
        description="ddp: model and optimizer on every rank; fsdp (FSDP2): all sharded; zero2, "
        "zero3 (DeepSpeed): gradients and optimizer sharded, with zero3 also the weights",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute the activations of layers in the backward pass: less memory"
    )
    compile: bool = Field(False, description="layers through torch.compile; needs a compiler")
    checkpoints: CheckpointConfig = CheckpointConfig()
    guards: GuardConfig | None = None
    eval_every: int = Field(300, gt=0, description="steps between two validations")
    eval_samples: int = Field(
        2000, gt=0, description="most samples of a validation, the same each time (seed)"
    )
    save_every: int = Field(1000, gt=0, description="steps between two checkpoints for a restart")
    sample_texts: int = Field(
        4, ge=0, description="validation texts that are synthesized during training"
    )
    sample_every: int = Field(1000, gt=0, description="steps between two syntheses")
    export: Literal["best", "last"] = Field(
        "best",
        description="weights to publish: of the lowest validation loss, or of the last step "
        "(docs/training.md says which to choose)",
    )
    seed: int = Field(777, ge=0)

    @field_validator("strategy", mode="before")
    @classmethod
    def _refuse_former_table(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            name = value.get("name", "ddp")
            now = f"zero{value.get('zero_stage') or 2}" if name == "deepspeed" else name
            raise ValueError(f"this is no longer a table: write strategy = {now!r}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.max_seq_len > self.micro_tokens:
            raise ValueError(
                f"max_seq_len {self.max_seq_len} does not fit into micro_tokens "
                f"{self.micro_tokens}: raise micro_tokens or lower max_seq_len"
            )
        llama = self.base.llama
        if llama is not None and llama.max_positions < self.max_seq_len:
            raise ValueError(
                f"max_seq_len {self.max_seq_len} is above base.llama.max_positions "
                f"{llama.max_positions}"
            )
        weights = {"corpora": self.corpora, "texts": self.texts}
        for what, named in weights.items():
            bad = [name for name, weight in named.items() if weight <= 0]
            if bad:
                raise ValueError(f"{what} {bad} have no positive weight: leave them out")
        return self

    @property
    def sources(self) -> list[str]:
        """The sources that losses are reported for: the speech of each corpus, then texts."""
        mixed = self.pretraining is not None and self.pretraining.text_share > 0
        return [*self.corpora, *([TRANSCRIPTS] if mixed else []), *self.texts]

    @model_validator(mode="after")
    def _fitting_sources(self) -> Self:
        twice = sorted({name for name in self.sources if self.sources.count(name) > 1})
        if twice:
            raise ValueError(
                f"losses are reported by source, and {twice} would name two: rename one"
            )
        if self.pretraining is None:
            return self
        if self.concatenate is not None or self.code_dropout:
            raise ValueError(
                "pretraining cuts windows from streams of utterances, and no text precedes its "
                "speech: leave out concatenate and code_dropout"
            )
        if self.text_loss_weight:
            raise ValueError(
                "in pretraining every token of a text counts as much as one of speech: leave out "
                "text_loss_weight, and set pretraining.text_share"
            )
        if self.texts and not self.pretraining.text_share:
            raise ValueError("pretraining.text_share = 0 leaves no room for texts: raise it")
        return self

    @model_validator(mode="after")
    def _fitting_strategy(self) -> Self:
        name = self.strategy
        if self.optimizer.name == "muon" and name != "ddp":
            raise ValueError(
                f"muon needs whole matrices, and {name} gives a rank a part of each: write "
                "optimizer.name = 'adamw' or strategy = 'ddp'"
            )
        if self.optimizer.share_codes and (
            name != "ddp" or self.lora is not None or self.optimizer.name == "adamw_8bit"
        ):
            raise ValueError(
                "optimizer.share_codes trains whole embedding tables: write strategy = 'ddp' "
                "and optimizer.name = 'muon' or 'adamw', and leave lora out"
            )
        four_bit = self.lora is not None and self.lora.four_bit
        if (four_bit or self.optimizer.name == "adamw_8bit") and (name != "ddp" or self.compile):
            raise ValueError(
                "tensors of lora.four_bit and optimizer.name = 'adamw_8bit' are neither sharded "
                "nor compiled: write strategy = 'ddp' and leave compile out"
            )
        if self.compile and name in DEEPSPEED:
            raise ValueError("compile goes with strategy = 'ddp' or 'fsdp'")
        return self

    @model_validator(mode="after")
    def _fitting_lora(self) -> Self:
        if self.lora is None:
            return self
        if self.steps == 0:
            raise ValueError("steps = 0 publishes the base as it is: leave lora out")
        if self.base.llama is not None:
            raise ValueError(
                "lora adapts a trained model, and base.llama is none: write base.hub or "
                "base.recipe, or leave lora out"
            )
        if self.optimizer.name == "muon":
            raise ValueError(
                "muon makes steps of full rank for both matrices of an adapter: write "
                "optimizer.name = 'adamw'"
            )
        return self

    @model_validator(mode="after")
    def _fitting_checkpoints(self) -> Self:
        every, best = self.checkpoints.keep_every, self.checkpoints.best
        if every is not None and every % self.save_every:
            raise ValueError(
                f"checkpoints.keep_every {every} is no multiple of save_every {self.save_every}"
            )
        known = ["val_loss", *(f"val_loss/{name}" for name in self.sources)]
        known += ["val_speech_loss", "val_text_loss"] if self.text_loss_weight else []
        if best not in known:
            raise ValueError(f"checkpoints.best {best!r} is no metric of this recipe: {known}")
        return self

    def identified(self) -> SftRecipe:
        """The recipe with the digest of its files as the name of a base that is a folder.

        Other files in the same folder are then another base.
        """
        return self.model_copy(update={"base": identified(self.base)})

    def with_commit(self) -> SftRecipe:
        """The recipe for the program: a base on the hub has its commit."""
        return self.model_copy(update={"base": with_commit(self.base)})

    def what(self) -> dict[str, Any]:
        """Everything that determines the weights. A checkpoint is resumed only if it is equal."""
        return self.canonical(exclude={**EXECUTION, **SAMPLING})

    def determining(self) -> dict[str, Any]:
        """Everything that determines the bytes of a result, for its fingerprint."""
        return self.canonical(exclude=EXECUTION)


class SftProgram(ProgramConfig):
    """``tts_assets.sft.train``: trains one recipe on published code arrays.

    ``base_checkpoint`` is the folder of the recipe that ``base.recipe`` names. ``codec`` is the
    content digest of the codec that made all arrays, ``codec_folder`` its folder, which
    ``sample_texts`` needs. ``tokens`` are the ``token_arrays`` of corpora that have them. In
    fine-tuning they save the tokenization and change no result; pretraining reads its streams
    there. ``texts`` are the folders of the recipe's texts, ``lexicon`` is that of ``[text]``.
    ``token_rate`` is in codes a second, ``sample_rate`` in Hz. ``frame`` is that of the codec
    (``CodecFacts``).
    """

    name: str
    recipe: SftRecipe
    lexicon: dict[str, str] = Field(default_factory=dict)
    arrays: dict[str, Path]
    tokens: dict[str, Path] = Field(default_factory=dict)
    texts: dict[str, Path] = Field(default_factory=dict)
    base_checkpoint: Path | None = None
    codec: str
    codec_folder: Path | None = None
    sample_rate: int
    token_rate: float
    codebook_size: int
    frame: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = sorted(set(self.recipe.corpora) - set(self.arrays))
        if missing:
            raise ValueError(f"no code arrays given for corpora {missing} of the recipe")
        missing = sorted(set(self.recipe.corpora) - set(self.tokens))
        if self.recipe.pretraining is not None and missing:
            raise ValueError(f"pretraining reads token_arrays; none given for corpora {missing}")
        missing = sorted(set(self.recipe.texts) - set(self.texts))
        if missing:
            raise ValueError(f"no folder given for texts {missing} of the recipe")
        if (self.recipe.base.recipe is None) != (self.base_checkpoint is None):
            raise ValueError("base_checkpoint goes with a recipe whose base is another recipe")
        if self.recipe.sample_texts and self.codec_folder is None:
            raise ValueError(
                "sample_texts needs the codec: give codec_folder, or write sample_texts = 0"
            )
        return self


def check_phonemes(recipes: Mapping[str, tuple[SftRecipe, Set[str]]]) -> None:
    """Raise :class:`ConfigError` if a base reads phonemes of another language than its corpora.

    Each recipe comes with the languages of its speech, such as {"en"}.
    """
    for name, (recipe, spoken) in recipes.items():
        language = phonemes_of_base(recipe.base, recipe.vocabulary)
        others = sorted(spoken - {language.split("-")[0].lower()}) if language else []
        if others:
            raise ConfigError(
                f"sft.{name}: its base reads phonemes of {language!r}, but its corpora have speech "
                f"in {', '.join(others)}: take a base of that language, or one from scratch as the "
                "preset scratch-cpu"
            )
