"""Blind test: pairs of syntheses of the same text, without the names of the models.

``blind.html`` is a static page. It has opaque ids of trials, stores the votes in the browser, and
saves them as a JSON file. ``blind_key.json`` has the models of each trial; the page does not
contain it. This command counts the votes::

    python -m tts_assets.evaluation.blind_test COMPARISON_FOLDER votes-1.json votes-2.json …

The folder is that of ``comparison/<name>``; each file has the votes of one listener. ``p`` is the
p-value of the two-sided binomial test without ties: the null hypothesis is that either model wins a
trial with probability 0.5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from tts_assets.core.audio import statement
from tts_assets.core.config import Config, ConfigError, digest_of
from tts_assets.evaluation.page import HERE, Embedder, SynthesisView, render, synthesis_view
from tts_assets.evaluation.results import BLIND_PAGE, SampleResult, by_category

KEY_FILE = "blind_key.json"

ModelSamples = tuple[str, Path, Sequence[SampleResult]]
"""A model's name, its report's folder, and its samples in the same order as the other models'."""
Side = tuple[SampleResult, Path]
"""A synthesis and its audio file."""
Choice = Literal["first", "second", "same"]


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
        name = hashlib.sha256(f"{test} {sorted(names)} {index}".encode()).hexdigest()[:12]
        clips = [(own[index], report / str(own[index].audio)) for _, report, own in sides]
        rows.append((Trial(id=name, text=text, first=names[0], second=names[1]), clips))
    return rows


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
    trials = {trial.id: trial for trial in key.trials}
    counts: dict[tuple[str, str], Counter[str]] = {}
    for trial in key.trials:
        counts.setdefault(pair_of(trial), Counter())
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
            counts[pair_of(trial)][winner] += 1
    return [vote_count(*pair, counted) for pair, counted in sorted(counts.items())]


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
