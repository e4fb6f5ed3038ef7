"""Recordings by speaker, and speaker verification on them: trials, scores and error rates.

Recordings are read from indexed corpora and split into training and test speakers.

EER is the error rate at the threshold where false alarms and misses are equally frequent. minDCF is
the minimum of ``p * miss + (1 - p) * false alarm`` over all thresholds, divided by the cost of
always accepting or always rejecting, whichever is lower (NIST SRE). Both are fractions; lower is
better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import det_curve

from tts_assets.core.accounting import SetAside, is_validation, nothing_usable
from tts_assets.core.artifacts import RawCorpus, SpeechSegments, open_artifact
from tts_assets.core.config import ConfigError, digest_of
from tts_assets.corpora.index import Utterance, utterances
from tts_assets.corpora.samples import AudioFolders
from tts_assets.speakers.config import (
    PAIRS_OF_A_SPEAKER,
    SEED_OF_TRIALS,
    UTTERANCES_OF_A_SPEAKER,
    SpeakerSelection,
)

MIN_UTTERANCES = 4  # of a speaker; speakers with fewer are set aside
P_TARGET = 0.01  # prior of the same speaker in minDCF, as in NIST SRE and VoxCeleb


@dataclass(frozen=True, order=True)
class SpeakerRecording:
    """One utterance of a speaker; ``session`` is empty if unknown."""

    speaker: str
    id: str
    path: Path
    corpus: str
    session: str
    language: str
    licence: str
    seconds: float


@dataclass(frozen=True)
class SpeakerSplit:
    """Recordings of training speakers and of test speakers, sorted."""

    train: tuple[SpeakerRecording, ...]
    test: tuple[SpeakerRecording, ...]
    set_aside: tuple[SetAside, ...]


def read_speakers(corpora: Mapping[str, Path], config: SpeakerSelection) -> SpeakerSplit:
    """All recordings of ``config.corpora``; ``corpora``: folders of their indexes.

    Raises ConfigError if fewer than two speakers are left for training or for the test.
    """
    aliases = {name: person for person, names in config.aliases.items() for name in names}
    found: dict[str, SpeakerRecording] = {}
    set_aside: list[SetAside] = []
    for corpus in config.corpora:
        for item in recordings(corpus, corpora[corpus], config.min_seconds, aliases):
            if isinstance(item, SetAside):
                set_aside.append(item)
            elif item.id in found:
                detail = f"the same audio is in {found[item.id].corpus}"
                set_aside.append(SetAside(f"{corpus}/{item.id}", "duplicate audio", detail))
            else:
                found[item.id] = item
    unknown = set(config.test_speakers) - {recording.speaker for recording in found.values()}
    if unknown:
        raise ConfigError(f"test_speakers {sorted(unknown)} have no recording; remove their names")
    kept, rare = without_rare(sorted(found.values()), MIN_UTTERANCES)
    sides = [[r for r in kept if is_test(r.speaker, config) == side] for side in (False, True)]
    for side, name in zip(sides, ("train on", "test with"), strict=True):
        if len({recording.speaker for recording in side}) < 2:
            what = (
                f"{len({r.speaker for r in kept})} speakers of {', '.join(config.corpora)} leave "
                f"fewer than two to {name}: add corpora, lower min_seconds {config.min_seconds}, "
                f"or change test_fraction (speakers need {MIN_UTTERANCES} utterances)"
            )
            raise ConfigError(nothing_usable(what, [*set_aside, *rare]))
    return SpeakerSplit(tuple(sides[0]), tuple(sides[1]), (*set_aside, *rare))


def is_test(speaker: str, config: SpeakerSelection) -> bool:
    """Whether a speaker is a test speaker; it depends on the name only."""
    if config.test_speakers:
        return speaker in config.test_speakers
    return is_validation(speaker, config.test)


def recordings(
    corpus: str, index: Path, min_seconds: float, aliases: Mapping[str, str]
) -> list[SpeakerRecording | SetAside]:
    """The recordings of one index. Raises ConfigError if ``index`` is no index of a corpus."""
    handle = open_artifact(index)
    if not isinstance(handle, RawCorpus | SpeechSegments):
        raise ConfigError(f"{index} is no index of a corpus: give raw_corpus or speech_segments")
    items: list[SpeakerRecording | SetAside] = []
    audio = AudioFolders.of(index)
    for row in utterances(handle):
        where = f"{corpus}/{row.id}"
        if not row.speaker:
            items.append(SetAside(where, "no speaker", "name speakers in the corpus or its table"))
        elif row.duration < min_seconds:
            items.append(SetAside(where, "too short", f"{row.duration:.2f} s"))
        else:
            name = f"{corpus}/{row.speaker}"
            items.append(
                SpeakerRecording(
                    speaker=aliases.get(name, name),
                    id=row.id,
                    path=row.path(audio),
                    corpus=corpus,
                    session=session_of(row),
                    language=row.language,
                    licence=row.licence,
                    seconds=row.duration,
                )
            )
    return items


def session_of(row: Utterance) -> str:
    """The recording session of an utterance; empty if unknown.

    The session that the reader gives, else the recording that the utterance was cut from, else the
    folder below the speaker's folder (a chapter, a video).
    """
    original = json.loads(row.extra).get("original_data", {})
    named = original.get("session") or original.get("recording")
    if named:
        return str(named)
    folders = Path(row.audio).parent.parts
    below = folders[folders.index(row.speaker) + 1 :] if row.speaker in folders else ()
    return "/".join(below)


def without_rare(
    found: Sequence[SpeakerRecording], least: int
) -> tuple[list[SpeakerRecording], list[SetAside]]:
    """The recordings of speakers with at least ``least`` recordings, and the others set aside."""
    counts: dict[str, int] = {}
    for recording in found:
        counts[recording.speaker] = counts.get(recording.speaker, 0) + 1
    kept = [recording for recording in found if counts[recording.speaker] >= least]
    rare = [
        SetAside(
            f"{r.corpus}/{r.id}", "rare speaker", f"{r.speaker} has {counts[r.speaker]} of {least}"
        )
        for r in found
        if counts[r.speaker] < least
    ]
    return kept, rare


@dataclass(frozen=True)
class Trial:
    """Two recordings by id, and whether they have the same speaker."""

    same: bool
    a: str
    b: str


@dataclass(frozen=True)
class Errors:
    """Error rates; ``false_alarms`` and ``misses`` over all thresholds are the DET curve."""

    eer: float
    min_dcf: float
    false_alarms: NDArray[np.float64]
    misses: NDArray[np.float64]


class TrialLimits(NamedTuple):
    """The most pairs of one speaker, and the most utterances that they are drawn from."""

    pairs: int = PAIRS_OF_A_SPEAKER
    utterances: int = UTTERANCES_OF_A_SPEAKER


REPORTED = TrialLimits()


def make_trials(
    recordings: Sequence[SpeakerRecording], limits: TrialLimits = REPORTED
) -> list[Trial]:
    """Up to ``limits.pairs`` trials of the same speaker, and as many of different speakers.

    The two recordings of a speaker are never from the same known session. The second trial pairs
    the first recording with one of another speaker. The selection follows from ids and seed only.
    Raises ConfigError if there are no trials.
    """
    by_speaker: dict[str, list[SpeakerRecording]] = {}
    for recording in sorted(recordings):
        by_speaker.setdefault(recording.speaker, []).append(recording)
    by_speaker = {
        name: sample_utterances(group, name, limits) for name, group in sorted(by_speaker.items())
    }
    if len(by_speaker) < 2:
        raise ConfigError(
            f"the test recordings that hold speech are of {', '.join(by_speaker) or 'nobody'}, and "
            "trials need two speakers: add corpora, name more test_speakers, or lower min_seconds"
        )
    trials: list[Trial] = []
    for name, group in by_speaker.items():
        rng = generator(SEED_OF_TRIALS, "trials", name)
        pairs = [(a, b) for a, b in combinations(group, 2) if not one_session(a, b)]
        chosen = rng.permutation(len(pairs))[: limits.pairs]
        others = [other for other in by_speaker if other != name]
        for index in sorted(chosen):
            a, b = pairs[index]
            other_speaker = by_speaker[others[rng.integers(len(others))]]
            c = other_speaker[rng.integers(len(other_speaker))]
            trials += [Trial(True, a.id, b.id), Trial(False, a.id, c.id)]
    if not trials:
        raise ConfigError(
            "no two test recordings of one speaker are of different sessions: add recordings of "
            "another day, or name other test_speakers"
        )
    return list(dict.fromkeys(trials))


def sample_utterances(
    group: Sequence[SpeakerRecording], name: str, limits: TrialLimits = REPORTED
) -> list[SpeakerRecording]:
    """At most ``limits.utterances`` of a speaker's recordings, drawn by the seed."""
    order = generator(SEED_OF_TRIALS, "utterances", name).permutation(len(group))
    return [group[index] for index in sorted(order[: limits.utterances])]


