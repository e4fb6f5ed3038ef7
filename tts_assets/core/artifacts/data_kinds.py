"""Kinds of artifact that hold data: corpora, codecs, shards, arrays and texts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tts_assets.core.artifacts.handle import Facts, Handle


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
