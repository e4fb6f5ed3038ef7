"""The validation split of samples: by utterance, by recording, or by speaker.

``[validation] by`` says what is drawn. Clips of one recording share its room, noise and manner, so
the validation loss on clips of recordings that are trained on is too low. A split of few recordings
may be empty or have most of the speech. Where ``by`` is unset, a corpus is therefore split by
recording if its clips were cut from at least :data:`MANY` recordings, and by utterance otherwise
(:func:`settled`). The codec and the language model settle it from the same sample list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tts_assets.core.accounting import ValidationSplit, held_out, is_validation
from tts_assets.core.artifacts import SampleManifest
from tts_assets.core.config import ConfigError
from tts_assets.corpora.filter import KEPT_FILE
from tts_assets.corpora.samples import Sample, scan_samples

MANY = 100  # recordings: with the default fraction, no validation at all has a chance of 0.2 %
# Quotes in JSON strings are escaped, so this pattern matches a key and its value only.
RECORDING = re.compile(rb'"recording_sha256": ?"([0-9a-f]{64})"')
BLOCK = 1 << 24  # bytes of a sample list that are searched at once
ORIGINS = ("recording_sha256", "recording")  # in original_data of a clip that was cut
NO_SPEAKER = (
    "validation.by = 'speaker' needs the speaker of each sample, and {what} has none: write "
    "validation.by = 'recording' or 'utterance', or reject such samples with [filters]"
)


def settled(split: ValidationSplit, lists: Iterable[Path]) -> ValidationSplit:
    """The split of one corpus, whose samples are in ``lists``, with ``by`` decided.

    It stays unset for a split by utterance: the canonical form, which fingerprints are made of, is
    then that of artifacts which are older than the key.
    """
    if split.by is None and has_recordings(lists):
        return split.model_copy(update={"by": "recording"})
    return split


def identified(split: ValidationSplit, corpora: Mapping[str, SampleManifest]) -> ValidationSplit:
    """The split for the fingerprint of something that is made from several corpora.

    The split of a corpus follows from its samples, which are inputs; by recording, it is another
    one than that of earlier artifacts.
    """
    each = [settled(split, [samples.path / KEPT_FILE]) for samples in corpora.values()]
    return next((own for own in each if own != split), split)


def has_recordings(lists: Iterable[Path]) -> bool:
    """Whether the samples were cut from at least :data:`MANY` recordings.

    The files are read in blocks, up to the place where that many are found.
    """
    found: set[bytes] = set()
    for path in lists:
        for block in blocks(path):
            for match in RECORDING.finditer(block):
                found.add(match[1])
                if len(found) >= MANY:
                    return True
    return False


def blocks(path: Path) -> Iterator[bytes]:
    """The file in blocks of whole lines."""
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            yield block + stream.readline()


def held_out_samples(lists: list[Path], split: ValidationSplit) -> NDArray[np.bool_]:
    """Whether each sample of the files is held out, shape (samples,).

    ``split`` is settled. Raises :class:`ConfigError` if a sample has no speaker and the split is by
    speaker.
    """
    return held_out_rows(scan_samples(lists).select("id", key=group_key(split)).collect(), split)


def held_out_rows(rows: pl.DataFrame, split: ValidationSplit) -> NDArray[np.bool_]:
    """As :func:`held_out_samples`, for rows with ``id`` and the :func:`group_key` as ``key``."""
    unknown = rows.filter(pl.col("key") == "")
    if split.by == "speaker" and len(unknown):
        raise ConfigError(NO_SPEAKER.format(what=unknown["id"][0]))
    names = rows["key"].unique()
    held = pl.Series(held_out([name.encode() for name in names], split))
    drawn = pl.DataFrame({"key": names, "held": held})
    return rows.join(drawn, on="key", how="left", maintain_order="left")["held"].to_numpy()


def group_key(split: ValidationSplit) -> pl.Expr:
    """The name that is drawn for each row of :func:`scan_samples`."""
    if split.by == "speaker":
        return pl.col("speaker_id")
    if split.by != "recording":
        return pl.col("id")
    original = pl.col("original_data")
    return pl.coalesce(*(original.str.json_path_match(f"$.{name}") for name in ORIGINS), "id")


def is_held_out(sample: Sample, split: ValidationSplit) -> bool:
    """:func:`held_out_samples` of one sample."""
    if split.by == "speaker":
        if not sample.speaker_id:
            raise ConfigError(NO_SPEAKER.format(what=sample.id))
        return is_validation(sample.speaker_id, split)
    origins = (sample.original_data.get(name) for name in ORIGINS if split.by == "recording")
    return is_validation(next(filter(None, origins), sample.id), split)
