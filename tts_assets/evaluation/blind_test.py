"""Blind test: pairs of syntheses of the same text, without the names of the models.

``blind.html`` is a static page. It has opaque ids of trials, stores the votes in the browser, and
saves them as a JSON file. ``blind_key.json`` has the models of each trial; the page does not
contain it. This command counts the votes::

    python -m tts_assets.evaluation.blind_test COMPARISON_FOLDER votes-1.json votes-2.json …

The folder is that of ``comparison/<name>``; each file has the votes of one listener. ``p`` is the
p-value of the two-sided binomial test without ties: the null hypothesis is that either model wins a
trial with probability 0.5.

The votes also become preference pairs for DPO (``rlhf/preferences.py``): of each trial the
synthesis that more listeners chose, and the other one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from tts_assets.audio_models.wer import normalize_for_match
from tts_assets.core.artifacts import (
    ArtifactStore,
    Comparison,
    EvaluationSuite,
    InputRef,
    Report,
    ServingModel,
    open_artifact,
    readable,
    store_of,
)
from tts_assets.core.audio import statement
from tts_assets.core.config import Config, ConfigError, digest_of
from tts_assets.evaluation.page import HERE, Embedder, SynthesisView, render, synthesis_view
from tts_assets.evaluation.results import BLIND_PAGE, SampleResult, by_category, read_samples
from tts_assets.evaluation.suite import SUITE_FILE, SuiteText, read_suite
from tts_assets.rlhf.dpo_config import PairSource, PreferencesProgram, VotedTrial
from tts_assets.speechlm.prompts import describe

KEY_FILE = "blind_key.json"

ModelSamples = tuple[str, Path, Sequence[SampleResult]]
"""A model's name, its report's folder, and its samples in the same order as the other models'."""
Side = tuple[SampleResult, Path]
"""A synthesis and its audio file."""
Choice = Literal["first", "second", "same"]
SampleKey = tuple[str, str, int, float | None]
"""``SampleResult.key``."""


class Trial(Config):
    """``first`` and ``second``: the models whose syntheses the page plays under these names."""

    id: str
    text: str
    first: str
    second: str


class BlindKey(Config):
    """The models of all trials. ``test``: digest of the test, which votes must refer to."""

    test: str
    trials: tuple[Trial, ...]


class Votes(Config):
    """A listener's file: the test, the listener's name, and the choice of each trial."""

    test: str
    listener: str = ""
    votes: dict[str, Choice]


@dataclass(frozen=True)
class VoteCount:
    """Two models over all listeners. ``low``, ``high``: 95 % interval of b's fraction of wins."""

    a: str
    b: str
    a_wins: int
    b_wins: int
    ties: int
    p: float
    low: float
    high: float

    def __str__(self) -> str:
        decided = self.a_wins + self.b_wins
        fraction = f"{self.b_wins / decided:.0%}" if decided else "none"
        return (
            f"{self.a} {self.a_wins}, {self.b} {self.b_wins}, no difference {self.ties}: "
            f"{self.b} wins {fraction} (95 % interval {self.low:.0%} to {self.high:.0%}), "
            f"p = {self.p:.3f}"
        )


def write_blind_test(folder: Path, models: Sequence[ModelSamples], trials_each: int) -> None:
    """Write page and key with ``trials_each`` trials of each pair of models, in random order.

    The random numbers follow from the samples: the same reports give the same test.
    """
    test = digest_of([[name, list(samples)] for name, _, samples in models])[:20]
    rng = random.Random(test)
    pairs = [draw_trials(pair, test, trials_each, rng) for pair in combinations(models, 2)]
    rows = [row for pair in pairs for row in pair]
    rows = rng.sample(rows, len(rows))
    # The comments of the files name the model, so the page gets a neutral one.
    embed = Embedder([path for _, sides in rows for _, path in sides], comment=statement())
    trials: list[tuple[Trial, SynthesisView, SynthesisView]] = []
    for trial, sides in rows:
        first, second = (synthesis_view(path.parent.parent, s, embed) for s, path in sides)
        if first.player and second.player:
            trials.append((trial, first, second))
    page = render(HERE / "blind.html.j2", title="Blind test", test=test, trials=trials)
    (folder / BLIND_PAGE).write_text(page)
    key = BlindKey(test=test, trials=tuple(trial for trial, _, _ in trials))
    (folder / KEY_FILE).write_text(json.dumps(key.model_dump(), indent=1, sort_keys=True) + "\n")


def draw_trials(
    pair: tuple[ModelSamples, ModelSamples], test: str, count: int, rng: random.Random
) -> list[tuple[Trial, list[Side]]]:
    """Trials of two models, with the sides in random order."""
    rows = []
    for index in draw_samples(pair[0][2], pair[1][2], count, rng):
        sides = rng.sample(pair, 2)
        names = [name for name, _, _ in sides]
        text = sides[0][2][index].text
        name = trial_id(test, names, index)
        clips = [(own[index], report / str(own[index].audio)) for _, report, own in sides]
        rows.append((Trial(id=name, text=text, first=names[0], second=names[1]), clips))
    return rows


