"""``filtered_samples``: utterances with normalized text, kept or rejected with a reason.

``listening.ipynb`` plays a few of both. Which ones is decided by their ids, so that the same
samples give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tts_assets.artifacts import CorpusFacts, RawCorpus, SampleFacts, SpeechSegments
from tts_assets.corpora.config import FilterConfig
from tts_assets.corpora.filters import rejection
from tts_assets.corpora.index import Utterance, utterances
from tts_assets.corpora.listening import write_listening
from tts_assets.corpora.quality import measure_dnsmos
from tts_assets.corpora.samples import Sample, write_samples
from tts_assets.corpora.text import normalize

KEPT_FILE, REJECTED_FILE = "kept.jsonl", "rejected.jsonl"


def filter_corpus(
    corpus: RawCorpus | SpeechSegments, config: FilterConfig, result: Path
) -> SampleFacts:
    """Write ``kept.jsonl`` and ``rejected.jsonl`` (each with its ``reason``) into ``result``."""
    rows = list(utterances(corpus))
    samples = [to_sample(row, corpus.facts) for row in rows]
    if config.measure_dnsmos:
        samples = with_dnsmos(samples)
    kept: list[Sample] = []
    rejected: list[tuple[Sample, str]] = []
    for row, sample in zip(rows, samples, strict=True):
        reason = rejection(row, sample, config)
        if reason is None:
            kept.append(sample)
        else:
            rejected.append((sample, reason))
    write_samples(result / KEPT_FILE, kept)
    lines = [
        json.dumps({"reason": why, **s.model_dump()}, ensure_ascii=False) for s, why in rejected
    ]
    (result / REJECTED_FILE).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    write_listening(result, corpus.facts.corpus, kept, rejected)
    return SampleFacts(
        corpus=corpus.facts.corpus,
        samples_in=corpus.facts.utterances,
        kept=len(kept),
        rejected=len(rejected),
        reasons=dict(Counter(reason for _, reason in rejected).most_common()),
        hours=round(sum(sample.duration for sample in kept) / 3600, 6),
        speakers=len({sample.speaker_id for sample in kept}),
    )


def to_sample(row: Utterance, facts: CorpusFacts) -> Sample:
    """A row in the sample schema; the audio's path becomes absolute, as the schema wants it."""
    extra = json.loads(row.extra)
    original = {
        **extra.pop("original_data", {}),
        "audio_sha256": row.audio_sha256,
        "licence": row.licence,
        "text": row.text,
    }
    return Sample(
        id=row.id,
        wav_path=str(row.path(facts)),
        transcript=normalize(row.text, row.language),
        language=row.language,
        duration=row.duration,
        sample_rate=row.sample_rate,
        speaker_id=row.speaker,
        dataset_name=facts.corpus,
        original_data=original,
        **extra,
    )


def with_dnsmos(samples: list[Sample]) -> list[Sample]:
    """The same samples, those without a DNSMOS measured."""
    missing = [sample for sample in samples if sample.dnsmos_mos_ovr == 0]
    scores = measure_dnsmos(Path(sample.wav_path) for sample in missing)
    measured = dict(zip((sample.id for sample in missing), scores, strict=True))
    return [
        sample.model_copy(update={"dnsmos_mos_ovr": measured.get(sample.id, sample.dnsmos_mos_ovr)})
        for sample in samples
    ]
