"""The tables of a recipe, ``[sft.<name>.<table>]``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tts_assets.config import Config


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
