"""Does a candidate beat the incumbent? Reports in, a verdict for each candidate out.

The pointer: the artifact ``promoted/<voice>`` whose ``current`` link says what serves.

Each change is an artifact of its own that names the one before it, so that the chain is the
history; switching is the store's one rename. An artifact holds the serving model's files as hard
links (which cost no space): what serves stays whole, whatever becomes of ``serving/<recipe>``.
"""

from __future__ import annotations

import errno
import json
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
)
from tts_assets.core.config import canonical_json, digest_of
from tts_assets.evaluation.history import readable_reports
from tts_assets.evaluation.results import AGAINST_TARGET, REPORT_FILE, same_target
from tts_assets.promotion.config import LOWER_IS_BETTER, METRICS, PromotionConfig

CODE_VERSION = "1"
CARD_FILE = "promotion.json"
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)


def asset_name(voice: str) -> str:
    return f"promoted/{voice}"


@contextmanager
def locked(store: ArtifactStore, voice: str) -> Iterator[None]:
    """One change at a time: an asset and a command may want to switch at once."""
    folder = store.folder(asset_name(voice))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def serving_now(store: ArtifactStore, voice: str) -> Promoted | None:
    """What serves; None before the first promotion."""
    if not (store.folder(asset_name(voice)) / "current").is_symlink():
        return None
    handle = store.current(asset_name(voice))
    assert isinstance(handle, Promoted)
    return handle


def history(store: ArtifactStore, voice: str) -> list[Promoted]:
    """All changes, the first one first; those alone after the last that somebody deleted."""
    chain: list[Promoted] = []
    handle = serving_now(store, voice)
    while handle is not None:
        chain.append(handle)
        previous = handle.facts.previous
        before = readable(store.folder(asset_name(voice)) / previous) if previous else None
        handle = before if isinstance(before, Promoted) else None
    return chain[::-1]


def is_cut(chain: list[Promoted]) -> bool:
    """Whether there were changes before those of the history, which are gone."""
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
    """Let ``model`` serve from now on. The caller holds :func:`locked`."""
    before = serving_now(store, voice)
    content = model.facts.model if isinstance(model, Promoted) else model.content
    previous = before.manifest.fingerprint if before else None
    inputs = {"serving": model, **({"report": report} if report else {})}
    config = {"voice": voice, "event": event, "previous": previous}
    build = Build(asset_name(voice), inputs, config, CODE_VERSION)
    work = store.work_folder(build)
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)  # of a kill in between
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
    """The files of an artifact as hard links, or copies where the disk has none."""
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
    """What served and was not rolled back from, without repetitions; the last one serves. A
    rollback stands for what it brought back where that is not below what it left."""
    left: list[Promoted] = []
    for handle in chain:
        if handle.facts.event == "rolled back":
            del left[-1:]
        if not left or left[-1].facts.model != handle.facts.model:
            left.append(handle)
    return left


def refused_models(chain: list[Promoted]) -> set[str]:
    """Contents of models that were rolled back from, and not brought back by hand since."""
    found: set[str] = set()
    for handle in chain:
        if handle.facts.left is not None:
            found.add(handle.facts.left)
        else:
            found.discard(handle.facts.model)
    return found


def rollback(store: ArtifactStore, voice: str, why: str) -> Promoted:
    """The model that served before this one serves again; raises ArtifactError where none did."""
    with locked(store, voice):
        chain = history(store, voice)
        left = stack(chain)
        if len(left) < 2:
            if is_cut(chain):
                raise ArtifactError(
                    f"what served {voice} before is no longer stored: promote a recipe by hand"
                )
            raise ArtifactError(
                f"no other model served {voice} before what serves now; see: "
                f"python -m tts_assets.promotion history {voice}"
            )
        before = left[-2]
        return switch(store, voice, before, before.facts.recipe, "rolled back", why)


def describe_promoted(chain: list[Promoted]) -> str:
    """The history as a table in Markdown, the newest change first."""
    lines = ["| when | what serves since | model | why |", "|---|---|---|---|"]
    for handle in reversed(chain):
        f = handle.facts
        lines.append(f"| {f.when} | {f.recipe} ({f.event}) | {f.model[:12]} | {f.why} |")
    if is_cut(chain):
        lines.append("| | earlier ones are no longer stored | | |")
    return "\n".join(lines)


OTHER_RECORDINGS = (
    "the model that serves was measured against other recordings; "
    "[evaluation] target names fixed ones"
)
Figures = Mapping[str, float]
FailedChecks = Callable[[Handle], Collection[str]]  # names of the blocking checks that it failed


@dataclass(frozen=True)
class Candidate:
    """A serving model and its reports: figures by :func:`bench`, so that like meets like."""

    recipe: str
    model: ServingModel
    reports: Mapping[str, Report]
    bench: str  # of the newest report

    @property
    def report(self) -> Report:
        return self.reports[self.bench]


@dataclass(frozen=True)
class CandidateDecision:
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


def contender(store: ArtifactStore, recipe: str, failed: FailedChecks) -> Candidate | str:
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
    able = Candidate(recipe, model, reports, bench(newest))
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


def decide(
    challenger: Candidate,
    serves: str,
    reports: Mapping[str, Report],
    config: PromotionConfig,
    refused: Collection[str],
) -> CandidateDecision:
    """``serves``: the incumbent's content, ``reports`` those of it by bench; ``refused`` were
    rolled back from, and do not come back by themselves."""
    recipe = challenger.recipe
    if challenger.model.content == serves:
        return CandidateDecision(recipe, False, "serves now", {})
    if challenger.model.content in refused:
        why = "was rolled back; another model of it, or `promotion promote`, brings it back"
        return CandidateDecision(recipe, False, why, {})
    if challenger.bench not in reports:
        why = "the model that serves was judged by other texts or code: not comparable"
        return CandidateDecision(recipe, False, why, {})
    before = figures(reports[challenger.bench], config.category)
    after = figures(challenger.report, config.category)
    margins = config.gains_needed
    if missing := sorted(name for name in margins if name not in before or name not in after):
        why = f"{', '.join(missing)} could not be measured of both: not comparable"
        return CandidateDecision(recipe, False, why, {})
    apart = measured_apart(reports[challenger.bench], challenger.report, margins)
    untold = f"{', '.join(apart)} not compared: {OTHER_RECORDINGS}" if apart else ""
    if margins.keys() == set(apart):
        return CandidateDecision(recipe, False, untold, {})
    gains = gained(before, after, {n: least for n, least in margins.items() if n not in apart})
    short = [
        f"{name} {gain:+.4g}, needed {margins[name]:+.4g}"
        for name, gain in gains.items()
        if gain < margins[name]
    ]
    won = "gains " + ", ".join(f"{name} {gain:+.4g}" for name, gain in gains.items())
    told = [*(short or [won]), untold]
    return CandidateDecision(recipe, not short, "; ".join(filter(None, told)), gains)


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


def winner(verdicts: Sequence[CandidateDecision], config: PromotionConfig) -> str | None:
    """The recipe with the largest gain in the first metric of the margins, of those that win."""
    first = next(iter(config.margins))
    winners = [verdict for verdict in verdicts if verdict.wins]
    return max(winners, key=lambda verdict: verdict.gains[first]).recipe if winners else None
