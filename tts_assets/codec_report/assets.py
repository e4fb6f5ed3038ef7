"""Dagster asset ``codec_report``: the codec on held-out speech, compared with all other codecs."""

from typing import Any

from dagster import AssetsDefinition

from tts_assets.audio_models.whisper import pinned_whisper
from tts_assets.codec.assets import Samples, sample_lists
from tts_assets.codec.config import CodecReportConfig
from tts_assets.codec_report.config import CodecReportProgram, other_codecs, versions
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import CodecCheckpoint, CodecDecoder, CodecReport
from tts_assets.core.compute import Shape
from tts_assets.core.metadata import NOTEBOOK_FILE, Metadata
from tts_assets.evaluation.history import lineage
from tts_assets.orchestration.partitions import filtered_samples_of
from tts_assets.orchestration.program_asset import Plan, Request, program_asset

CODE_VERSION = "4"


def build_assets(
    config: CodecReportConfig | None, validation: ValidationSplit, shape: Shape, decoder: bool
) -> list[AssetsDefinition]:
    """The asset of ``[codec.report]``, if configured; ``decoder``: ``codec_decoder`` exists."""
    return [] if config is None else [codec_report(config, validation, shape, decoder)]


def codec_report(
    report: CodecReportConfig, validation: ValidationSplit, shape: Shape, with_decoder: bool
) -> AssetsDefinition:
    """The asset ``codec_report``. Its fingerprint contains all codecs that are compared."""

    def plan(
        request: Request,
        samples: Samples,
        codec: CodecCheckpoint,
        decoder: CodecDecoder | None = None,
    ) -> Plan[CodecReport]:
        others = other_codecs(request.store, codec, decoder)
        inputs: dict[str, Any] = {"samples": samples, "codec": codec}
        inputs |= {"decoder": decoder} if decoder is not None else {}
        return Plan(
            {"report": report.identified(), "split": validation},
            program=lambda work: CodecReportProgram(
                run_dir=work,
                report=report.model_copy(update={"whisper": pinned_whisper(report.whisper)}),
                versions=versions(codec, decoder, others),
                samples=sample_lists(samples),
                validation=validation,
                lineage=lineage(request.store, [*samples.values(), codec, *others]),
            ),
            inputs={**inputs, "others": {handle.content[:12]: handle for handle in others}},
            describe=describe,
        )

    return program_asset(
        "codec_report",
        CodecReport,
        "tts_assets.codec_report.evaluate",
        plan,
        shape=shape,
        ins={
            "codec": "codec",
            "samples": filtered_samples_of(report.corpora),
            **({"decoder": "codec_decoder"} if with_decoder else {}),
        },
        code_version=CODE_VERSION,
        group_name="codec_report",
        kinds={"html", "whisper"},
        description="The codec's losses on held-out speech, compared with all codecs in the store.",
    )


def describe(report: CodecReport) -> Metadata:
    """Metadata: the listening notebook and the page."""
    return {"listen": report.path / NOTEBOOK_FILE, "page": report.path / "report.html"}
