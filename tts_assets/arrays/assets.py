"""Dagster assets of merged arrays: ``code_arrays`` with its checks, and ``inworld_arrays``."""

from collections.abc import Mapping
from pathlib import Path

from dagster import AssetChecksDefinition, AssetsDefinition

from tts_assets.arrays import inworld, merge
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import CodeArrays, CodecCheckpoint, CodecShards, InworldArrays
from tts_assets.orchestration.checks import artifact_check
from tts_assets.orchestration.dependencies import corpus_partitions, follow_data
from tts_assets.orchestration.program_asset import Plan, Request, artifact_asset

CODE_VERSION, IMPORT_VERSION, EXPORT_VERSION = "2", "1", "1"


def build_assets(
    config: inworld.ArraysConfig, validation: ValidationSplit, codec_name: str | None, root: Path
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """``code_arrays``, its blocking checks, and ``inworld_arrays`` where ``[arrays]`` exports it.

    ``validation`` assigns samples to a split, ``codec_name`` is the ``checkpoint`` of ``[codec]``.
    Paths of imported arrays are relative to ``root``.
    """
    arrays = code_arrays_asset(config.imported, validation, codec_name, root)
    built: list[AssetsDefinition | AssetChecksDefinition] = [arrays]
    for name, (test, about) in merge.array_checks(validation).items():
        built.append(artifact_check(arrays, name, about, test))
    built.append(
        artifact_check(
            arrays,
            "validation_has_its_own_recordings",
            "No recording has clips in both the training and the validation split.",
            merge.separate_recordings,
            warns=True,
        )
    )
    return built + ([inworld_arrays_asset()] if config.export == "inworld" else [])


def code_arrays_asset(
    imported: Mapping[str, inworld.ImportedArrays],
    validation: ValidationSplit,
    codec_name: str | None,
    root: Path,
) -> AssetsDefinition:
    """The asset ``code_arrays``: merged from shards, or imported for the corpora ``imported``."""

    def plan(request: Request) -> Plan[CodeArrays]:
        corpus = request.partition
        if corpus in imported:
            codec = request.store.current("codec")
            assert isinstance(codec, CodecCheckpoint)
            return import_plan(corpus, imported[corpus], codec, codec_name, root)
        shards = request.store.current("codec_shards", corpus)
        assert isinstance(shards, CodecShards)
        split = merge.settled_split(request.store, shards, validation)
        return Plan(
            split,
            lambda work: merge.merge(shards, split, work / "result"),
            inputs={"codec_shards": shards},
            describe=merge.describe_arrays,
        )

    return artifact_asset(
        "code_arrays",
        plan,
        code_version=CODE_VERSION,
        group_name="arrays",
        partitions_def=corpus_partitions,
        # Dependencies instead of inputs: an imported corpus has no shards to load.
        deps=["codec_shards", *(["codec"] if imported else [])],
        automation_condition=follow_data(),
        kinds={"numpy"},
        description="All codes of a corpus in two memory-mapped arrays: training and validation.",
    )


def import_plan(
    corpus: str,
    config: inworld.ImportedArrays,
    codec: CodecCheckpoint,
    codec_name: str | None,
    root: Path,
) -> Plan[CodeArrays]:
    """Import the arrays of a folder that the merger of the reference trainer wrote.

    Raises :class:`ArtifactError` if the arrays were made with another codec.
    """
    source = (root / config.path).resolve()
    inworld.check_codec(corpus, config.codec, codec, codec_name)
    return Plan(
        {"licence": config.licence, "files": inworld.file_digests(source)},
        lambda work: inworld.import_inworld(corpus, source, config.licence, codec, work / "result"),
        inputs={"codec": codec},
        describe=merge.describe_arrays,
        code_version=IMPORT_VERSION,
    )


def inworld_arrays_asset() -> AssetsDefinition:
    """The asset ``inworld_arrays``: ``code_arrays`` in the layout of the reference trainer."""

    def plan(request: Request, code_arrays: CodeArrays) -> Plan[InworldArrays]:
        return Plan({}, lambda work: inworld.export_inworld(code_arrays, work / "result"))

    return artifact_asset(
        "inworld_arrays",
        plan,
        code_version=EXPORT_VERSION,
        ins={"code_arrays": "code_arrays"},
        group_name="arrays",
        partitions_def=corpus_partitions,
        automation_condition=follow_data(),
        kinds={"numpy"},
        description="The same arrays as the reference trainer reads them: headerless int32 codes.",
    )
