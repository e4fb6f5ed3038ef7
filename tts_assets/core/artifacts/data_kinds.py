"""Kinds of artifact that hold data: corpora, codecs, shards, arrays and texts."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tts_assets.core.artifacts.handle import Facts, Handle


class CorpusFacts(Facts):
    """What the index of a corpus and its segments share; ``hours`` of audio."""

    corpus: str
    language: str
    licence: str
    utterances: int
    set_aside: int
    hours: float
    speakers: int


class RawCorpusFacts(CorpusFacts):
    """``root`` is the folder where the corpus was indexed. It is not part of any digest."""

    root: str
    entries: int = Field(description="entries that the reader found: utterances and set aside")
    adjusted: dict[str, int] = Field(
        default_factory=dict, description="utterances with a tolerated difference, by kind"
    )
    unused_files: dict[str, int] = Field(
        default_factory=dict, description="audio files that no entry names, by suffix"
    )


class RawCorpus(Handle):
    """``utterances.parquet``, one row per utterance, and ``set_aside.jsonl``."""

    kind, facts_type = "raw_corpus", RawCorpusFacts
    facts: RawCorpusFacts


class SegmentFacts(CorpusFacts):
    """``seconds`` of all recordings: those in clips (``kept``), and the others by reason."""

    recordings: int
    recorded_hours: float
    seconds: dict[str, float] = Field(default_factory=dict)


class SpeechSegments(Handle):
    """``utterances.parquet`` and ``set_aside.jsonl``.

    For long recordings, the rows are their clips, and there are also ``spans.parquet``, ``card.md``
    and ``listening.ipynb``. For a corpus of utterances, the rows are those of ``raw_corpus``.
    """

    kind, facts_type = "speech_segments", SegmentFacts
    facts: SegmentFacts


class SampleFacts(Facts):
    """``samples_in`` = ``kept`` + ``rejected``; ``reasons`` counts the rejected by reason."""

    corpus: str
    samples_in: int
    kept: int
    rejected: int
    reasons: dict[str, int]
    hours: float
    speakers: int
    normalizer: str = "rules"


class SampleManifest(Handle):
    """``kept.jsonl`` and ``rejected.jsonl`` in the sample schema, and ``listening.ipynb``."""

    kind, facts_type = "filtered_samples", SampleFacts
    facts: SampleFacts


class CodecFacts(Facts):
    """``sample_rate`` in Hz, ``hop_length`` in samples per frame, ``token_rate`` in codes per
    second.

    ``codebook_size`` counts all different codes. A codec with several codebooks has their sizes in
    ``codebooks``, and in ``pattern`` the codebook of each code of a frame (``shard_files.py``).
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"codebooks", "pattern"})

    sample_rate: int
    hop_length: int
    token_rate: float
    codebook_size: int
    codebooks: tuple[int, ...] = ()
    pattern: tuple[int, ...] = ()
    parameters: int
    perplexity: float | None = Field(None, description="of the codes in the last training steps")
    dead_codes: int | None = Field(None, description="codes that did not occur in them")

    @property
    def frame(self) -> tuple[int, ...]:
        """The number of different codes at each position of a frame; empty for one codebook."""
        several = len(self.pattern) > 1
        return tuple(self.codebooks[own] for own in self.pattern) if several else ()

    @model_validator(mode="after")
    def _sizes_add_up(self) -> Self:
        sizes = [self.codebooks[own] for own in self.pattern]
        if sizes and sum(sizes) != self.codebook_size:
            raise ValueError(
                f"codebook_size {self.codebook_size} is not the sum {sum(sizes)} of the codes of a "
                f"frame, {sizes}"
            )
        return self


class CodecCheckpoint(Handle):
    """``config.json`` and ``model.safetensors`` of a neural speech codec, and its recipe."""

    kind, facts_type = "codec", CodecFacts
    facts: CodecFacts


class DecoderFacts(Facts):
    """``codec`` is the content digest of the codec whose codes this decoder decodes."""

    codec: str
    sample_rate: int
    hop_length: int = Field(description="samples per code")
    token_rate: float
    codebook_size: int
    parameters: int


