"""Kinds of artifact that hold models, reports and promotions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tts_assets.core.artifacts.handle import Facts, Handle


class CheckpointFacts(Facts):
    stage: str
    recipe: str
    steps: int
    tokens: int
    train_loss: float | None  # none of a base that was not trained
    val_loss: float | None = None  # of SFT
    reward: float | None = None  # of RLHF: the mean over the last rollouts
    tokens_per_second: float | None = None  # of SFT, the median over the steps
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
    """What comparing a serving model with the trainer's checkpoint gave.

    ``tokens`` compared, how many differ, and the largest difference of a log-probability. A token
    that differs where the two best are closer than ``tolerance`` is a tie, not counted.
    """

    prompts_equal: bool
    tokens: int
    different: int
    largest_difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return (
            self.prompts_equal
            and self.tokens > 0
            and self.different == 0
            and self.largest_difference <= self.tolerance
        )


class ServingFacts(Facts):
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
    """A Hugging Face model folder with ``serving.json`` (codec, voices) and a model card."""

    kind, facts_type = "serving_model", ServingFacts
    facts: ServingFacts


class SpeakerEncoderFacts(Facts):
    """What it was trained on is 0 where it was not trained here; ``test_eer`` is of a few trials,
    the ``speaker_report`` has the rest."""

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
    """``model.safetensors`` and ``config.json``; of a trained one ``examples.json``, ``examples/``
    and ``check.py``, which compares, and ``set_aside.jsonl``."""

    kind, facts_type = "speaker_encoder", SpeakerEncoderFacts
    facts: SpeakerEncoderFacts


class SpeakerReportFacts(Facts):
    """Errors are fractions; ``beside`` names the encoder that the same trials were given."""

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
    ``confusion.csv`` and the pictures."""

    kind, facts_type = "speaker_report", SpeakerReportFacts
    facts: SpeakerReportFacts


class SpeakerPurityFacts(Facts):
    """``similarity``: the mean of each utterance's to its speaker's others."""

    utterances: int
    set_aside: int
    outliers: int
    speakers: int
    similarity: float


class SpeakerPurity(Handle):
    """``purity.parquet``, a row an utterance with speech, and ``set_aside.jsonl``."""

    kind, facts_type = "speaker_purity", SpeakerPurityFacts
    facts: SpeakerPurityFacts


class SuiteFacts(Facts):
    texts: int
    categories: dict[str, int]


class EvaluationSuite(Handle):
    """``suite.jsonl``: id, category and text of everything a model is asked to say; ``wavs/``:
    voice prompts and recordings that it names."""

    kind, facts_type = "evaluation_suite", SuiteFacts
    facts: SuiteFacts


class ReportFacts(Facts):
    recipe: str
    suite: str = "main"
    texts: int
    wer: float
    wer_by_category: dict[str, float]
    dnsmos_p808: float | None = None
    speaker_similarity: float | None = None
    metrics: dict[str, float] = Field(
        default_factory=dict, description="every total, with _low and _high of its 95 % interval"
    )


class Report(Handle):
    """``report.html``, ``report.json``, ``samples.jsonl``, ``audio/``, ``listening.ipynb``; with
    other temperatures ``temperatures.jsonl``."""

    kind, facts_type = "report", ReportFacts
    facts: ReportFacts


class ExternalModelFacts(Facts):
    """``losses``: the last that its trainer told, by coqui's names; ``hours`` of training clips."""

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
    """A model of another family: ``config.json`` and safetensors, ``metrics.jsonl``,
    ``set_aside.jsonl``; where it clones, ``voices/``."""

    kind, facts_type = "family_model", ExternalModelFacts
    facts: ExternalModelFacts


class SynthesizedSuiteFacts(Facts):
    """``silent``: of all ``syntheses`` those in which nothing was said."""

    recipe: str
    suite: str
    texts: int
    syntheses: int
    silent: int


class SynthesizedSuite(Handle):
    """``spoken.jsonl`` and ``audio/``: a suite as a model of another family says it."""

    kind, facts_type = "spoken", SynthesizedSuiteFacts
    facts: SynthesizedSuiteFacts


class ExternalModelsFacts(Facts):
    recipes: int
    trained: int
    reported: int


class ExternalModelsTable(Handle):
    """``families.md`` and ``families.json``: a row a recipe of any family."""

    kind, facts_type = "families_table", ExternalModelsFacts
    facts: ExternalModelsFacts


class ComparisonFacts(Facts):
    """``baseline`` is the first of the models, ``candidate`` the last."""

    baseline: str
    candidate: str
    wer_baseline: float
    wer_candidate: float
    wer_difference: float
    ci_low: float
    ci_high: float


class Comparison(Handle):
    """``comparison.html``, ``comparison.json``, ``summary.md`` and ``listening.ipynb`` of two
    models or more; ``blind.html``, a blind test of them, and ``blind_key.json``, who is who in
    it."""

    kind, facts_type = "comparison", ComparisonFacts
    facts: ComparisonFacts


PromotionEvent = Literal["first", "promoted", "by hand", "rolled back"]


class PromotedFacts(Facts):
    """``model``: content of the serving model that serves since ``when`` (UTC); ``previous``: the
    fingerprint of the change before; ``left``: content of the model that was rolled back from."""

    voice: str
    recipe: str
    model: str
    event: PromotionEvent
    why: str
    previous: str | None
    left: str | None = None
    when: str


class Promoted(Handle):
    """A serving model's folder with ``promotion.json``: what speaks for a voice."""

    kind, facts_type = "promoted", PromotedFacts
    facts: PromotedFacts
