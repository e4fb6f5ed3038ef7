"""``[promotion]``: decides which candidate is promoted, and records every change.

The artifact ``promoted/<voice>`` is the promoted model; its ``current`` link selects it. Each
change is a separate artifact that names the one before it, so that the chain is the history. A
switch is the atomic rename of the link. An artifact contains the files of the serving model as hard
links, which need no space: the promoted model stays complete if ``serving/<recipe>`` is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from tts_assets.core.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    Handle,
    Promoted,
    PromotionEvent,
    Report,
    ServingModel,
    verify,
)
from tts_assets.core.config import Config, digest_of
from tts_assets.core.metadata import table_row
from tts_assets.corpora.config import ConsentError
from tts_assets.evaluation.history import readable_reports
from tts_assets.evaluation.metrics import Column, load
from tts_assets.evaluation.results import (
    FEWEST_TEXTS,
    REFERENCE_COLUMNS,
    SampleResult,
    difference,
    read_samples,
    same_references,
)
from tts_assets.promotion.history import (
    check_consents_of,
    history,
    promoted_now,
    refused_models,
    switch,
)
from tts_assets.sft.config import SftRecipe

Metric = Literal["wer", "cer", "perfect", "dnsmos_p808", "dnsmos_overall", "speaker_similarity"]
MEASURED_BY = ("words", "dnsmos", "similarity")  # the metrics with these columns
MARGINS: Mapping[Metric, float] = {
    "wer": 0.005,
    "dnsmos_p808": -0.1,
    "speaker_similarity": -0.02,
}
OTHER_RECORDINGS = (
    "the promoted model was measured against other recordings; "
    "set [evaluation] reference_corpora to fixed ones"
)
Figures = Mapping[str, float]
FailedChecks = Callable[[Handle], Collection[str]]


class PromotionConfig(Config):
    """``[promotion.<voice>]``: recipes whose serving models are candidates for a voice.

    The first candidate that has a report is promoted first. ``margins`` are the gains over the
    promoted model that a candidate needs, of values in ``report.json``: 0.005 requires a WER that
    is lower by half a percentage point, -0.1 allows a DNSMOS that is lower by 0.1. A candidate must
    reach all margins, and not by chance: the whole 95 % interval of the paired difference over the
    texts of both reports must reach the margin.
    """

    candidates: tuple[str, ...] = Field(min_length=1, description="recipes with a serving model")
    category: str = Field("", description="category of the suite to compare; empty: all texts")
    margins: dict[Metric, float] = Field(
        default_factory=lambda: dict(MARGINS),
        min_length=1,
        description="required improvement by metric; negative: permitted decline",
    )

    @property
    def gains_needed(self) -> dict[str, float]:
        """``margins`` with keys of type str."""
        return dict(self.margins.items())

    def check_candidates(self, voice: str, recipes: Collection[str]) -> None:
        """Raise ValueError for a candidate that is none of the SpeechLM recipes."""
        for candidate in set(self.candidates) - set(recipes):
            raise ValueError(
                f"promotion.{voice} names the candidate {candidate!r}, which is no recipe; "
                f"known recipes: {sorted(recipes)}"
            )

    @model_validator(mode="after")
    def _require_a_gain(self) -> Self:
        if max(self.margins.values()) <= 0:
            raise ValueError(
                f"margins {self.margins} require no gain, so that equal models would replace each "
                "other forever; set at least one above 0, such as wer = 0.005"
            )
        return self


"""Returns the names of the blocking checks that an artifact failed."""


def sft_bases(recipes: Mapping[str, SftRecipe]) -> dict[str, str]:
    """By SFT recipe, the one that it is trained from; empty without one.

    That of a base of the hub is the recipe that publishes it unchanged, with ``steps = 0``.
    """
    hubs = {name: one.base.hub for name, one in recipes.items() if one.steps == 0}
    unchanged = {hub: name for name, hub in hubs.items() if hub}
    return {
        name: one.base.recipe or ("" if one.steps == 0 else unchanged.get(one.base.hub or "", ""))
        for name, one in recipes.items()
    }


def training_steps(candidates: Iterable[str], bases: Mapping[str, str]) -> dict[str, str]:
    """By recipe, its base: the candidates and all recipes below them, bases first."""
    steps: dict[str, str] = {}
    for candidate in candidates:
        chain = [candidate]
        while (base := bases[chain[-1]]) and base not in chain:
            chain.append(base)
        steps |= {recipe: bases[recipe] for recipe in reversed(chain)}
    return steps


@dataclass(frozen=True)
class Candidate:
    """A serving model with its reports by :func:`measurement`; ``newest``: that of the newest."""

    recipe: str
    model: ServingModel
    reports: Mapping[str, Report]
    newest: str

    @property
    def report(self) -> Report:
        """The newest report."""
        return self.reports[self.newest]


@dataclass(frozen=True)
class CandidateDecision:
    """Whether a candidate may be promoted, and why.

    ``gains`` over the promoted model by metric: positive is better for every metric.
    """

    recipe: str
    wins: bool
    why: str
    gains: Figures


def promote_best(
    store: ArtifactStore, voice: str, config: PromotionConfig, failed: FailedChecks
) -> tuple[Promoted, list[CandidateDecision]]:
    """Promote the best candidate that may be promoted, if there is one.

    Returns the model that is promoted now, and the decision about each candidate. The caller holds
    :func:`locked`. Raises :class:`ArtifactError` if no model is promoted and none can be.
    """
    found = {name: candidate_of(store, name, failed) for name in config.candidates}
    decisions = [
        CandidateDecision(n, False, why, {}) for n, why in found.items() if isinstance(why, str)
    ]
    able = {name: c for name, c in found.items() if isinstance(c, Candidate)}
    promoted = promoted_now(store, voice)
    refused = refused_models(history(store, voice))
    if promoted is None or (ended := ended_consent(promoted)):
        why = f"{ended}; " if promoted else ""
        able = {name: one for name, one in able.items() if one.model.content not in refused}
        return promote_first(store, voice, able, decisions, why)
    reports = reports_of(store, promoted.facts.recipe, promoted.facts.model)
    decisions += [decide(c, promoted.facts.model, reports, config, refused) for c in able.values()]
    best = winner(decisions, config)
    if best is None:
        return promoted, decisions
    why = next(decision.why for decision in decisions if decision.recipe == best)
    chosen = able[best]
    handle = switch(store, voice, chosen.model, best, "promoted", why, chosen.report)
    return handle, decisions


def promote_first(
    store: ArtifactStore,
    voice: str,
    able: Mapping[str, Candidate],
    decisions: list[CandidateDecision],
    before: str = "",
) -> tuple[Promoted, list[CandidateDecision]]:
    """Promote the first of the candidates if no model is promoted yet, or none that may be used.

    ``before``: why the one before may not be used, for the history. Raises :class:`ArtifactError`
    if there is no candidate.
    """
    if not able:
        reasons = "; ".join(f"{decision.recipe}: {decision.why}" for decision in decisions)
        raise ArtifactError(f"no candidate can be promoted for {voice}: {reasons}")
    name, chosen = next(iter(able.items()))
    why = f"{before}the first candidate with a report"
    event: PromotionEvent = "promoted" if before else "first"
    handle = switch(store, voice, chosen.model, name, event, why, chosen.report)
    return handle, [*decisions, CandidateDecision(name, True, why, {})]


def ended_consent(model: Promoted) -> str:
    """Why the consents do not permit the use of a model any more; empty if they do."""
    try:
        check_consents_of(model)
    except ConsentError as error:
        return str(error)
    return ""


def candidate_of(store: ArtifactStore, recipe: str, failed: FailedChecks) -> Candidate | str:
    """The current serving model of a recipe with its reports, or why it is no candidate."""
    try:
        model = store.current(f"serving/{recipe}")
        verify(store, model)
        assert isinstance(model, ServingModel)
        check_consents_of(model)
        newest = store.current(f"report/{recipe}")
    except (ArtifactError, ConsentError) as error:
        return str(error)
    assert isinstance(newest, Report)
    reports = reports_of(store, recipe, model.content)
    if measurement(newest) not in reports:
        return f"report/{recipe} is of an earlier model: materialize report/{recipe}"
    candidate = Candidate(recipe, model, reports, measurement(newest))
    for artifact in (model, candidate.report):
        if names := failed(artifact):
            return (
                f"{artifact.asset} failed its blocking check {' and '.join(names)}: fix the cause, "
                "or promote it by hand with `promotion promote`"
            )
    return candidate


def measurement(report: Report) -> str:
    """The digest of how a report is measured: texts, configuration and code.

    It excludes the model and its training data. Only reports with the same digest are comparable.
    """
    manifest = report.manifest
    inputs = {
        name: ref.content
        for name, ref in manifest.inputs.items()
        if not name.startswith(("serving", "arrays"))
    }
    return digest_of([inputs, manifest.config, manifest.code_version])


def reports_of(store: ArtifactStore, recipe: str, model: str) -> dict[str, Report]:
    """The reports of the serving model with the content ``model``, by :func:`measurement`.

    Several reports may have the same measurement and differ in their reference recordings. The
    current one then counts, or else the newest. Unreadable old reports do not count. Raises
    :class:`ArtifactError` if the current report is unreadable.
    """
    asset = f"report/{recipe}"
    current = (store.folder(asset) / "current").resolve().name

    def order(report: Report) -> tuple[bool, int]:
        written = (report.path / MANIFEST).stat().st_mtime_ns
        return report.path.name == current, written

    found: dict[str, Report] = {}
    for report in sorted(readable_reports(store, asset), key=order):
        if report.manifest.inputs["serving"].content == model:
            found[measurement(report)] = report
    return found


def decide(
    candidate: Candidate,
    promoted: str,
    reports: Mapping[str, Report],
    config: PromotionConfig,
    refused: Collection[str],
) -> CandidateDecision:
    """Whether ``candidate`` reaches all margins.

    ``promoted``: content of the promoted model; ``reports``: its reports by :func:`measurement`;
    ``refused``: contents of models that were rolled back, which are not promoted automatically.
    """
    recipe = candidate.recipe
    if candidate.model.content == promoted:
        return CandidateDecision(recipe, False, "is the promoted model", {})
    if candidate.model.content in refused:
        why = "was rolled back; train another model, or use `promotion promote`"
        return CandidateDecision(recipe, False, why, {})
    if candidate.newest not in reports:
        why = "the promoted model was evaluated with other texts or code: not comparable"
        return CandidateDecision(recipe, False, why, {})
    report = reports[candidate.newest]
    margins = config.gains_needed
    found = gains_of(report, candidate.report, config)
    if missing := sorted(margins.keys() - found.keys()):
        why = f"{', '.join(missing)} could not be measured of both: not comparable"
        return CandidateDecision(recipe, False, why, {})
    incomparable = with_other_references(report, candidate.report, margins)
    omitted = f"{', '.join(incomparable)} not compared: {OTHER_RECORDINGS}" if incomparable else ""
    if margins.keys() == set(incomparable):
        return CandidateDecision(recipe, False, omitted, {})
    compared = {name: gain for name, gain in found.items() if name not in incomparable}
    problems = {name: gain.problem(margins[name]) for name, gain in compared.items()}
    missed = [f"{compared[name]}{problem}" for name, problem in problems.items() if problem]
    reached = "gains " + ", ".join(map(str, compared.values()))
    why = "; ".join(filter(None, [*(missed or [reached]), omitted]))
    return CandidateDecision(
        recipe, not missed, why, {name: gain.value for name, gain in compared.items()}
    )


@dataclass(frozen=True)
class Gain:
    """The gain of a candidate in one metric; positive is better for every metric.

    ``low`` and ``high`` bound the 95 % interval of the paired difference over the ``texts`` that
    both reports have. Values are rounded to 1e-6, so that rounding errors do not decide about a
    gain that equals its margin.
    """

    metric: str
    value: float
    low: float
    high: float
    texts: int

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:+.4g} to {self.high:+.4g}, {self.texts} texts"
        return f"{self.metric} {self.value:+.4g} ({interval})"

    def problem(self, margin: float) -> str:
        """Why this gain does not reach ``margin``; empty if it does.

        The whole interval must reach the margin: of two models that differ by less, at most one in
        forty is promoted by chance.
        """
        if self.texts < FEWEST_TEXTS:
            return f": an interval needs {FEWEST_TEXTS} texts"
        if self.value < margin:
            return f", needed {margin:+.4g}"
        if self.low < margin:
            return f", needed {margin:+.4g}: may be less by chance"
        return ""


def gains_of(before: Report, after: Report, config: PromotionConfig) -> dict[str, Gain]:
    """The gains in the metrics of the margins that were measured of both reports.

    The difference is paired over the texts of one category of the suite, or over all texts. Raises
    :class:`ArtifactError` for an unknown category.
    """
    baseline, candidate = (samples_of(report, config.category) for report in (before, after))
    columns = columns_by_name()
    gains = {}
    for name in config.margins:
        change = difference(baseline, candidate, columns[name])
        if change is not None:
            value, low, high = change.difference, change.low, change.high
            if columns[name].better == "low":
                value, low, high = -value, -high, -low
            gains[str(name)] = Gain(name, value, low, high, change.texts)
    return gains


def columns_by_name() -> dict[str, Column]:
    """The columns of the metrics that margins may name."""
    return {column.name: column for metric in MEASURED_BY for column in load(metric).columns}


def samples_of(report: Report, category: str) -> list[SampleResult]:
    """The syntheses of the main figures of a report: of one category of the suite, or all.

    Raises :class:`ArtifactError` for an unknown category.
    """
    samples = [sample for sample in read_samples(report.path) if sample.temperature is None]
    categories = {sample.category for sample in samples}
    if category and category not in categories:
        raise ArtifactError(
            f"{report.asset} has no category {category!r}: write one of {sorted(categories)} into "
            "[promotion], or leave category out"
        )
    return [sample for sample in samples if category in ("", sample.category)]


def with_other_references(before: Report, after: Report, margins: Figures) -> list[str]:
    """The metrics that two reports measure against different reference recordings.

    They do not decide: a gain may be an effect of the recordings. If they blocked a promotion, a
    voice whose corpus grows would never have another model.
    """
    if same_references([before.path, after.path]):
        return []
    return [name for name in margins if name in REFERENCE_COLUMNS]


def winner(decisions: Sequence[CandidateDecision], config: PromotionConfig) -> str | None:
    """The recipe with the largest gain in the first metric of the margins, if any wins."""
    first = next(iter(config.margins))
    winners = [decision for decision in decisions if decision.wins]
    return max(winners, key=lambda decision: decision.gains[first]).recipe if winners else None


def describe_decisions(decisions: Sequence[CandidateDecision]) -> str:
    """The decisions about all candidates as a Markdown table."""
    lines = ["| candidate | promoted | why |", "|---|---|---|"]
    lines += [table_row([d.recipe, "yes" if d.wins else "no", d.why]) for d in decisions]
    return "\n".join(lines)
