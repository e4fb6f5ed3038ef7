"""Decides which candidate is promoted, and records every change.

The artifact ``promoted/<voice>`` is the promoted model; its ``current`` link selects it. Each
change is a separate artifact that names the one before it, so that the chain is the history. A
switch is the atomic rename of the link. An artifact contains the files of the serving model as hard
links, which need no space: the promoted model stays complete if ``serving/<recipe>`` is deleted.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from tts_assets.core.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    Build,
    Handle,
    Promoted,
    PromotionEvent,
    Report,
    ServingModel,
    readable,
    verify,
)
from tts_assets.core.config import canonical_json, digest_of
from tts_assets.evaluation.history import readable_reports
from tts_assets.evaluation.metrics.metric import Column, load
from tts_assets.evaluation.results import (
    FEWEST_TEXTS,
    REFERENCE_COLUMNS,
    SampleResult,
    difference,
    read_samples,
    same_references,
)
from tts_assets.promotion.config import MEASURED_BY, PromotionConfig

CODE_VERSION = "1"
CARD_FILE = "promotion.json"
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)
OTHER_RECORDINGS = (
    "the promoted model was measured against other recordings; "
    "set [evaluation] reference_corpora to fixed ones"
)
Figures = Mapping[str, float]
FailedChecks = Callable[[Handle], Collection[str]]
"""Returns the names of the blocking checks that an artifact failed."""


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
    if promoted is None:
        return promote_first(store, voice, able, decisions)
    refused = refused_models(history(store, voice))
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
) -> tuple[Promoted, list[CandidateDecision]]:
    """Promote the first of the candidates if no model is promoted yet.

    Raises :class:`ArtifactError` if there is none.
    """
    if not able:
        reasons = "; ".join(f"{decision.recipe}: {decision.why}" for decision in decisions)
        raise ArtifactError(f"no candidate can be promoted for {voice}: {reasons}")
    name, chosen = next(iter(able.items()))
    why = "the first candidate with a report"
    handle = switch(store, voice, chosen.model, name, "first", why, chosen.report)
    return handle, [*decisions, CandidateDecision(name, True, why, {})]


def candidate_of(store: ArtifactStore, recipe: str, failed: FailedChecks) -> Candidate | str:
    """The current serving model of a recipe with its reports, or why it is no candidate."""
    try:
        model = store.current(f"serving/{recipe}")
        verify(store, model)
        newest = store.current(f"report/{recipe}")
    except ArtifactError as error:
        return str(error)
    assert isinstance(model, ServingModel) and isinstance(newest, Report)
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

        A demanded gain must reach the margin, and its interval must exclude no gain: of two equal
        models at most one in forty is better by chance. The interval of a permitted decline must
        lie within the margin.
        """
        if self.texts < FEWEST_TEXTS:
            return f": an interval needs {FEWEST_TEXTS} texts"
        if self.value < margin:
            return f", needed {margin:+.4g}"
        if margin > 0 and self.low <= 0:
            return f", needed {margin:+.4g}: may be chance"
        if margin <= 0 and self.low < margin:
            return f", needed {margin:+.4g}: may be worse than that"
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


def asset_name(voice: str) -> str:
    """The asset of a voice's promoted model."""
    return f"promoted/{voice}"


@contextmanager
def locked(store: ArtifactStore, voice: str) -> Iterator[None]:
    """Holds the lock of a voice: an asset and a command may want to change it at the same time."""
    folder = store.folder(asset_name(voice))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def promoted_now(store: ArtifactStore, voice: str) -> Promoted | None:
    """The promoted model; None before the first promotion.

    If its folder was deleted because it was damaged, the latest promotion that is left counts.
    """
    if (store.folder(asset_name(voice)) / "current").exists():
        handle = store.current(asset_name(voice))
        assert isinstance(handle, Promoted)
        return handle
    left = [readable(folder) for folder in store.published(asset_name(voice))]
    kept = [handle for handle in left if isinstance(handle, Promoted)]
    followed = {handle.facts.previous for handle in kept}
    last = [handle for handle in kept if handle.manifest.fingerprint not in followed]
    return max(last, key=lambda handle: handle.facts.when, default=None)


