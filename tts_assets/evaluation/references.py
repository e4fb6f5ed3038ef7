"""Reference recordings of a report: clips for speaker similarity, and the speaker's pace.

Both come from the sample lists of the code arrays of the reference corpora.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tts_assets.core.artifacts import CodeArrays, Handle, sha256_file
from tts_assets.core.config import ConfigError, digest_of
from tts_assets.corpora.audio_paths import AudioFolders
from tts_assets.evaluation.metrics.prosody import spoken_characters
from tts_assets.evaluation.suite import SuiteText

Sample = dict[str, Any]
Clip = tuple[AudioFolders, Sample]


def samples_of(arrays: Mapping[str, Handle], split: str) -> list[Sample]:
    """The samples of a split ("train" or "val") of all corpora."""
    return [
        json.loads(line)
        for handle in arrays.values()
        for line in (handle.path / f"{split}_samples.jsonl").read_text().split("\n")
        if line.strip()
    ]


def clips_of(arrays: Mapping[str, Handle], split: str) -> list[Clip]:
    """The samples of a split of all corpora, with the folders of their audio."""
    return [
        (audio, sample)
        for name, handle in arrays.items()
        for audio in [AudioFolders.of(handle.path)]
        for sample in samples_of({name: handle}, split)
    ]


def reference_clips(arrays: Mapping[str, CodeArrays], count: int) -> tuple[Path, ...]:
    """The ``count`` longest validation clips; training clips if there are none.

    Raises FileNotFoundError if a clip is gone.
    """
    return longest(clips_of(arrays, "val") or clips_of(arrays, "train"), count)


def named_speakers(
    arrays: Mapping[str, CodeArrays], texts: Iterable[SuiteText], count: int
) -> dict[str, tuple[Path, ...]]:
    """The longest clips of each speaker that a text names; validation clips if there are any.

    Raises :class:`ConfigError` for a speaker that no corpus has.
    """
    names = sorted({text.speaker for text in texts if text.speaker})
    if not names:
        return {}
    val, train = clips_of(arrays, "val"), clips_of(arrays, "train")
    found = {}
    for name in names:
        own = [[clip for clip in clips if speaker_of(clip) == name] for clips in (val, train)]
        if not any(own):
            known = sorted({speaker_of(clip) for clip in [*val, *train]})
            raise ConfigError(
                f"the suite names speaker {name!r}, but the corpora {sorted(arrays)} have no such "
                f"speaker; speakers there: {known[:20]}"
            )
        found[name] = longest(own[0] or own[1], count)
    return found


def speaker_of(clip: Clip) -> str:
    """The speaker of a clip; empty if unknown."""
    return str(clip[1].get("speaker_id", ""))


def longest(clips: Iterable[Clip], count: int) -> tuple[Path, ...]:
    """The audio files of the longest clips. Raises FileNotFoundError if one is gone."""
    chosen = sorted(clips, key=lambda clip: (-clip[1]["duration"], clip[1]["id"]))[:count]
    return tuple(audio.existing(sample["wav_path"]) for audio, sample in chosen)


def references_digest(
    references: Iterable[Path], speakers: Mapping[str, Iterable[Path]], rate: float
) -> str:
    """The digest of reference clips and pace.

    Speaker similarity and duration ratio of two reports are comparable only if it is the same.
    """
    clips_of = {name: [sha256_file(clip) for clip in clips] for name, clips in speakers.items()}
    return digest_of([[sha256_file(clip) for clip in references], clips_of, rate])


def expected_rate(arrays: Mapping[str, CodeArrays], language: str) -> float:
    """Characters per second of the recordings with their pauses; 0 if durations are unknown.

    Validation clips are enough where there are any.
    """
    samples = samples_of(arrays, "val") or samples_of(arrays, "train")
    timed = [sample for sample in samples if sample["duration"] > 0]
    seconds = sum(sample["duration"] for sample in timed)
    characters = sum(spoken_characters(sample["transcript"], language) for sample in timed)
    return round(characters / seconds, 3) if seconds else 0.0
