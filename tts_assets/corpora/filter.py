"""``filtered_samples``: utterances with normalized text, kept or rejected with a reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tts_assets.artifacts import RawCorpus, SampleFacts
from tts_assets.corpora.config import FilterConfig
from tts_assets.corpora.filters import rejection
from tts_assets.corpora.index import Utterance, utterances
from tts_assets.corpora.samples import Sample, write_samples
from tts_assets.corpora.text import normalize

KEPT_FILE, REJECTED_FILE = "kept.jsonl", "rejected.jsonl"


def filter_corpus(corpus: RawCorpus, config: FilterConfig, result: Path) -> SampleFacts:
    """Write ``kept.jsonl`` and ``rejected.jsonl`` (each with its ``reason``) into ``result``."""
    root = Path(corpus.facts.root)
    kept: list[Sample] = []
    rejected: list[tuple[Sample, str]] = []
    for row in utterances(corpus):
        sample = to_sample(row, root, corpus.facts.corpus)
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
    return SampleFacts(
        corpus=corpus.facts.corpus,
        samples_in=corpus.facts.utterances,
        kept=len(kept),
        rejected=len(rejected),
        reasons=dict(Counter(reason for _, reason in rejected).most_common()),
        hours=round(sum(sample.duration for sample in kept) / 3600, 6),
        speakers=len({sample.speaker_id for sample in kept}),
    )


def to_sample(row: Utterance, root: Path, corpus: str) -> Sample:
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
        wav_path=str(root / row.audio),
        transcript=normalize(row.text, row.language),
        language=row.language,
        duration=row.duration,
        sample_rate=row.sample_rate,
        speaker_id=row.speaker,
        dataset_name=corpus,
        original_data=original,
        **extra,
    )
