"""Verification: is it the same speaker? A published list of trials, and the errors on it.

EER: where as many trials of two speakers are accepted as of one refused. minDCF: the least of
``p * miss + (1 - p) * false alarm`` over all thresholds, by the better of accepting or refusing
everything (NIST SRE). Both fractions, the lower the better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import det_curve

from tts_assets.core.config import ConfigError, digest_of
from tts_assets.speakers.config import TrialConfig
from tts_assets.speakers.dataset import SpeakerRecording


@dataclass(frozen=True)
class Trial:
    """Two recordings by id, and whether one person speaks in both."""

    same: bool
    a: str
    b: str


@dataclass(frozen=True)
class Errors:
    """``false_alarms`` and ``misses`` over all thresholds are the DET curve."""

    eer: float
    min_dcf: float
    false_alarms: NDArray[np.float64]
    misses: NDArray[np.float64]


def make_trials(recordings: Sequence[SpeakerRecording], config: TrialConfig) -> list[Trial]:
    """Up to ``per_speaker`` pairs of each speaker, never of one session where it is known, and
    for each a pair of one of the two with another speaker's recording.

    Which, follows from the ids and the seed alone. Raises ConfigError where there are none.
    """
    voices: dict[str, list[SpeakerRecording]] = {}
    for recording in sorted(recordings):
        voices.setdefault(recording.speaker, []).append(recording)
    voices = {name: some(group, name, config) for name, group in sorted(voices.items())}
    if len(voices) < 2:
        raise ConfigError(
            f"the test recordings that hold speech are of {', '.join(voices) or 'nobody'}, and "
            "trials need two speakers: add corpora, name more test_speakers, or lower min_seconds"
        )
    trials: list[Trial] = []
    for name, group in voices.items():
        rng = generator(config.seed, "trials", name)
        pairs = [(a, b) for a, b in combinations(group, 2) if not one_session(a, b)]
        chosen = rng.permutation(len(pairs))[: config.per_speaker]
        others = [other for other in voices if other != name]
        for place in sorted(chosen):
            a, b = pairs[place]
            stranger = voices[others[rng.integers(len(others))]]
            c = stranger[rng.integers(len(stranger))]
            trials += [Trial(True, a.id, b.id), Trial(False, a.id, c.id)]
    if not trials:
        raise ConfigError(
            "no two test recordings of one speaker are of different sessions: add recordings of "
            "another day, name other test_speakers, or raise trials.max_utterances "
            f"{config.max_utterances}"
        )
    return list(dict.fromkeys(trials))


def some(
    group: Sequence[SpeakerRecording], name: str, config: TrialConfig
) -> list[SpeakerRecording]:
    """At most ``max_utterances`` of a speaker's recordings."""
    order = generator(config.seed, "utterances", name).permutation(len(group))
    return [group[place] for place in sorted(order[: config.max_utterances])]


def one_session(a: SpeakerRecording, b: SpeakerRecording) -> bool:
    return bool(a.session) and (a.corpus, a.session) == (b.corpus, b.session)


def generator(seed: int, *what: str) -> np.random.Generator:
    return np.random.default_rng(int(digest_of([seed, *what])[:16], 16))


def score_trials(
    trials: Sequence[Trial], voices: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float64]:
    """The cosine of each trial; ``voices``: unit vectors by recording."""
    a = np.stack([voices[trial.a] for trial in trials])
    b = np.stack([voices[trial.b] for trial in trials])
    return np.einsum("td,td->t", a, b, dtype=np.float64)


def errors(scores: NDArray[np.float64], same: Sequence[bool], p_target: float) -> Errors:
    """Of scores, high for one speaker; ``same`` must have both kinds."""
    truth = np.array(same)
    if truth.all() or not truth.any():
        raise ValueError("errors need trials of one speaker and of two")
    false_alarms, misses, _ = det_curve(truth, scores, drop_intermediate=False)
    # the curve's ends: nothing is accepted, and everything
    false_alarms = np.concatenate([[1.0], false_alarms, [0.0]])
    misses = np.concatenate([[0.0], misses, [1.0]])
    costs = p_target * misses + (1 - p_target) * false_alarms
    return Errors(
        eer=crossing(false_alarms, misses),
        min_dcf=float(costs.min() / min(p_target, 1 - p_target)),
        false_alarms=false_alarms,
        misses=misses,
    )


def crossing(false_alarms: NDArray[np.float64], misses: NDArray[np.float64]) -> float:
    """Where the two are equal, on straight lines between thresholds."""
    gap = misses - false_alarms  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = max(0, after - 1)
    rise = gap[after] - gap[before]
    share = -gap[before] / rise if rise else 0.0
    return float(misses[before] + share * (misses[after] - misses[before]))


def confusion(
    recordings: Sequence[SpeakerRecording], voices: Mapping[str, NDArray[np.float32]]
) -> tuple[list[str], NDArray[np.int64]]:
    """Who is taken for whom: speakers, and counts [truth, nearest], each recording against the
    means of all speakers' other recordings."""
    names = sorted({r.speaker for r in recordings})
    place = {name: number for number, name in enumerate(names)}
    truth = np.array([place[r.speaker] for r in recordings])
    vectors = np.stack([voices[r.id] for r in recordings])
    sums = np.zeros((len(names), vectors.shape[1]), dtype=np.float64)
    np.add.at(sums, truth, vectors)
    cosines = vectors @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T
    without = sums[truth] - vectors
    norms = np.linalg.norm(without, axis=1)
    own = np.einsum("rd,rd->r", vectors, without) / np.maximum(norms, 1e-12)
    cosines[np.arange(len(truth)), truth] = own
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (truth, cosines.argmax(axis=1)), 1)
    return names, counts


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """VoxCeleb's format: ``1 a b`` of one speaker, ``0 a b`` of two."""
    path.write_text("".join(f"{int(t.same)} {t.a} {t.b}\n" for t in trials))
