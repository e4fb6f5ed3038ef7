"""The kinds of artifact, in the order of the graph: what lies in each, and its facts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tts_assets.artifacts.handle import Facts, Handle


class CorpusFacts(Facts):
    corpus: str
    root: str
    audio_pool: str
    language: str
    licence: str
    utterances: int
    set_aside: int
    hours: float
    speakers: int


class RawCorpusFacts(CorpusFacts):
    entries: int = Field(description="what the reader found: utterances and set aside")


class RawCorpus(Handle):
    """``utterances.parquet`` (a row an utterance), ``set_aside.jsonl``."""

    kind, facts_type = "raw_corpus", RawCorpusFacts
    facts: RawCorpusFacts


class SegmentFacts(CorpusFacts):
    """``seconds``: of all recordings, in clips (``kept``) and by the reason why not."""

    recordings: int
    recorded_hours: float
    seconds: dict[str, float] = Field(default_factory=dict)


class SpeechSegments(Handle):
    """``utterances.parquet``, ``set_aside.jsonl``: of long recordings their clips, with
    ``spans.parquet``, ``card.md`` and ``listening.ipynb``; of a corpus of utterances those of its
    ``raw_corpus`` as they are."""

    kind, facts_type = "speech_segments", SegmentFacts
    facts: SegmentFacts


class SampleFacts(Facts):
    corpus: str
    samples_in: int
    kept: int
    rejected: int
    reasons: dict[str, int]
    hours: float
    speakers: int
    normalizer: str = "num2words"


class SampleManifest(Handle):
    """``kept.jsonl``, ``rejected.jsonl`` (sample schema), ``listening.ipynb``."""

    kind, facts_type = "filtered_samples", SampleFacts
    facts: SampleFacts


class CodecFacts(Facts):
    sample_rate: int
    hop_length: int
    token_rate: float
    codebook_size: int
    parameters: int
    perplexity: float | None = Field(None, description="of the codes of the last steps' training")
    dead_codes: int | None = Field(None, description="that did not occur in them")


class CodecCheckpoint(Handle):
    """``config.json`` and ``model.safetensors`` of a neural speech codec, with its recipe."""

    kind, facts_type = "codec", CodecFacts
    facts: CodecFacts


class DecoderFacts(Facts):
    """``codec``: content digest of the codec whose codes it decodes."""

    codec: str
    sample_rate: int
    hop_length: int = Field(description="samples of one code")
    token_rate: float
    codebook_size: int
    parameters: int


class CodecDecoder(Handle):
    """``model.safetensors``, ``config.json`` and ``model_config.json`` of a decoder, with its
    recipe."""

    kind, facts_type = "codec_decoder", DecoderFacts
    facts: DecoderFacts


class CodecReportFacts(Facts):
    """Of one codec, means over the clips; ``cents`` and ``voicing`` are errors of the pitch."""

    clips: int
    versions: int
    wer: float
    wer_original: float
    stoi: float | None
    pesq: float | None
    mel: float | None
    cents: float | None
    voicing: float | None
    p808: float | None
    p808_original: float | None
    similarity: float | None
    perplexity: float
    codes_used: int
    bit_rate: float
    encode_real_time_factor: float
    decode_real_time_factor: float


class CodecReport(Handle):
    """``report.html``, ``report.json``, ``listening.ipynb`` and ``audio/<system>/<id>.flac``."""

    kind, facts_type = "codec_report", CodecReportFacts
    facts: CodecReportFacts


CODE_TYPES = ("uint16", "int32")  # NumPy's names; the first holds a codebook of up to 65,536


def code_dtype(codebook_size: int) -> str:
    """The type in which codes are stored: the smaller one that holds the codebook."""
    return CODE_TYPES[0] if codebook_size <= 2**16 else CODE_TYPES[1]


class CodeFacts(Facts):
    """Which codec made some codes."""

    codec: str
    sample_rate: int
    token_rate: float
    codebook_size: int

    @property
    def dtype(self) -> str:
        return code_dtype(self.codebook_size)


class ShardFacts(CodeFacts):
    """Of all clips some were ``encoded``, a share of these ``encoded_again`` alone, and others'
    codes reused; ``padding`` is a share of the batches, the speed that of one rank."""

    corpus: str
    shards: int
    samples_in: int
    samples: int
    set_aside: int
    codes: int
    hours: float
    speakers: int = Field(0, description="0: not counted")
    encoded: int = 0
    reused_codes: int = 0
    encoded_again: float = 0.0
    padding: float = 0.0
    audio_seconds_per_second: float = 0.0


class CodecShards(Handle):
    """``shard-NNNNN.{codes.npy,index.npy,samples.jsonl}`` and ``set_aside.jsonl``."""

    kind, facts_type = "codec_shards", ShardFacts
    facts: ShardFacts


class ArrayFacts(CodeFacts):
    corpus: str
    train_samples: int
    val_samples: int
    train_codes: int
    val_codes: int
    hours: float
    speakers: int
    membership: Literal["hash", "imported"] = Field(
        "hash", description="who is validation: by the hash of the id, or as the arrays came"
    )


class CodeArrays(Handle):
    """``{train,val}_codes.npy``, ``{train,val}_codes_index.npy``, ``{train,val}_samples.jsonl``."""

    kind, facts_type = "code_arrays", ArrayFacts
    facts: ArrayFacts


class InworldArrays(Handle):
    """The same names as ``code_arrays`` in the layout of the reference trainer: headerless int32
    codes."""

    kind, facts_type = "inworld_arrays", ArrayFacts
    facts: ArrayFacts


class TokenFacts(Facts):
    corpus: str
    text_tokens: dict[str, int] = Field(description="by digest of the tokenizer")


class TokenArrays(Handle):
    """A folder for each tokenizer, by its digest: ``{train,val}_{text,later,description}_{ids,
    index}.npy`` and, where asked for, ``{train,val}_pretraining_{codes,tokens}.npy``."""

    kind, facts_type = "token_arrays", TokenFacts
    facts: TokenFacts


class TextFacts(Facts):
    """Of ``lines`` all are ``train_samples``, ``val_samples`` or ``set_aside``."""

    name: str
    licence: str
    lines: int
    train_samples: int
    val_samples: int
    set_aside: int


class Texts(Handle):
    """``{train,val}_samples.jsonl``: id and ``messages`` or ``text``; ``set_aside.jsonl``."""

    kind, facts_type = "texts", TextFacts
    facts: TextFacts


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


class FamilyModelFacts(Facts):
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


class FamilyModel(Handle):
    """A model of another family: ``config.json`` and safetensors, ``metrics.jsonl``,
    ``set_aside.jsonl``; where it clones, ``voices/``."""

    kind, facts_type = "family_model", FamilyModelFacts
    facts: FamilyModelFacts


class SpokenFacts(Facts):
    """``silent``: of all ``syntheses`` those in which nothing was said."""

    recipe: str
    suite: str
    texts: int
    syntheses: int
    silent: int


class SpokenSuite(Handle):
    """``spoken.jsonl`` and ``audio/``: a suite as a model of another family says it."""

    kind, facts_type = "spoken", SpokenFacts
    facts: SpokenFacts


class FamiliesFacts(Facts):
    recipes: int
    trained: int
    reported: int


class FamiliesTable(Handle):
    """``families.md`` and ``families.json``: a row a recipe of any family."""

    kind, facts_type = "families_table", FamiliesFacts
    facts: FamiliesFacts


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
