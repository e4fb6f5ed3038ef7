"""Configurations of supervised fine-tuning: a recipe, and the program that trains it.

The tables of a recipe, ``[sft.<name>.<table>]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.speechlm.config import BaseModel, VocabularyConfig, identified

FORGOTTEN = "val_forgotten"  # 1 in the metrics of a validation at which a source was forgotten


class Concatenation(Config):
    """Join random utterances of one speaker, texts and codes, into one sample.

    Each epoch joins others. Every utterance still comes once an epoch (times its corpus' weight),
    in groups of 1 to ``max_utterances``. ``short_share`` of all samples are added to that: groups
    of 1 to ``max_short`` random utterances of at most ``short_seconds``, drawn with replacement.
    They teach a model with little data to say known words in any order; ``repeat_share`` of the
    words in them repeat an earlier one of the group, since few would by chance.

    Both maxima grow from 1 to their full size in the first ``grow_epochs`` epochs. A model from
    scratch learns what a word sounds like from single words, then to find its place among
    several; given long groups at once it learns the recordings by heart instead and does not look
    at the text (``benchmarks/reading.md``).
    """

    max_utterances: int = Field(4, ge=1)
    max_seconds: float = Field(12.0, gt=0)
    short_share: float = Field(0.0, ge=0, lt=1)
    short_seconds: float = Field(1.5, gt=0)
    max_short: int = Field(8, ge=1)
    repeat_share: float = Field(0.0, ge=0, le=1)
    grow_epochs: int = Field(0, ge=0)

    def in_epoch(self, epoch: int) -> Concatenation:
        """The same with the maxima of this epoch, counted from 0."""
        if epoch >= self.grow_epochs:
            return self
        share = epoch / self.grow_epochs
        grown = {
            name: 1 + int(share * (getattr(self, name) - 1))
            for name in ("max_utterances", "max_short")
        }
        return self.model_copy(update=grown)


class Pretraining(Config):
    """``[sft.<name>.pretraining]``: windows of token streams, and a loss on every token.

    The windows are ``max_seq_len`` tokens of the speech of ``corpora``, whose weights are epochs,
    and ``text_share`` of all tokens are from windows of text: transcripts of the corpora, and
    ``texts``, by the weight of each.
    """

    text_share: float = Field(0.1, ge=0, lt=1)


class OptimizerConfig(Config):
    """AdamW, or Muon for the matrices of the layers and AdamW for all else.

    Muon's steps are scaled to the RMS of AdamW's, so that one ``lr`` fits both. Weight decay acts
    on matrices only.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup_share: float = Field(0.05, ge=0, lt=1, description="of all steps")
    final_share: float = Field(0.1, ge=0, le=1, description="last lr / peak lr")
    decay_share: float = Field(0.2, gt=0, le=1, description="wsd: part of all steps that decays")


class Lora(Config):
    """Adapters of ``rank`` beside frozen matrices, which they change by ``alpha / rank`` times
    their product; the published model has them merged.

    ``targets`` are names such as ``q_proj``; none: every linear layer but the output matrix.
    ``embeddings`` trains the embedding tables, too, as it must where a base gets its speech
    vocabulary.
    """

    rank: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="of what the adapters are given")
    targets: tuple[str, ...] = ()
    embeddings: bool = False


class StrategyConfig(Config):
    """How ranks share the work of one model; with one rank there is nothing to share.

    ``ddp`` keeps model and optimizer on every rank. ``fsdp`` (FSDP2) shares out weights, gradients
    and optimizer. ``deepspeed`` shares out gradients and optimizer (``zero_stage`` 2, the default)
    or the weights, too (3).
    """

    name: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    zero_stage: Literal[2, 3] | None = None

    @model_validator(mode="after")
    def _stage_of_deepspeed(self) -> Self:
        if self.zero_stage is not None and self.name != "deepspeed":
            raise ValueError(f"zero_stage goes with name = 'deepspeed', not with {self.name!r}")
        return self


class CheckpointConfig(Config):
    """Which checkpoints for a restart stay: the newest, and one every ``keep_every`` steps.

    ``best`` is the metric by which the best weights are kept: ``val_loss``, that of one corpus,
    ``val_loss/<corpus>``, or a part of it, ``val_speech_loss``.
    """

    keep_last: int = Field(2, ge=1)
    keep_every: int | None = Field(None, gt=0)
    best: str = "val_loss"


class GuardConfig(Config):
    """``[sft.<name>.guards]``: when a run ends before its last step (``guards.py``).

    ``patience``: validations without a better ``checkpoints.best``. ``forgetting``: the share by
    which a source's validation loss may rise above that before training.
    """

    patience: int | None = Field(None, ge=1)
    forgetting: float | None = Field(None, gt=0)
    on_forgetting: Literal["stop", "lower"] = Field(
        "stop", description="lower: go on at half the learning rate"
    )


TRANSCRIPTS = "text"  # the source of the corpora's texts, in pretraining
# A recipe continues under another of these: they change how fast it trains, not what.
HOW: Mapping[str, Any] = {
    "strategy": True,
    "checkpoints": {"keep_last", "keep_every"},  # but best decides which weights are published
    "save_every": True,
    "gradient_checkpointing": True,
    "compile": True,
}
# These change no weights, but what of them is heard beside them.
HEARD: Mapping[str, Any] = {"listen": True, "listen_every": True}


