"""The codecs and clips of a report, the ``run.json`` of its program, and what its figures mean.

``[codec.report]`` of ``dagster_project.toml`` is
:class:`~tts_assets.codec.config.CodecReportConfig`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from tts_assets.codec.config import CodecReportConfig
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    ArtifactStore,
    CodecCheckpoint,
    CodecDecoder,
    CodecReport,
    CodecReportFacts,
    Handle,
    readable,
)
from tts_assets.core.config import Config
from tts_assets.core.metadata import NOTEBOOK_FILE, CheckResult, Metadata
from tts_assets.core.program import ProgramConfig
from tts_assets.corpora.samples import AudioFolders, Sample, scan_samples, write_samples
from tts_assets.evaluation.config import LineageRow

LONGEST_SECONDS = 12.0  # of a clip; longer ones make the page large
# Clips of a corpus in ``resynthesis``: about a minute of speech. Shorter clips have no reliable
# embedding, longer ones need more time.
CLIPS, CLIP_SECONDS = 12, (1.5, 8.0)
# Limits of ``codec_preserves_speech``. The demo's codec has a similarity of 0.93 and a pitch error
# of 24 cents on its own speaker, 0.78 and 64 on a Russian woman, 0.63 and 190 on an Italian man,
# 0.64 and 370 on ten readers of LibriSpeech. Its WER rises by 6 points on its own speaker.
WER_RISE, LEAST_SIMILARITY, LARGEST_CENTS = 0.2, 0.85, 50.0


class CodecVersion(Config):
    """A codec under its name in the report; ``decoder`` replaces the codec's own decoder."""

    name: str
    codec: Path
    decoder: Path | None = None


class CodecReportProgram(ProgramConfig):
    """``run.json`` of ``tts_assets.codec_report.evaluate``.

    The report is about the first of ``versions``; the others are there for comparison. Without
    ``validation`` it is about all ``samples``, which also need no words.
    """

    report: CodecReportConfig
    versions: tuple[CodecVersion, ...]
    samples: dict[str, Path]
    validation: ValidationSplit | None = ValidationSplit()
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


def chosen_clips(samples: Path) -> list[Sample]:
    """Up to :data:`CLIPS` utterances of a sample list, with the names of their audio in it.

    They are the same ones while the corpus grows. They have 1.5 to 8 s, or any length if there are
    none of those, and the smallest ids. Ids are digests of audio for nearly all corpora, so that
    the choice is random.
    """
    fits = pl.col("duration").is_between(*CLIP_SECONDS)
    rows = scan_samples([samples])
    chosen = rows.filter(fits).bottom_k(CLIPS, by="id").collect()
    if chosen.is_empty():
        chosen = rows.bottom_k(CLIPS, by="id").collect()
    return [
        Sample.parse({**row, "original_data": json.loads(row["original_data"])}, str(samples))
        for row in chosen.sort("id").to_dicts()
    ]


def identified_clips(clips: Iterable[Sample]) -> list[list[Any]]:
    """What identifies clips in a fingerprint: id, text, language and digest of the audio."""
    return [[c.id, c.transcript, c.language, c.original_data.get("audio_sha256")] for c in clips]


def write_located(path: Path, clips: Iterable[Sample], samples: Path) -> None:
    """Write clips of the sample list ``samples`` with the absolute paths of their audio."""
    folders = AudioFolders.of(samples)
    located = ((clip, str(folders.path(clip.wav_path))) for clip in clips)
    write_samples(path, (clip.model_copy(update={"wav_path": file}) for clip, file in located))


def preservation(_: ArtifactStore, made: CodecReport) -> CheckResult:
    """The check ``codec_preserves_speech``."""
    lost = losses(made.facts)
    remedy = "adapt the codec to this voice, or use another: docs/codecs.md"
    problem = f"{', '.join(lost)}: {remedy}" if lost else ""
    return CheckResult(not lost, {"lost": lost}, problem)


def losses(facts: CodecReportFacts) -> list[str]:
    """What the codec loses of the speech beyond the limits of ``codec_preserves_speech``."""
    found = []
    before, after = facts.wer_original, facts.wer
    if before is not None and after is not None and after - before > WER_RISE:
        found.append(f"WER {after:.0%}, of the recordings {before:.0%}")
    if facts.similarity is not None and facts.similarity < LEAST_SIMILARITY:
        found.append(f"speaker similarity {facts.similarity:.2f}")
    if facts.cents is not None and facts.cents > LARGEST_CENTS:
        found.append(f"pitch error {facts.cents:.0f} cents")
    return found


def describe(report: CodecReport) -> Metadata:
    """Metadata: the listening notebook and the page."""
    return {"listen": report.path / NOTEBOOK_FILE, "page": report.path / "report.html"}
