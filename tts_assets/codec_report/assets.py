"""``codec_report``: the codec on held-out speech, beside every other version in the store."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetIn,
    AssetsDefinition,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
)

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.codec.config import CodecReportConfig
from tts_assets.codec_report.config import CodecReportProgram, CodecVersion
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    CodecCheckpoint,
    CodecDecoder,
    CodecReport,
    Handle,
    SampleManifest,
    readable,
)
from tts_assets.core.compute import Shape
from tts_assets.core.notebook import NOTEBOOK_FILE
from tts_assets.core.split import ValidationSplit
from tts_assets.corpora.filter import KEPT_FILE
from tts_assets.evaluation.lineage import lineage
from tts_assets.orchestration.launchpad import Machines
from tts_assets.orchestration.partitions import filtered_samples_of

CODE_VERSION = "3"


def build_assets(
    config: CodecReportConfig | None, validation: ValidationSplit, shape: Shape, decoder: bool
) -> list[AssetsDefinition]:
    """Nothing without ``[codec.report]``; ``decoder``: there is a ``codec_decoder``."""
    return [] if config is None else [report_asset(config, validation, shape, decoder)]


def report_asset(
    asked: CodecReportConfig, validation: ValidationSplit, shape: Shape, decoder: bool
) -> AssetsDefinition:
    own = {"decoder": AssetIn(key="codec_decoder")} if decoder else {}

    @asset(
        group_name="codec_report",
        ins={"codec": AssetIn(key="codec"), "samples": filtered_samples_of(asked.corpora), **own},
        code_version=CODE_VERSION,
        kinds={"html", "whisper"},
        description="What the codec loses of held-out speech, beside every other codec in store.",
    )
    def codec_report(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        **inputs: Any,
    ) -> Output[CodecReport]:
        samples: dict[str, SampleManifest] = inputs["samples"]
        codec: CodecCheckpoint = inputs["codec"]
        others = earlier(store.store, codec, inputs.get("decoder"))
        known = {**inputs, "others": {handle.content[:12]: handle for handle in others}}
        parts = {"report": asked.identified(), "split": validation}
        build = Build("codec_report", known, parts, CODE_VERSION)

        def run(work: Path) -> dict[str, Any]:
            program = CodecReportProgram(
                run_dir=work,
                report=asked,
                versions=versions(codec, inputs.get("decoder"), others),
                samples={name: handle.path / KEPT_FILE for name, handle in samples.items()},
                validation=validation,
                lineage=lineage(store.store, [*samples.values(), codec, *others]),
            )
            module = "tts_assets.codec_report.evaluate"
            return launcher.run(context, Program(module, program, config.of(shape))).facts

        return store.materialize(context, CodecReport, build, run, describe)

    return codec_report


def earlier(
    store: ArtifactStore, codec: CodecCheckpoint, decoder: CodecDecoder | None
) -> list[Handle]:
    """All other codecs in the store that can be read, and all decoders of them and of this one, by
    content."""
    shown = {codec.content, decoder.content if decoder else ""}
    codecs = unlike(shown, filter(None, map(readable, store.published("codec"))))
    contents = {codec.content, *(handle.content for handle in codecs)}
    decoders = [
        handle
        for handle in unlike(shown, filter(None, map(readable, store.published("codec_decoder"))))
        if handle.facts.codec in contents
    ]
    return [*codecs, *decoders]


def unlike(shown: set[str], handles: Iterable[Handle]) -> list[Handle]:
    """Those of other contents, each content once, in the order of the contents."""
    return [
        h for content, h in sorted({h.content: h for h in handles}.items()) if content not in shown
    ]


def versions(
    codec: CodecCheckpoint, decoder: CodecDecoder | None, others: list[Handle]
) -> tuple[CodecVersion, ...]:
    """What is measured: first what speaks today, then the codec alone, then the others."""
    codecs = {h.content: h for h in [codec, *others] if isinstance(h, CodecCheckpoint)}
    decoders = [h for h in ([decoder] if decoder else []) + others if isinstance(h, CodecDecoder)]
    spoken = [
        CodecVersion(
            name=f"codec {own.facts.codec[:12]} decoder {own.content[:12]}",
            codec=codecs[own.facts.codec].path,
            decoder=own.path,
        )
        for own in decoders
    ]
    alone = [
        CodecVersion(name=f"codec {content[:12]}", codec=handle.path)
        for content, handle in codecs.items()
    ]
    return tuple([*spoken[:1], *alone, *spoken[1:]] if decoder else [*alone, *spoken])


def describe(report: CodecReport) -> Mapping[str, Any]:
    from tts_assets.codec_report.evaluate import PAGE_FILE

    return {
        "listen": MetadataValue.notebook(str(report.path / NOTEBOOK_FILE)),
        "page": MetadataValue.path(str(report.path / PAGE_FILE)),
    }
