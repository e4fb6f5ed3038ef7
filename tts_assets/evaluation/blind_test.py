"""A blind test: two syntheses of a text without their names; which is better?

``blind.html`` is a static page. It knows trials and sides by opaque ids, keeps the votes in the
browser and gives them as a JSON file. Who is who stands in ``blind_key.json``, which the page does
not have; ``votes.py`` puts the two together.

Who won the blind test::

    python -m tts_assets.evaluation.blind_test COMPARISON_FOLDER votes-1.json votes-2.json …

The folder is that of ``comparison/<name>``, a file the votes of one listener as ``blind.html``
gives them. Two models that are equally good win as a fair coin does: ``p`` is the two-sided
binomial test of that, ties left out.
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
from tts_assets.evaluation.page import HERE, Embedder, Heard, heard, render
from tts_assets.evaluation.results import SampleResult, by_category

BLIND_PAGE_FILE = "blind.html"
KEY_FILE = "blind_key.json"

Candidate = tuple[str, Path, Sequence[SampleResult]]
"""A model's name, its report's folder, its samples in the same order as every other's."""


Side = tuple[SampleResult, Path]


class Trial(Config):
    """``first`` and ``second``: the models whose syntheses are played under these names."""

    id: str
    text: str
    first: str
    second: str


class BlindKey(Config):
    """``test`` is the digest of the test: votes of another are not counted."""

    test: str
    trials: tuple[Trial, ...]


def write_blind_test(folder: Path, models: Sequence[Candidate], trials_each: int) -> None:
    """``trials_each`` trials of each pair of models, in an order that tells nothing.

    What is drawn follows from the samples: the same reports give the same test.
    """
    test = digest_of([[name, list(samples)] for name, _, samples in models])[:20]
    drawn = random.Random(test)
    pairs = [draw(pair, test, trials_each, drawn) for pair in combinations(models, 2)]
    rows = [row for pair in pairs for row in pair]
    rows = drawn.sample(rows, len(rows))
    embed = Embedder([path for _, sides in rows for _, path in sides], comment=statement())
    trials = []
    for trial, sides in rows:
        first, second = (heard_at(path, sample, embed) for sample, path in sides)
        if first.player and second.player:
            trials.append((trial, first, second))
    page = render(HERE / "blind.html.j2", title="Blind test", test=test, trials=trials)
    (folder / BLIND_PAGE_FILE).write_text(page)
    key = BlindKey(test=test, trials=tuple(trial for trial, _, _ in trials))
    (folder / KEY_FILE).write_text(json.dumps(key.model_dump(), indent=1, sort_keys=True) + "\n")


def draw(
    pair: tuple[Candidate, Candidate], test: str, count: int, drawn: random.Random
) -> list[tuple[Trial, list[Side]]]:
    """Trials of two models, their sides in random order."""
    rows = []
    for number in spread(pair[0][2], pair[1][2], count, drawn):
        sides = drawn.sample(pair, 2)
        names = [name for name, _, _ in sides]
        said = sides[0][2][number].text
        name = hashlib.sha256(f"{test} {sorted(names)} {number}".encode()).hexdigest()[:12]
        clips = [(own[number], report / str(own[number].audio)) for _, report, own in sides]
        rows.append((Trial(id=name, text=said, first=names[0], second=names[1]), clips))
    return rows


def heard_at(path: Path, sample: SampleResult, embed: Embedder) -> Heard:
    return heard(path.parent.parent, sample, embed)


def spread(
    a: Sequence[SampleResult], b: Sequence[SampleResult], count: int, drawn: random.Random
) -> list[int]:
    """Places of ``count`` samples that both said aloud, each category in turn, each text once."""
    numbers = {sample.key: place for place, sample in enumerate(a)}
    usable = [x for x, y in zip(a, b, strict=True) if x.audio and y.audio and x.seed == a[0].seed]
    groups = [drawn.sample(rows, len(rows)) for rows in by_category(usable).values()]
    chosen: list[int] = []
    while len(chosen) < count and any(groups):
        chosen += [numbers[group.pop().key] for group in groups if group]
    return chosen[:count]


Choice = Literal["first", "second", "same"]


class Votes(Config):
    """A listener's file: of which test, who listened, and the choice of each trial."""

    test: str
    listener: str = ""
    votes: dict[str, Choice]


@dataclass(frozen=True)
class Tally:
    """Two models over all listeners; ``low`` and ``high``: 95 % interval of b's share of wins."""

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
        share = f"{self.b_wins / decided:.0%}" if decided else "none"
        return (
            f"{self.a} {self.a_wins}, {self.b} {self.b_wins}, no difference {self.ties}: "
            f"{self.b} wins {share} (95 % interval {self.low:.0%} to {self.high:.0%}), "
            f"p = {self.p:.3f}"
        )


def tally(key: BlindKey, ballots: Iterable[Votes]) -> list[Tally]:
    """Each pair of models, by name. Raises :class:`ConfigError` for votes of another test."""
    trials = {trial.id: trial for trial in key.trials}
    counts: dict[tuple[str, str], Counter[str]] = {}
    for trial in key.trials:
        counts.setdefault(tuple(sorted((trial.first, trial.second))), Counter())  # type: ignore[arg-type]
    for ballot in ballots:
        if ballot.test != key.test:
            raise ConfigError(
                f"the votes of {ballot.listener or 'a listener'} are of test {ballot.test}, and "
                f"this comparison's is {key.test}: give the folder that the page came from"
            )
        for name, choice in ballot.votes.items():
            if name not in trials:
                raise ConfigError(f"test {key.test} has no trial {name!r}: was the file edited?")
            trial = trials[name]
            winner = {"first": trial.first, "second": trial.second, "same": ""}[choice]
            counts[tuple(sorted((trial.first, trial.second)))][winner] += 1  # type: ignore[index]
    return [tallied(*pair, counted) for pair, counted in sorted(counts.items())]


def tallied(a: str, b: str, counted: Counter[str]) -> Tally:
    from scipy.stats import binomtest

    decided = counted[a] + counted[b]
    if not decided:
        return Tally(a, b, 0, 0, counted[""], 1.0, 0.0, 1.0)
    test = binomtest(counted[b], decided)
    interval = test.proportion_ci()
    return Tally(
        a, b, counted[a], counted[b], counted[""], test.pvalue, interval.low, interval.high
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.evaluation.blind_test",
        description=(__doc__ or "").split("::")[0],
    )
    parser.add_argument("comparison", type=Path, help="folder of a comparison artifact")
    parser.add_argument("votes", type=Path, nargs="+", help="files that listeners downloaded")
    parser.add_argument("--json", action="store_true", help="numbers for machines")
    options = parser.parse_args(argv)
    try:
        key = BlindKey.from_json(options.comparison / KEY_FILE)
        found = tally(key, [Votes.from_json(path) for path in options.votes])
    except ConfigError as error:
        parser.exit(1, f"{error}\n")
    if options.json:
        print(json.dumps([vars(row) for row in found], indent=1))
    else:
        print(f"{len(options.votes)} listeners")
        print("\n".join(str(row) for row in found))


if __name__ == "__main__":
    main()