def trial_id(test: str, models: Iterable[str], index: int) -> str:
    """The id of the trial of two models with the sample ``index``."""
    return hashlib.sha256(f"{test} {sorted(models)} {index}".encode()).hexdigest()[:12]


def draw_samples(
    a: Sequence[SampleResult], b: Sequence[SampleResult], count: int, rng: random.Random
) -> list[int]:
    """Indices of ``count`` samples with audio of both, categories in turn, each text once."""
    indices = {sample.key: index for index, sample in enumerate(a)}
    usable = [x for x, y in zip(a, b, strict=True) if x.audio and y.audio and x.seed == a[0].seed]
    groups = [rng.sample(rows, len(rows)) for rows in by_category(usable).values()]
    chosen: list[int] = []
    while len(chosen) < count and any(groups):
        chosen += [indices[group.pop().key] for group in groups if group]
    return chosen[:count]


def count_votes(key: BlindKey, ballots: Iterable[Votes]) -> list[VoteCount]:
    """The result of each pair of models, sorted by name.

    Raises :class:`ConfigError` for votes of another test.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    by_trial = count_by_trial(key, ballots)
    for trial in key.trials:
        counts.setdefault(pair_of(trial), Counter()).update(by_trial[trial.id])
    return [vote_count(*pair, counted) for pair, counted in sorted(counts.items())]


def count_by_trial(key: BlindKey, ballots: Iterable[Votes]) -> dict[str, Counter[str]]:
    """The votes of each trial by model, ties under the empty name.

    Raises :class:`ConfigError` for votes of another test.
    """
    trials = {trial.id: trial for trial in key.trials}
    counts: dict[str, Counter[str]] = {name: Counter() for name in trials}
    for ballot in ballots:
        if ballot.test != key.test:
            raise ConfigError(
                f"the votes of {ballot.listener or 'a listener'} are of test {ballot.test}, and "
                f"this comparison's is {key.test}: use the folder of the page with the votes"
            )
        for name, choice in ballot.votes.items():
            if name not in trials:
                raise ConfigError(f"test {key.test} has no trial {name!r}: was the file edited?")
            trial = trials[name]
            winner = {"first": trial.first, "second": trial.second, "same": ""}[choice]
            counts[name][winner] += 1
    return counts


@dataclass(frozen=True)
class VotedTest:
    """A blind test with votes: its comparison, its compared reports by model, and its ballots."""

    comparison: Comparison
    reports: dict[str, Report]
    ballots: list[Votes]

    def models(self) -> dict[str, ServingModel]:
        """The serving model of each report, by recipe.

        Raises :class:`ConfigError` for an external model.
        """
        found: dict[str, ServingModel] = {}
        for name, report in self.reports.items():
            source = report.manifest.inputs["serving"]
            opened = open_artifact(stored(store_of(report), source))
            if not isinstance(opened, ServingModel):
                raise ConfigError(f"{name} is an external model, whose speech has no codes")
            found[name] = opened
        return found

    def trials(self, evaluated: Collection[str]) -> list[VotedTrial]:
        """The trials with votes, in the order of the page, for ``rlhf/preferences.py``.

        ``evaluated``: the words of texts that models are evaluated on, which give no pair.
        """
        suites = [report.manifest.inputs["suite"] for report in self.reports.values()]
        suite = stored(store_of(self.comparison), suites[0])
        # Published suites have the language of each text.
        texts = {text.id: text for text in read_suite(suite / SUITE_FILE)}
        labels = {name: label(model) for name, model in self.models().items()}
        key = BlindKey.from_json(self.comparison.path / KEY_FILE)
        samples = {name: read_samples(report.path) for name, report in self.reports.items()}
        sample_of = {
            trial_id(key.test, pair, index): sample
            for pair in combinations(samples, 2)
            for index, sample in enumerate(next(iter(samples.values())))
        }
        audio = {
            (name, sample.key): self.reports[name].path / str(sample.audio)
            for name, own in samples.items()
            for sample in own
        }
        counts = count_by_trial(key, self.ballots)
        return [
            voted_trial(trial, counts[trial.id], sample, texts[sample.id], audio, labels, evaluated)
            for trial in key.trials
            for sample in [sample_of[trial.id]]
            if counts[trial.id]
        ]


def voted_trial(
    trial: Trial,
    counted: Counter[str],
    sample: SampleResult,
    text: SuiteText,
    audio: Mapping[tuple[str, SampleKey], Path],
    labels: Mapping[str, str],
    evaluated: Collection[str],
) -> VotedTrial:
    """A trial with its votes ``counted`` by model, of a ``sample`` of ``text``.

    ``audio``: the files by model and sample; ``labels`` of the models, by recipe; ``evaluated``:
    the words of texts that give no pair.
    """
    chosen, rejected = sorted(pair_of(trial), key=lambda name: -counted[name])
    reason = ""
    if counted[chosen] == counted[rejected]:
        reason = "no majority"
    elif normalize_for_match(text.text, text.language) in evaluated:
        reason = "in the evaluation suite"
    return VotedTrial(
        id=trial.id,
        text=text.text,
        language=text.language,
        description=describe(text.voice_description, text.emotion, text.style),
        prompt_wav=text.prompt_wav,
        prompt_text=text.prompt_text,
        seed=sample.seed,
        chosen=labels[chosen],
        rejected=labels[rejected],
        audio={labels[name]: audio[name, sample.key] for name in (chosen, rejected)},
        margin=counted[chosen] / max(1, counted[chosen] + counted[rejected]),
        reason=reason,
    )


def label(model: ServingModel) -> str:
    """The recipe of a serving model and the start of its digest: another one after a training."""
    return f"{model.facts.recipe}@{model.content[:12]}"


def voted_tests(store: ArtifactStore, asset: str, files: Iterable[Path]) -> list[VotedTest]:
    """The blind tests of the comparison ``asset`` that the vote files are of, sorted by test.

    A comparison is made again when a report changes, so earlier versions count as well. Raises
    :class:`ConfigError` for votes of none of the stored versions, and :class:`ArtifactError` if a
    report is no longer stored.
    """
    versions: dict[str, Comparison] = {}
    for folder in store.published(asset):
        opened = readable(folder)
        if isinstance(opened, Comparison):
            versions[BlindKey.from_json(folder / KEY_FILE).test] = opened
    ballots: dict[str, list[Votes]] = {}
    for path in files:
        votes = Votes.from_json(path)
        if votes.test not in versions:
            raise ConfigError(
                f"{path} has votes of test {votes.test}, which no stored version of "
                f"{asset} has: remove the file, or name the comparison of its page"
            )
        ballots.setdefault(votes.test, []).append(votes)
    found = []
    for test, own in sorted(ballots.items()):
        manifest = versions[test].manifest
        models = manifest.config["models"]  # in the order of the comparison
        reports = {name: Report.open(stored(store, manifest.inputs[name])) for name in models}
        found.append(VotedTest(versions[test], reports, own))
    return found


def voted_pairs(
    store: ArtifactStore, asset: str, files: Iterable[Path], held_out: EvaluationSuite
) -> PairSource:
    """The votes on the comparison ``asset`` as pairs. Raises as :func:`voted_tests`.

    Texts of ``held_out``, the suite that models are evaluated on, give no pair.
    """
    tests = voted_tests(store, asset, files)
    texts = read_suite(held_out.path / SUITE_FILE)
    evaluated = {normalize_for_match(text.text, text.language) for text in texts}
    trials = [trial for test in tests for trial in test.trials(evaluated)]
    models = {label(model): model for test in tests for model in test.models().values()}
    folders = {name: model.path for name, model in models.items()}
    known = [trial.model_dump(exclude={"audio", "prompt_wav"}) for trial in trials]
    return PairSource(
        {"trials": known},
        {"models": models, "tests": {t.comparison.content[:12]: t.comparison for t in tests}},
        lambda work: PreferencesProgram(run_dir=work, trials=trials, models=folders),
    )


def stored(store: ArtifactStore, reference: InputRef) -> Path:
    """The folder of an input of an artifact."""
    return store.folder(reference.asset, reference.partition) / reference.fingerprint


def pair_of(trial: Trial) -> tuple[str, str]:
    """The two models of a trial, sorted by name."""
    return min(trial.first, trial.second), max(trial.first, trial.second)


def vote_count(a: str, b: str, counted: Counter[str]) -> VoteCount:
    """The result of two models; ``counted``: wins by model, ties under the empty name."""
    from scipy.stats import binomtest

    decided = counted[a] + counted[b]
    if not decided:
        return VoteCount(a, b, 0, 0, counted[""], 1.0, 0.0, 1.0)
    test = binomtest(counted[b], decided)
    interval = test.proportion_ci()
    return VoteCount(
        a, b, counted[a], counted[b], counted[""], test.pvalue, interval.low, interval.high
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Count the votes and print the results."""
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.evaluation.blind_test",
        description="Count the votes of a blind test.",
    )
    parser.add_argument("comparison", type=Path, help="folder of a comparison artifact")
    parser.add_argument("votes", type=Path, nargs="+", help="JSON files of the listeners")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        key = BlindKey.from_json(options.comparison / KEY_FILE)
        found = count_votes(key, [Votes.from_json(path) for path in options.votes])
    except ConfigError as error:
        parser.exit(1, f"{error}\n")
    if options.json:
        print(json.dumps([vars(row) for row in found], indent=1))
    else:
        print(f"{len(options.votes)} listeners")
        print("\n".join(str(row) for row in found))


if __name__ == "__main__":
    main()
