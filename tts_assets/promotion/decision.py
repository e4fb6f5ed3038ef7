"""Does a candidate beat the incumbent? Reports in, a verdict for each candidate out."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tts_assets.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    Handle,
    Report,
    ServingModel,
)
from tts_assets.config import digest_of
from tts_assets.evaluation.history import readable_reports
from tts_assets.evaluation.results import AGAINST_TARGET, REPORT_FILE, same_target
from tts_assets.promotion.config import LOWER_IS_BETTER, METRICS, PromotionConfig

OTHER_RECORDINGS = (
    "the model that serves was measured against other recordings; "
    "[evaluation] target names fixed ones"
)
Figures = Mapping[str, float]
FailedChecks = Callable[[Handle], Collection[str]]  # names of the blocking checks that it failed


@dataclass(frozen=True)
class Contender:
    """A serving model and its reports: figures by :func:`bench`, so that like meets like."""

    recipe: str
    model: ServingModel
    reports: Mapping[str, Report]
    bench: str  # of the newest report

    @property
    def report(self) -> Report:
        return self.reports[self.bench]


@dataclass(frozen=True)
class Verdict:
    """``gains`` over the incumbent: positive is better, whatever the metric."""

    recipe: str
    wins: bool
    why: str
    gains: Figures


def bench(report: Report) -> str:
    """What a report was measured by: texts, configuration and code, not the model and its data."""
    manifest = report.manifest
    asked = {
        name: ref.content
        for name, ref in manifest.inputs.items()
        if not name.startswith(("serving", "arrays"))
    }
    return digest_of([asked, manifest.config, manifest.code_version])


def figures(report: Report, category: str) -> dict[str, float]:
    """Of one category of the suite, or of all texts."""
    told = json.loads((report.path / REPORT_FILE).read_text())
    if category and category not in told["categories"]:
        raise ArtifactError(
            f"{report.asset} has no category {category!r}: write one of "
            f"{sorted(told['categories'])} into [promotion], or leave category out"
        )
    found = (told["categories"][category] if category else told["total"])["metrics"]
    return {name: found[name]["value"] for name in METRICS if name in found}


def contender(store: ArtifactStore, recipe: str, failed: FailedChecks) -> Contender | str:
    """The current serving model of a recipe with its reports, or why it cannot compete."""
    try:
        model = store.current(f"serving/{recipe}")
        newest = store.current(f"report/{recipe}")
    except ArtifactError as error:
        return str(error)
    assert isinstance(model, ServingModel) and isinstance(newest, Report)
    reports = reports_of(store, recipe, model.content)
    if bench(newest) not in reports:
        return f"report/{recipe} is of an earlier model: materialize report/{recipe}"
    able = Contender(recipe, model, reports, bench(newest))
    for artifact in (model, able.report):
        if names := failed(artifact):
            return (
                f"{artifact.asset} failed its blocking check {' and '.join(names)}: mend what that "
                "tells, or decide by hand with `promotion promote`"
            )
    return able


def reports_of(store: ArtifactStore, recipe: str, model: str) -> dict[str, Report]:
    """By bench, the reports of the serving model with the content ``model``: the current one, else
    the newest, as those of one bench differ in the recordings that it is compared with. Old ones
    that cannot be read do not count; raises ArtifactError where the current one cannot."""
    asset = f"report/{recipe}"
    current = (store.folder(asset) / "current").resolve().name

    def place(report: Report) -> tuple[bool, int]:
        written = (report.path / MANIFEST).stat().st_mtime_ns
        return report.path.name == current, written

    found: dict[str, Report] = {}
    for report in sorted(readable_reports(store, asset), key=place):
        if report.manifest.inputs["serving"].content == model:
            found[bench(report)] = report
    return found


def judge(
    challenger: Contender,
    serves: str,
    reports: Mapping[str, Report],
    config: PromotionConfig,
    refused: Collection[str],
) -> Verdict:
    """``serves``: the incumbent's content, ``reports`` those of it by bench; ``refused`` were
    rolled back from, and do not come back by themselves."""
    recipe = challenger.recipe
    if challenger.model.content == serves:
        return Verdict(recipe, False, "serves now", {})
    if challenger.model.content in refused:
        why = "was rolled back; another model of it, or `promotion promote`, brings it back"
        return Verdict(recipe, False, why, {})
    if challenger.bench not in reports:
        why = "the model that serves was judged by other texts or code: not comparable"
        return Verdict(recipe, False, why, {})
    before = figures(reports[challenger.bench], config.category)
    after = figures(challenger.report, config.category)
    margins = config.gains_needed
    if missing := sorted(name for name in margins if name not in before or name not in after):
        why = f"{', '.join(missing)} could not be measured of both: not comparable"
        return Verdict(recipe, False, why, {})
    apart = measured_apart(reports[challenger.bench], challenger.report, margins)
    untold = f"{', '.join(apart)} not compared: {OTHER_RECORDINGS}" if apart else ""
    if margins.keys() == set(apart):
        return Verdict(recipe, False, untold, {})
    gains = gained(before, after, {n: least for n, least in margins.items() if n not in apart})
    short = [
        f"{name} {gain:+.4g}, needed {margins[name]:+.4g}"
        for name, gain in gains.items()
        if gain < margins[name]
    ]
    won = "gains " + ", ".join(f"{name} {gain:+.4g}" for name, gain in gains.items())
    told = [*(short or [won]), untold]
    return Verdict(recipe, not short, "; ".join(filter(None, told)), gains)


def measured_apart(before: Report, after: Report, margins: Figures) -> list[str]:
    """The metrics that the two reports measure against different recordings: a gain in them may be
    of the recordings alone. They do not decide: else a voice whose corpus grows, and with it what
    it is compared with, would never be promoted again."""
    if same_target([before.path, after.path]):
        return []
    return [name for name in margins if name in AGAINST_TARGET]


def gained(before: Figures, after: Figures, margins: Figures) -> dict[str, float]:
    """Rounded to 1e-9: a gain that is the margin but for the last bit of a float reaches it."""
    return {
        name: round((after[name] - before[name]) * (-1 if name in LOWER_IS_BETTER else 1), 9)
        for name in margins
    }


def winner(verdicts: Sequence[Verdict], config: PromotionConfig) -> str | None:
    """The recipe with the largest gain in the first metric of the margins, of those that win."""
    first = next(iter(config.margins))
    winners = [verdict for verdict in verdicts if verdict.wins]
    return max(winners, key=lambda verdict: verdict.gains[first]).recipe if winners else None
