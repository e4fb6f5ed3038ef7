"""Immutable results on disk, and the typed handles that assets pass to each other.

An artifact is a folder ``root/<asset>/<partition>/<fingerprint>/`` with a ``manifest.json``.

* The *fingerprint* identifies a build before it runs. It is a digest of the asset, the contents of
  its inputs, its canonical configuration, its code version and its seed. If an artifact with this
  fingerprint exists, the build is skipped.
* The *content* identifies the result. It is a digest of the names and bytes of all files, and it is
  Dagster's data version. An input that is rebuilt to the same bytes makes nothing downstream stale.

Files are written to a work folder on the same file system, digested, flushed with fsync, and moved
into place with one rename. The link ``current`` is then replaced by another rename. A process that
is killed at any time leaves the old or the new artifact, never a part. Opening an artifact whose
files differ in size from its manifest raises :class:`ArtifactError`. Before an artifact is used or
reused for the first time, the digests of its files are verified (``verification.py``).
"""

from tts_assets.core.artifacts.data_kinds import (
    CODE_TYPES,
    ArrayFacts,
    CodeArrays,
    CodecCheckpoint,
    CodecDecoder,
    CodecFacts,
    CodecReport,
    CodecReportFacts,
    CodecShards,
    CorpusFacts,
    DecoderFacts,
    InworldArrays,
    RawCorpus,
    RawCorpusFacts,
    SampleFacts,
    SampleManifest,
    SegmentFacts,
    ShardFacts,
    SpeechSegments,
    Texts,
    TokenArrays,
    TokenFacts,
    code_dtype,
)
from tts_assets.core.artifacts.handle import (
    MANIFEST,
    ArtifactError,
    Facts,
    Handle,
    InputRef,
    Manifest,
    apply_umask,
    atomic_write,
    disk_full_named,
    fsync,
    fsync_tree,
    open_artifact,
    readable,
    sha256_file,
)
from tts_assets.core.artifacts.model_kinds import (
    Agreement,
    Checkpoint,
    CheckpointFacts,
    Comparison,
    EvaluationSuite,
    ExternalModel,
    ExternalModelsTable,
    Preferences,
    Promoted,
    PromotionEvent,
    Report,
    ServingFacts,
    ServingModel,
    SpeakerEncoderCheckpoint,
    SpeakerEncoderFacts,
    SpeakerPurity,
    SpeakerReport,
    SynthesizedSuite,
)
from tts_assets.core.artifacts.store import (
    UNPARTITIONED,
    ArtifactStore,
    Build,
    store_of,
)
from tts_assets.core.artifacts.verification import verify, verify_folder

__all__ = [
    "CODE_TYPES",
    "MANIFEST",
    "UNPARTITIONED",
    "Agreement",
    "ArrayFacts",
    "ArtifactError",
    "ArtifactStore",
    "Build",
    "Checkpoint",
    "CheckpointFacts",
    "CodeArrays",
    "CodecCheckpoint",
    "CodecDecoder",
    "CodecFacts",
    "CodecReport",
    "CodecReportFacts",
    "CodecShards",
    "Comparison",
    "CorpusFacts",
    "DecoderFacts",
    "EvaluationSuite",
    "ExternalModel",
    "ExternalModelsTable",
    "Facts",
    "Handle",
    "InputRef",
    "InworldArrays",
    "Manifest",
    "Preferences",
    "Promoted",
    "PromotionEvent",
    "RawCorpus",
    "RawCorpusFacts",
    "Report",
    "SampleFacts",
    "SampleManifest",
    "SegmentFacts",
    "ServingFacts",
    "ServingModel",
    "ShardFacts",
    "SpeakerEncoderCheckpoint",
    "SpeakerEncoderFacts",
    "SpeakerPurity",
    "SpeakerReport",
    "SpeechSegments",
    "SynthesizedSuite",
    "Texts",
    "TokenArrays",
    "TokenFacts",
    "apply_umask",
    "atomic_write",
    "code_dtype",
    "disk_full_named",
    "fsync",
    "fsync_tree",
    "open_artifact",
    "readable",
    "sha256_file",
    "store_of",
    "verify",
    "verify_folder",
]
