"""The codecs that a report compares, and the ``run.json`` of its program.

``[codec.report]`` of ``dagster_project.toml`` is
:class:`~tts_assets.codec.config.CodecReportConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tts_assets.codec.config import CodecReportConfig
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    ArtifactStore,
    CodecCheckpoint,
    CodecDecoder,
    Handle,
    readable,
)
from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.evaluation.config import LineageRow


class CodecVersion(Config):
    """A codec under its name in the report; ``decoder`` replaces the codec's own decoder."""

    name: str
    codec: Path
    decoder: Path | None = None


class CodecReportProgram(ProgramConfig):
    """``run.json`` of ``tts_assets.codec_report.evaluate``.

    The report is about the first of ``versions``; the others are there for comparison.
    """

    report: CodecReportConfig
    versions: tuple[CodecVersion, ...]
    samples: dict[str, Path]
    validation: ValidationSplit = ValidationSplit()
    lineage: tuple[LineageRow, ...] = ()


def other_codecs(
    store: ArtifactStore, codec: CodecCheckpoint, decoder: CodecDecoder | None
) -> list[Handle]:
    """All other readable codecs of the store, and all other decoders of them and of ``codec``."""
    shown = {codec.content, decoder.content if decoder else ""}
    codecs = _without(shown, filter(None, map(readable, store.published("codec"))))
    contents = {codec.content, *(handle.content for handle in codecs)}
    decoders = _without(shown, filter(None, map(readable, store.published("codec_decoder"))))
    return [*codecs, *(handle for handle in decoders if handle.facts.codec in contents)]


def _without(shown: set[str], handles: Iterable[Handle]) -> list[Handle]:
    """One handle of each content that is not in ``shown``, sorted by content."""
    by_content = {handle.content: handle for handle in handles}
    return [handle for content, handle in sorted(by_content.items()) if content not in shown]


def versions(
    codec: CodecCheckpoint, decoder: CodecDecoder | None, others: list[Handle]
) -> tuple[CodecVersion, ...]:
    """What is measured: the codec with its decoder, the codec alone, then all others."""
    codecs = {h.content: h for h in [codec, *others] if isinstance(h, CodecCheckpoint)}
    decoders = [h for h in ([decoder] if decoder else []) + others if isinstance(h, CodecDecoder)]
    decoded = [
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
    return tuple([*decoded[:1], *alone, *decoded[1:]] if decoder else [*alone, *decoded])
