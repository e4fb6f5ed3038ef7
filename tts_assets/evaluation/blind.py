"""A blind test: two syntheses of a text without their names; which is better?

``blind.html`` is a static page. It knows trials and sides by opaque ids, keeps the votes in the
browser and gives them as a JSON file. Who is who stands in ``blind_key.json``, which the page does
not have; ``votes.py`` puts the two together.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from tts_assets.config import Config, digest_of
from tts_assets.evaluation.clips import Embedder
from tts_assets.evaluation.page import HERE, Heard, heard, render
from tts_assets.evaluation.results import SampleResult, by_category
from tts_assets.provenance import statement

PAGE_FILE = "blind.html"
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
    (folder / PAGE_FILE).write_text(page)
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