class CodecDecoder(Handle):
    """``model.safetensors``, ``config.json``, ``model_config.json`` of a decoder, and its
    recipe."""

    kind, facts_type = "codec_decoder", DecoderFacts
    facts: DecoderFacts


class CodecReportFacts(Facts):
    """Means over the clips for one codec. ``cents`` and ``voicing`` are pitch errors.

    Without an ASR model for the language, or without texts, there is no WER.
    """

    clips: int
    versions: int
    wer: float | None
    wer_original: float | None
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
    """``report.html``, ``report.json``, ``listening.ipynb``, ``audio/<system>/<id>.flac``."""

    kind, facts_type = "codec_report", CodecReportFacts
    facts: CodecReportFacts


CODE_TYPES = ("uint16", "int32")  # NumPy's names; uint16 holds a codebook of up to 65,536 codes


def code_dtype(codebook_size: int) -> str:
    """The smaller of :data:`CODE_TYPES` that holds all codes of a codebook of this size."""
    return CODE_TYPES[0] if codebook_size <= 2**16 else CODE_TYPES[1]


class CodeFacts(Facts):
    """The codec that encoded the audio. ``frame`` is that of :class:`CodecFacts`."""

    added_keys: ClassVar[frozenset[str]] = frozenset({"frame"})

    codec: str
    sample_rate: int
    token_rate: float
    codebook_size: int
    frame: tuple[int, ...] = ()

    @property
    def dtype(self) -> str:
        """NumPy's name of the type in which the codes are stored."""
        return code_dtype(self.codebook_size)


class ShardFacts(CodeFacts):
    """``samples_in`` = ``samples`` + ``set_aside``; the codes of ``samples`` are ``encoded`` or
    reused.

    ``encoded_again`` is the share of ``encoded`` that was encoded a second time, alone;
    ``padding`` the share of padding in the batches; ``audio_seconds_per_second`` of one rank.
    """

    corpus: str
    shards: int
    samples_in: int
    samples: int
    set_aside: int
    codes: int
    hours: float
    speakers: int = Field(0, description="0 if unknown")
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
    """Samples and codes of both splits; ``hours`` of audio."""

    corpus: str
    train_samples: int
    val_samples: int
    train_codes: int
    val_codes: int
    hours: float
    speakers: int
    membership: Literal["hash", "imported"] = Field(
        "hash",
        description="assignment to validation: by a hash of the id, or as imported",
    )


class CodeArrays(Handle):
    """``{train,val}_codes.npy``, ``{train,val}_codes_index.npy``, ``{train,val}_samples.jsonl``."""

    kind, facts_type = "code_arrays", ArrayFacts
    facts: ArrayFacts


class InworldArrays(Handle):
    """The files of ``code_arrays`` in the layout of the reference trainer: int32, no header."""

    kind, facts_type = "inworld_arrays", ArrayFacts
    facts: ArrayFacts


class TokenFacts(Facts):
    """The number of text tokens for each tokenizer."""

    corpus: str
    text_tokens: dict[str, int] = Field(description="number of tokens by digest of the tokenizer")


class TokenArrays(Handle):
    """One folder per tokenizer, named by its digest.

    Each has ``{train,val}_{text,later,description}_{ids,index}.npy`` and, if configured,
    ``{train,val}_pretraining_{codes,tokens}.npy``.
    """

    kind, facts_type = "token_arrays", TokenFacts
    facts: TokenFacts


class TextFacts(Facts):
    """``lines`` = ``train_samples`` + ``val_samples`` + ``set_aside``."""

    name: str
    licence: str
    lines: int
    train_samples: int
    val_samples: int
    set_aside: int


class Texts(Handle):
    """``{train,val}_samples.jsonl`` with id and ``messages`` or ``text``, and
    ``set_aside.jsonl``."""

    kind, facts_type = "texts", TextFacts
    facts: TextFacts
