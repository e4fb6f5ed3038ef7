"""``listening.ipynb`` of a comparison: what every model made of a text, one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tts_assets.evaluation.clips import PAGE_BYTES
from tts_assets.evaluation.page import percent
from tts_assets.evaluation.report import caption
from tts_assets.evaluation.results import SampleResult, grouped
from tts_assets.notebook import Clip, Section

Said = tuple[str, Path, Sequence[SampleResult]]
"""A model's name, its report's folder, and its samples in the order of all models'."""
Row = tuple[SampleResult, ...]
"""One text of one seed, as each model said it."""


def sections(models: Sequence[Said], errors: Mapping[str, Sequence[float]]) -> list[Section]:
    """A category each, the texts that the models differ in most first, as many as fit.

    ``errors``: word errors by category, a number a model.
    """
    rows = zip(*(samples for _, _, samples in models), strict=True)
    groups = grouped((row[0].category, row) for row in rows)
    room = PAGE_BYTES / len(groups)
    return [
        Section(title(category, models, errors[category]), clips_that_fit(models, rows, room))
        for category, rows in groups.items()
    ]


def title(category: str, models: Sequence[Said], errors: Sequence[float]) -> str:
    each = (f"{name} {percent(rate)}" for (name, _, _), rate in zip(models, errors, strict=True))
    return f"{category}: {', '.join(each)} word errors"


def clips_that_fit(models: Sequence[Said], rows: Sequence[Row], room: float) -> list[Clip]:
    """The clips of the first texts whose audio has no more than ``room`` bytes: all of a text's
    or none."""
    shown: list[Clip] = []
    for row in sorted(rows, key=apart, reverse=True):
        clips = clips_of(models, row)
        room -= sum(clip.path.stat().st_size for clip in clips)
        if room < 0:
            break
        shown += clips
    return shown


def apart(row: Row) -> tuple[float, float]:
    """How far the models are from each other in word errors, then how many all made."""
    rates = [sample.values["wer"] for sample in row]
    return max(rates) - min(rates), sum(rates)


def clips_of(models: Sequence[Said], row: Row) -> list[Clip]:
    """A player a model; who said nothing at all has none, and is named beside the text."""
    each = list(zip(models, row, strict=True))
    silent = [name for (name, _, _), sample in each if sample.audio is None]
    text = row[0].text + (f" ({', '.join(silent)} said nothing)" if silent else "")
    return [
        Clip(text, f"{name}; {caption(sample)}", folder / sample.audio)
        for (name, folder, _), sample in each
        if sample.audio
    ]