def one_session(a: SpeakerRecording, b: SpeakerRecording) -> bool:
    """Whether two recordings are of the same known session."""
    return bool(a.session) and (a.corpus, a.session) == (b.corpus, b.session)


def generator(seed: int, *what: str) -> np.random.Generator:
    """A random generator that follows from the seed and a purpose."""
    return np.random.default_rng(int(digest_of([seed, *what])[:16], 16))


def score_trials(
    trials: Sequence[Trial], embeddings: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float64]:
    """The cosine of each trial, (trials,); ``embeddings``: unit vectors by recording."""
    a = np.stack([embeddings[trial.a] for trial in trials])
    b = np.stack([embeddings[trial.b] for trial in trials])
    return np.einsum("td,td->t", a, b, dtype=np.float64)


def errors(scores: NDArray[np.float64], same: Sequence[bool], p_target: float) -> Errors:
    """The error rates of scores (trials,), which are high for the same speaker.

    ``p_target``: prior of the same speaker. Raises ValueError unless ``same`` has both values.
    """
    truth = np.array(same)
    if truth.all() or not truth.any():
        raise ValueError("error rates need trials of the same speaker and of different speakers")
    false_alarms, misses, _ = det_curve(truth, scores, drop_intermediate=False)
    # the ends of the curve: everything is accepted, and nothing
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
    """The rate at which both (thresholds,) are equal, interpolated linearly: the EER."""
    gap = misses - false_alarms  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = max(0, after - 1)
    rise = gap[after] - gap[before]
    fraction = -gap[before] / rise if rise else 0.0
    return float(misses[before] + fraction * (misses[after] - misses[before]))


def confusion(
    recordings: Sequence[SpeakerRecording], embeddings: Mapping[str, NDArray[np.float32]]
) -> tuple[list[str], NDArray[np.int64]]:
    """The names of the speakers, and counts (speakers, speakers) by true and nearest speaker.

    A recording is compared with the mean of each speaker's other recordings.
    """
    names = sorted({r.speaker for r in recordings})
    index = {name: number for number, name in enumerate(names)}
    truth = np.array([index[r.speaker] for r in recordings])
    vectors = np.stack([embeddings[r.id] for r in recordings])
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
    """Write trials in VoxCeleb's format: ``1 a b`` for the same speaker, else ``0 a b``."""
    path.write_text("".join(f"{int(t.same)} {t.a} {t.b}\n" for t in trials))


def read_trials(path: Path) -> list[Trial]:
    """Read trials in VoxCeleb's format. Raises ConfigError with the line that is none."""
    trials = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise ConfigError(f"{path}:{number}: write 1 a.wav b.wav for one speaker, else 0 …")
        trials.append(Trial(fields[0] == "1", fields[1], fields[2]))
    if len({trial.same for trial in trials}) < 2:
        raise ConfigError(f"{path} needs trials of the same speaker (1) and of different ones (0)")
    return trials
