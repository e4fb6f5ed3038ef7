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

from tts_assets.core.artifacts.data_kinds import (
    CODE_TYPES,
    ArrayFacts,
    CodeArrays,
    CodecCheckpoint,
    CodecDecoder,
    CodecFacts,
    CodecReport,
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
from tts_assets.core.artifacts.files import (
    ArtifactError,
    disk_full_named,
    fsync,
    fsync_tree,
    sha256_file,
    written_aside,
)
from tts_assets.core.artifacts.handle import (
    MANIFEST,
    Facts,
    Handle,
    InputRef,
    Manifest,
    open_artifact,
    readable,
)
from tts_assets.core.artifacts.model_kinds import (
    Agreement,
    Checkpoint,
    CheckpointFacts,
    Comparison,
    EvaluationSuite,
    ExternalModel,
    ExternalModelsTable,
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
)

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
    "code_dtype",
    "disk_full_named",
    "fsync",
    "fsync_tree",
    "open_artifact",
    "readable",
    "sha256_file",
    "written_aside",
]
