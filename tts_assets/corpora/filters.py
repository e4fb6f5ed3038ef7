"""Which utterances are kept: the reference's filters in its order; the first hit names the reason.

Filters see the normalized transcript. Each is one line of FILTERS: a reason and a predicate that
is true for what must go.
"""

from __future__ import annotations

from collections.abc import Callable

from tts_assets.corpora.config import FilterConfig
from tts_assets.corpora.index import Utterance
from tts_assets.corpora.samples import Sample

Predicate = Callable[[Utterance, Sample, FilterConfig], bool]

FILTERS: dict[str, Predicate] = {
    "empty transcript": lambda row, sample, config: not row.text.strip(),
    "language not allowed": lambda row, sample, config: (
        not is_allowed(row.language, config.allowed_languages)
    ),
    "too long": lambda row, sample, config: row.duration > config.max_duration,
    "nothing to speak": lambda row, sample, config: not sample.transcript,
    "sample rate too low": lambda row, sample, config: row.sample_rate < config.min_sample_rate,
    "DNSMOS too low": lambda row, sample, config: 0 < sample.dnsmos_mos_ovr < config.min_dnsmos,
    "too short": lambda row, sample, config: row.duration < config.min_duration,
    "more text than speech": lambda row, sample, config: (
        len(sample.transcript) > config.max_characters_per_second * row.duration
    ),
}


def rejection(row: Utterance, sample: Sample, config: FilterConfig) -> str | None:
    """The first filter that an utterance fails, or None if it is kept."""
    for reason, fails in FILTERS.items():
        if fails(row, sample, config):
            return reason
    return None


def is_allowed(language: str, allowed: tuple[str, ...]) -> bool:
    """Whether a language tag is one of ``allowed`` or a variety of it; none named allows all."""
    return not allowed or any(language == tag or language.startswith(f"{tag}-") for tag in allowed)
