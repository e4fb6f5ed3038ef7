"""Dagster assets ``resynthesis`` (the codec on clips of each corpus), and ``codec_report`` (on
held-out speech, compared with all other codecs)."""

from pathlib import Path
from typing import Any

from dagster import AssetChecksDefinition, AssetsDefinition

from tts_assets.audio_models.whisper import pinned_whisper
from tts_assets.codec.assets import Samples
from tts_assets.codec.config import CodecReportConfig
from tts_assets.codec_report.config import (
    CLIPS,
    CodecReportProgram,
    chosen_clips,
    describe,
    identified_clips,
    other_codecs,
    preservation,
    versions,
    write_located,
)
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import CodecCheckpoint, CodecDecoder, CodecReport, SampleManifest
from tts_assets.core.compute import Shape
from tts_assets.corpora.filter import KEPT_FILE, sample_lists
from tts_assets.corpora.validation import identified
from tts_assets.evaluation.history import lineage
from tts_assets.orchestration.checks import artifact_check
from tts_assets.orchestration.dependencies import (
    corpus_partitions,
    filtered_samples_of,
    follow_data,
)
from tts_assets.orchestration.program_asset import Plan, Request, program_asset

CODE_VERSION = "7"


def build_assets(
    config: CodecReportConfig | None,
    validation: ValidationSplit,
    shape: Shape,
    decoder: bool,
    whisper: str = "",
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """``resynthesis`` with its check, and the asset of ``[codec.report]``, if configured.

    ``decoder``: ``codec_decoder`` exists. ``whisper``: the ASR model of ``[evaluation]``.
    """
    made = resynthesis(whisper, shape)
    check = artifact_check(
        made,
        "codec_preserves_speech",
        "WER, speaker similarity and pitch after the codec are near those before it.",
        preservation,
        warns=True,
    )
    reports = [] if config is None else [codec_report(config, validation, shape, decoder)]
    return [made, check, *reports]


def resynthesis(whisper: str, shape: Shape) -> AssetsDefinition:
    """The asset ``resynthesis``. Its fingerprint contains the chosen clips, not the corpus."""

    def plan(
        request: Request, samples: SampleManifest, codec: CodecCheckpoint
    ) -> Plan[CodecReport]:
        corpus = samples.facts.corpus
        chosen = chosen_clips(samples.path / KEPT_FILE)
        report = CodecReportConfig(corpora=(corpus,), clips=CLIPS, whisper=whisper)

        def program(work: Path) -> CodecReportProgram:
            write_located(work / KEPT_FILE, chosen, samples.path / KEPT_FILE)
            return CodecReportProgram(
                run_dir=work,
                report=report.model_copy(update={"whisper": pinned_whisper(whisper)}),
                versions=versions(codec, None, []),
                samples={corpus: work / KEPT_FILE},
                validation=None,
                lineage=lineage(request.store, [samples, codec]),
            )

        config = {"report": report.identified(), "clips": identified_clips(chosen)}
        return Plan(config, program=program, inputs={"codec": codec}, describe=describe)

    return program_asset(
        "resynthesis",
        "tts_assets.codec_report.evaluate",
        plan,
        shape=shape,
        ins={"samples": "filtered_samples", "codec": "codec"},
        code_version=CODE_VERSION,
        group_name="codec",
        partitions_def=corpus_partitions,
        automation_condition=follow_data(),
        kinds={"html", "whisper"},
        description=f"Up to {CLIPS} clips of the corpus as recorded and through the codec.",
    )


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
            {"report": report.identified(), "split": identified(validation, samples)},
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
