"""Recordings by speaker, read from indexed corpora and split into training and test speakers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tts_assets.core.accounting import SetAside, is_validation, nothing_usable
from tts_assets.core.artifacts import RawCorpus, SpeechSegments, open_artifact
from tts_assets.core.config import ConfigError
from tts_assets.corpora.index import Utterance, utterances
from tts_assets.corpora.samples import AudioFolders
from tts_assets.speakers.config import SpeakerSelection

MIN_UTTERANCES = 4  # of a speaker; speakers with fewer are set aside


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
                f"or change test (speakers need {MIN_UTTERANCES} utterances)"
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
