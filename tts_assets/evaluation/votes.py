"""Who won the blind test::

    python -m tts_assets.evaluation.votes COMPARISON_FOLDER votes-1.json votes-2.json …

The folder is that of ``comparison/<name>``, a file the votes of one listener as ``blind.html``
gives them. Two models that are equally good win as a fair coin does: ``p`` is the two-sided
binomial test of that, ties left out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tts_assets.config import Config, ConfigError
from tts_assets.evaluation.blind import KEY_FILE, BlindKey

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
        prog="python -m tts_assets.evaluation.votes", description=(__doc__ or "").split("::")[0]
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