def history(store: ArtifactStore, voice: str) -> list[Promoted]:
    """All changes, oldest first; it starts after the last change that was deleted."""
    chain: list[Promoted] = []
    handle = promoted_now(store, voice)
    while handle is not None:
        chain.append(handle)
        previous = handle.facts.previous
        before = readable(store.folder(asset_name(voice)) / previous) if previous else None
        handle = before if isinstance(before, Promoted) else None
    return chain[::-1]


def is_cut(chain: list[Promoted]) -> bool:
    """Whether changes before the history were deleted."""
    return bool(chain) and chain[0].facts.previous is not None


def switch(
    store: ArtifactStore,
    voice: str,
    model: ServingModel | Promoted,
    recipe: str,
    event: PromotionEvent,
    why: str,
    report: Report | None = None,
) -> Promoted:
    """Make ``model`` the promoted model. The caller holds :func:`locked`.

    Raises :class:`ArtifactError` if its files are damaged.
    """
    verify(store, model)
    before = promoted_now(store, voice)
    content = model.facts.model if isinstance(model, Promoted) else model.content
    previous = before.manifest.fingerprint if before else None
    inputs = {"serving": model, **({"report": report} if report else {})}
    config = {"voice": voice, "event": event, "previous": previous}
    build = Build(asset_name(voice), inputs, config, CODE_VERSION)
    work = store.work_folder(build)
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)  # left by a killed process
    link_tree(model.path, result)
    card = {"voice": voice, "recipe": recipe, "model": content}
    (result / CARD_FILE).write_text(canonical_json(card) + "\n")
    facts = {
        **card,
        "event": event,
        "why": why,
        "previous": previous,
        "left": before.facts.model if before and event == "rolled back" else None,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    handle = store.publish(Promoted, build, result, facts)
    shutil.rmtree(work)
    assert isinstance(handle, Promoted)
    return handle


def link_tree(source: Path, target: Path) -> None:
    """Hard links to the files of an artifact, or copies if the file system has no links."""
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source)
        if not file.is_file() or str(name) in (MANIFEST, CARD_FILE):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target / name)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copy2(file, target / name)


def stack(chain: list[Promoted]) -> list[Promoted]:
    """The promoted models without those that were rolled back; the last one is promoted now.

    A rollback stands for the model that it restores if that model is not below it in the stack.
    """
    kept: list[Promoted] = []
    for handle in chain:
        if handle.facts.event == "rolled back":
            del kept[-1:]
        if not kept or kept[-1].facts.model != handle.facts.model:
            kept.append(handle)
    return kept


def refused_models(chain: list[Promoted]) -> set[str]:
    """Contents of models that were rolled back and not promoted by hand afterwards."""
    found: set[str] = set()
    for handle in chain:
        if handle.facts.left is not None:
            found.add(handle.facts.left)
        else:
            found.discard(handle.facts.model)
    return found


def rollback(store: ArtifactStore, voice: str, why: str) -> Promoted:
    """Promote the previous model again. Raises :class:`ArtifactError` if there is none."""
    with locked(store, voice):
        chain = history(store, voice)
        kept = stack(chain)
        if len(kept) < 2:
            if is_cut(chain):
                raise ArtifactError(
                    f"the previous model of {voice} is no longer stored: promote a recipe by hand"
                )
            raise ArtifactError(
                f"no other model was promoted for {voice} before; see: "
                f"python -m tts_assets.promotion history {voice}"
            )
        before = kept[-2]
        return switch(store, voice, before, before.facts.recipe, "rolled back", why)


def describe_history(chain: list[Promoted]) -> str:
    """The history as a Markdown table, newest change first."""
    lines = ["| promoted at | recipe | model | why |", "|---|---|---|---|"]
    for handle in reversed(chain):
        f = handle.facts
        lines.append(f"| {f.when} | {f.recipe} ({f.event}) | {f.model[:12]} | {f.why} |")
    if is_cut(chain):
        lines.append("| | earlier changes are no longer stored | | |")
    return "\n".join(lines)


def describe_decisions(decisions: Sequence[CandidateDecision]) -> str:
    """The decisions about all candidates as a Markdown table."""
    lines = ["| candidate | promoted | why |", "|---|---|---|"]
    lines += [f"| {d.recipe} | {'yes' if d.wins else 'no'} | {d.why} |" for d in decisions]
    return "\n".join(lines)