class SftRecipe(Config):
    """``[sft.<name>]``: what is trained, on what, and how long. Give ``steps`` or ``epochs``.

    ``corpora`` maps names to epochs: 1.5 sees every utterance once and a random half of them
    twice, another half in the next epoch. ``texts`` does the same for sources of ``[texts]``, of
    which the answers are learnt. ``batch_tokens`` are those of one optimizer step over all ranks;
    ``micro_tokens`` bound one forward pass of one rank.
    """

    base: BaseModel
    corpora: dict[str, float] = Field(min_length=1)
    texts: dict[str, float] = Field(default_factory=dict)
    pretraining: Pretraining | None = None
    vocabulary: VocabularyConfig = VocabularyConfig()
    lora: Lora | None = None
    steps: int | None = Field(
        None, ge=0, description="0: the base as it is, to be compared with what was trained from it"
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
        description="largest share of a sample's input codes that are hidden, so that the text "
        "must tell what comes next; each sample draws its own share",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of the attention weights")
    text_loss_weight: float = Field(
        0.0,
        ge=0,
        description="the loss is the mean over speech tokens plus this times the mean over the "
        "tokens of the texts",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the processor multiplies it natively, else fp32"
    )
    strategy: StrategyConfig = StrategyConfig()
    gradient_checkpointing: bool = Field(
        False, description="keep no activations inside layers, compute them again: less memory"
    )
    compile: bool = Field(False, description="layers through torch.compile; needs a compiler")
    checkpoints: CheckpointConfig = CheckpointConfig()
    guards: GuardConfig | None = None
    eval_every: int = Field(300, gt=0, description="steps between two validations")
    save_every: int = Field(1000, gt=0, description="steps between two checkpoints for a restart")
    listen: int = Field(4, ge=0, description="validation texts that the model speaks on the way")
    listen_every: int = Field(1000, gt=0, description="steps between two times that it speaks")
    export: Literal["best", "last"] = Field(
        "best", description="weights to publish: those of the lowest validation loss, or the last"
    )
    seed: int = Field(777, ge=0)

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
        """What losses are told apart by: the speech of each corpus, then texts."""
        mixed = self.pretraining is not None and self.pretraining.text_share > 0
        return [*self.corpora, *([TRANSCRIPTS] if mixed else []), *self.texts]

    @model_validator(mode="after")
    def _fitting_sources(self) -> Self:
        twice = sorted({name for name in self.sources if self.sources.count(name) > 1})
        if twice:
            raise ValueError(f"losses are told by source, and {twice} would name two: rename one")
        if self.pretraining is None:
            return self
        if self.concatenate is not None or self.code_dropout:
            raise ValueError(
                "pretraining cuts windows from streams, in which utterances follow each other "
                "anyhow and no text comes before its speech: leave out concatenate and "
                "code_dropout"
            )
        if self.text_loss_weight:
            raise ValueError(
                "in pretraining every token of a text counts as much as one of speech: leave out "
                "text_loss_weight, and set pretraining.text_share"
            )
        if self.texts and not self.pretraining.text_share:
            raise ValueError(
                "pretraining.text_share = 0 leaves no room for texts: raise it, or leave out texts"
            )
        return self

    @model_validator(mode="after")
    def _fitting_strategy(self) -> Self:
        name = self.strategy.name
        if self.optimizer.name == "muon" and name != "ddp":
            raise ValueError(
                f"muon turns whole matrices, and {name} gives a rank a part of each: write "
                "optimizer.name = 'adamw' or strategy.name = 'ddp'"
            )
        if self.compile and name == "deepspeed":
            raise ValueError("compile goes with strategy.name = 'ddp' or 'fsdp'")
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
                "muon would give both matrices of an adapter steps of full rank: write "
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
        """The same with a base that is a folder named by its files: others in the same place are
        another base."""
        return self.model_copy(update={"base": identified(self.base)})

    def what(self) -> dict[str, Any]:
        """All that determines the weights, for the comparison with a checkpoint's recipe."""
        return self.model_dump(mode="json", exclude={**HOW, **HEARD})

    def determining(self) -> dict[str, Any]:
        """All that determines the bytes of a result, for its fingerprint."""
        return self.model_dump(mode="json", exclude={**HOW})


class SftProgram(ProgramConfig):
    """``tts_assets.sft.train``: one recipe on published code arrays.

    ``base_checkpoint`` is the folder of the recipe that ``base.recipe`` names. ``codec`` is the
    content digest of the codec that made all arrays. ``tokens`` are the ``token_arrays`` of
    corpora that have them: for fine-tuning they change no result, the texts need not be tokenized
    again; pretraining reads its streams there. ``texts`` are folders of the recipe's texts.
    ``codec_folder`` is that codec, for ``listen``.
    """

    name: str
    recipe: SftRecipe
    arrays: dict[str, Path]
    tokens: dict[str, Path] = Field(default_factory=dict)
    texts: dict[str, Path] = Field(default_factory=dict)
    base_checkpoint: Path | None = None
    codec: str
    codec_folder: Path | None = None
    sample_rate: int
    token_rate: float
    codebook_size: int

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
        if self.recipe.listen and self.codec_folder is None:
            raise ValueError("listen needs the codec: give codec_folder, or write listen = 0")
        return self
