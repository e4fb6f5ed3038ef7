"""Kinds of artifact that hold models, reports and promotions."""

from __future__ import annotations

from collections.abc import Set
from typing import ClassVar, Literal

from pydantic import Field

from tts_assets.core.artifacts.handle import Facts, Handle


class CheckpointFacts(Facts):
    """Facts of an SFT, RLHF or DPO checkpoint. Losses are in nats per token."""

    stage: str
    recipe: str
    steps: int
    tokens: int
    train_loss: float | None  # None for a base model that was not trained here
    val_loss: float | None = None  # of SFT
    # Of RLHF: mean over the last rollouts. Of DPO: mean margin of the implicit rewards.
    reward: float | None = None
    tokens_per_second: float | None = None  # of SFT: median over the steps
    parameters: int
    vocabulary: str
    codec: str
    sample_rate: int
    token_rate: float
    codebook_size: int


class Checkpoint(Handle):
    """A Hugging Face model folder with ``vocabulary.json`` and ``metrics.jsonl``."""

    kind, facts_type = "checkpoint", CheckpointFacts
    facts: CheckpointFacts


class Agreement(Facts):
    """Result of the comparison of a serving model with the checkpoint of the trainer.

    ``tokens`` is the number of compared tokens, ``largest_difference`` that of a log-probability.
    A token differs only if its log-probability and the best one differ by more than ``tolerance``;
    otherwise it is a tie.
    """

    prompts_equal: bool
    tokens: int
    different: int
    largest_difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether prompts and all tokens agree, with at least one token compared."""
        return (
            self.prompts_equal
            and self.tokens > 0
            and self.different == 0
            and self.largest_difference <= self.tolerance
        )


class ServingFacts(Facts):
    """Facts of a serving model. ``codec_path`` is a path on this machine."""

    recipe: str
    stage: str
    parameters: int
    vocabulary: str
    codec: str
    codec_path: str
    sample_rate: int
    token_rate: float
    codebook_size: int
    agreements: dict[str, Agreement] = Field(default_factory=dict, description="by engine")


class ServingModel(Handle):
    """A Hugging Face model folder with ``serving.json`` (codec and voices) and a model card."""

    kind, facts_type = "serving_model", ServingFacts
    facts: ServingFacts


class PreferencesFacts(Facts):
    """``asked``, prompts or voted trials, = ``pairs`` + ``set_aside``; the digest of ``codec``."""

    asked: int
    pairs: int
    set_aside: int
    codec: str


class Preferences(Handle):
    """``preferences.jsonl``, one pair of syntheses a line, and ``set_aside.jsonl``."""

    kind, facts_type = "preferences", PreferencesFacts
    facts: PreferencesFacts


class SpeakerEncoderFacts(Facts):
    """Counts of training data are 0 for an encoder that was not trained here.

    ``test_eer`` is the equal error rate on a few trials; ``speaker_report`` has all metrics.
    """

    parameters: int
    embedding: int
    speakers: int = 0
    test_speakers: int = 0
    utterances: int = 0
    test_utterances: int = 0
    set_aside: int = 0
    hours: float = 0.0
    steps: int = 0
    test_eer: float | None = None


class SpeakerEncoderCheckpoint(Handle):
    """``model.safetensors`` and ``config.json``.

    A trained encoder also has ``set_aside.jsonl``, and ``examples.json``, ``examples/`` and
    ``check.py``, which compares embeddings of the examples with the recorded ones.
    """

    kind, facts_type = "speaker_encoder", SpeakerEncoderFacts
    facts: SpeakerEncoderFacts


class SpeakerReportFacts(Facts):
    """Error rates are fractions. ``beside`` is another encoder that ran on the same trials."""

    eer: float
    min_dcf: float
    identified: float
    beside: str
    eer_beside: float | None
    speakers: int
    utterances: int
    set_aside: int
    trials: int


class SpeakerReport(Handle):
    """``report.md``, ``report.json``, ``trials.txt``, ``scores.parquet``, ``voices.parquet``,
    ``confusion.csv`` and the plots."""

    kind, facts_type = "speaker_report", SpeakerReportFacts
    facts: SpeakerReportFacts


class SpeakerPurityFacts(Facts):
    """``similarity``: mean cosine similarity of an utterance to the others of its speaker."""

    utterances: int
    set_aside: int
    outliers: int
    speakers: int
    similarity: float


class SpeakerPurity(Handle):
    """``purity.parquet``, one row per utterance with speech, and ``set_aside.jsonl``."""

    kind, facts_type = "speaker_purity", SpeakerPurityFacts
    facts: SpeakerPurityFacts


class SuiteFacts(Facts):
    """The number of texts, in all and by category."""

    texts: int
    categories: dict[str, int]


class EvaluationSuite(Handle):
    """``suite.jsonl`` with id, category and text of each utterance to synthesize, and ``wavs/``
    with the voice prompts and recordings that it refers to."""

    kind, facts_type = "evaluation_suite", SuiteFacts
    facts: SuiteFacts


class ReportFacts(Facts):
    """WER and similarity of one recipe on one suite; WER is a fraction, if measured."""

    recipe: str
    suite: str = "main"
    texts: int
    wer: float | None
    wer_by_category: dict[str, float]
    dnsmos_p808: float | None = None
    speaker_similarity: float | None = None
    metrics: dict[str, float] = Field(
        default_factory=dict,
        description="totals of all metrics; _low and _high bound 95 % intervals",
    )


class Report(Handle):
    """``report.html``, ``report.json``, ``samples.jsonl``, ``audio/`` and ``listening.ipynb``.

    With several temperatures also ``temperatures.jsonl``.
    """

    kind, facts_type = "report", ReportFacts
    facts: ReportFacts


class ExternalModelFacts(Facts):
    """``losses`` are the last ones of its trainer under coqui's names; ``hours`` of training
    clips."""

    family: str
    recipe: str
    steps: int
    train_samples: int
    val_samples: int
    set_aside: int
    hours: float
    parameters: int
    losses: dict[str, float] = Field(default_factory=dict)


class ExternalModel(Handle):
    """A model trained by coqui-tts: ``config.json``, safetensors, ``metrics.jsonl`` and
    ``set_aside.jsonl``; ``voices/`` if it clones voices."""

    kind, facts_type = "family_model", ExternalModelFacts
    facts: ExternalModelFacts


class SynthesizedSuiteFacts(Facts):
    """``silent`` counts those of ``syntheses`` without speech."""

    recipe: str
    suite: str
    texts: int
    syntheses: int
    silent: int


class SynthesizedSuite(Handle):
    """``spoken.jsonl`` and ``audio/``: a suite synthesized by an external model."""

    kind, facts_type = "spoken", SynthesizedSuiteFacts
    facts: SynthesizedSuiteFacts


class ExternalModelsFacts(Facts):
    """The number of recipes in the table, and of those trained and reported."""

    recipes: int
    trained: int
    reported: int


class ExternalModelsTable(Handle):
    """``families.md`` and ``families.json``: one row per recipe, of the project and external."""

    kind, facts_type = "families_table", ExternalModelsFacts
    facts: ExternalModelsFacts


class ComparisonFacts(Facts):
    """``baseline`` is the first model, ``candidate`` the last. WERs are fractions, if measured."""

    folded: ClassVar[Set[str]] = {"baseline", "candidate", "ci_low", "ci_high"}

    baseline: str
    candidate: str
    wer_baseline: float | None = None
    wer_candidate: float | None = None
    wer_difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


class Comparison(Handle):
    """``comparison.html``, ``comparison.json``, ``summary.md`` and ``listening.ipynb`` of two or
    more models; ``blind.html``, a blind test, and ``blind_key.json``, which maps its trials to
    models."""

    kind, facts_type = "comparison", ComparisonFacts
    facts: ComparisonFacts


class TrainingEffectFacts(Facts):
    """The figures of a voice that training made better and worse, over all steps and suites."""

    folded: ClassVar[Set[str]] = {"voice"}

    voice: str
    better: int
    worse: int


class TrainingEffect(Handle):
    """``effect.html``, ``effect.json`` and ``summary.md``: models of a voice and their bases."""

    kind, facts_type = "training_effect", TrainingEffectFacts
    facts: TrainingEffectFacts


PromotionEvent = Literal["first", "promoted", "by hand", "rolled back"]


class PromotedFacts(Facts):
    """One promotion. ``model`` is the content digest of the promoted serving model, ``when`` in
    UTC.

    ``previous`` is the fingerprint of the promotion before, ``left`` the content digest of the
    model that a rollback replaced.
    """

    folded: ClassVar[Set[str]] = {"voice", "model", "previous", "left"}

    voice: str
    recipe: str
    model: str
    event: PromotionEvent
    why: str
    previous: str | None
    left: str | None = None
    when: str


class Promoted(Handle):
    """The promoted model of a voice: the folder of a serving model, and ``promotion.json``."""

    kind, facts_type = "promoted", PromotedFacts
    facts: PromotedFacts
