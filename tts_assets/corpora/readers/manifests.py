"""Readers of manifests: sample JSONL, Lhotse's supervisions, Parquet of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tts_assets.core.accounting import SetAside
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import LANGUAGE_TAG, CorpusConfig, ParquetOptions
from tts_assets.corpora.readers.files import (
    Embedded,
    Entry,
    RecordingPart,
    entry,
    files_below,
    json_object,
    lines,
    listed,
)
from tts_assets.corpora.samples import LONGEST_LINE, Sample

SAMPLES_FILE = "samples.jsonl"
RECORDINGS, SUPERVISIONS = "recordings", "supervisions"
LONGEST = 1e7  # seconds, four months
KEPT_FIELDS = (
    "emotion",
    "style",
    "voice_description",
    "sound_effect",
    "dnsmos_mos_ovr",
    "original_data",
)


def read_jsonl(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """Sample JSONL: the schema of the reference trainer, one JSON object per line.

    ``root`` is the file, or a folder with ``samples.jsonl``. Audio paths are absolute, or relative
    to the folder of the file; a relative path must not lead out of it.
    """
    path = root / SAMPLES_FILE if root.is_dir() else root
    for number, line in lines(path):
        yield _read_line(path.parent, config, f"{path.name}:{number}", line)


def _read_line(
    folder: Path, config: CorpusConfig, where: str, line: str | SetAside
) -> Entry | SetAside:
    sample = json_object(line, where)
    if isinstance(sample, SetAside):
        return sample
    wav_path = sample.get("wav_path")
    if not isinstance(wav_path, str) or not wav_path:
        return SetAside(where, "no wav_path", "every sample needs the path of its audio")
    if bad := _no_text(sample, ("transcript", "speaker_id", "language"), where):
        return bad
    fields = {name: sample[name] for name in KEPT_FIELDS if sample.get(name)}
    try:
        checked = Sample.parse({"id": "", "wav_path": "", "transcript": "", **fields}, where)
    except ConfigError as error:
        return SetAside(where, "a field of another type", str(error))
    return entry(
        config,
        listed(folder, wav_path, where, absolute=True),
        where,
        str(sample.get("transcript") or ""),
        speaker=str(sample.get("speaker_id") or ""),
        language=str(sample.get("language") or "").replace("unknown", ""),
        licence=str(checked.original_data.get("licence", "")),
        **fields,
    )


def _no_text(values: dict[str, Any], names: Sequence[str], where: str) -> SetAside | None:
    """A record of the first field of ``names`` that is neither text nor a number."""
    for name in names:
        value = values.get(name)
        if isinstance(value, bool | list | dict):
            detail = f"{name} is a {type(value).__name__} instead of text"
            return SetAside(where, "a field of another type", detail)
    return None


@dataclass
class LhotseRecording:
    """The files of a recording with their channels, or a SetAside; ``where`` is its line."""

    where: str
    files: list[tuple[Path, list[int]]] | SetAside
    used: bool = False


def read_lhotse(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """Lhotse manifests: ``recordings.jsonl.gz`` and ``supervisions.jsonl.gz``, packed or plain.

    ``root`` is their folder. Names of recipes (``ami_recordings_dev.jsonl.gz`` and
    ``ami_supervisions_dev.jsonl.gz``) are paired, too. Each supervision is an utterance: a part of
    its recording, or the whole file if it covers all of it. File names are absolute, or relative to
    ``root``. A language that is not a tag (``English``) is replaced by the declared one. Raises
    ConfigError if a manifest is missing.
    """
    pairs = [(path, _beside(path)) for path in sorted(root.glob(f"*{RECORDINGS}*.jsonl*"))]
    if not pairs:
        raise ConfigError(f"{root} has no {RECORDINGS}.jsonl.gz; correct path or reader")
    for recordings_path, supervisions_path in pairs:
        recordings: dict[str, LhotseRecording] = {}
        for number, line in lines(recordings_path):
            where = f"{recordings_path.name}:{number}"
            value = json_object(line, where)
            if isinstance(value, SetAside):
                yield value
            elif not isinstance(value.get("id"), str) or value["id"] in recordings:
                yield SetAside(where, "no id of its own", "every recording needs another id")
            else:
                recordings[value["id"]] = LhotseRecording(where, _files(root, value, where))
        for number, line in lines(supervisions_path):
            where = f"{supervisions_path.name}:{number}"
            value = json_object(line, where)
            yield value if isinstance(value, SetAside) else _read(recordings, config, where, value)
        for name, recording in recordings.items():
            if not recording.used:
                detail = f"no supervision names {name}; segment it as a corpus of recordings"
                yield SetAside(recording.where, "no supervision", detail)


def _beside(recordings: Path) -> Path:
    """The supervisions manifest of a recordings manifest. Raises ConfigError."""
    name = SUPERVISIONS.join(recordings.name.rsplit(RECORDINGS, 1))
    stem = name.removesuffix(".gz")
    found = [recordings.with_name(each) for each in (name, stem, f"{stem}.gz")]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise ConfigError(f"{recordings} has no {name} beside it; put it there")
    return path


def _files(
    folder: Path, recording: dict[str, Any], where: str
) -> list[tuple[Path, list[int]]] | SetAside:
    """The files of a recording with the channel numbers of the manifest, or a SetAside."""
    if recording.get("transforms"):
        detail = "apply its transforms with lhotse and save the audio"
        return SetAside(where, "recording to be transformed", detail)
    sources = recording.get("sources")
    if not isinstance(sources, list) or not sources:
        return SetAside(where, "no sources", "a recording needs the path of its audio")
    files = []
    for source in sources:
        match source:
            case {"type": "file", "source": str(name), "channels": [*channels]}:
                found = listed(folder, name, where, absolute=True)
                if isinstance(found, SetAside):
                    return found
                files.append((found.path, channels))
            case {"type": str(kind)} if kind != "file":
                detail = f"{kind!r}; save its audio as files with lhotse"
                return SetAside(where, "source is no file", detail)
            case _:
                detail = "a source has type, source and channels"
                return SetAside(where, "a field of another type", detail)
    return files


def _read(
    recordings: dict[str, LhotseRecording], config: CorpusConfig, where: str, value: dict[str, Any]
) -> Entry | SetAside:
    """The utterance of one supervision."""
    recording = recordings.get(str(value.get("recording_id")))
    if recording is None:
        detail = f"recording {value.get('recording_id')!r} is not in the manifest"
        return SetAside(where, "no such recording", detail)
    recording.used = True
    if isinstance(recording.files, SetAside):
        return SetAside(
            where, recording.files.reason, f"{recording.where}: {recording.files.detail}"
        )
    if bad := _no_text(value, ("text", "speaker"), where):
        return bad
    start, duration = _seconds(value.get("start")), _seconds(value.get("duration"))
    if start is None or not duration:
        detail = f"start {value.get('start')!r}, duration {value.get('duration')!r}, in seconds"
        return SetAside(where, "no start or duration", detail)
    asked = value.get("channel", 0)
    asked = asked if isinstance(asked, list) else [asked]
    holding = [
        (path, channels)
        for path, channels in recording.files
        if all(channel in channels for channel in asked)
    ]
    if not holding:
        detail = f"{asked}; one file of {recording.where} must have them all"
        return SetAside(where, "no such channel", detail)
    path, channels = holding[0]
    facts = {name: value[name] for name in ("id", "gender", "custom") if value.get(name)}
    return entry(
        config,
        RecordingPart(path, start, duration, tuple(channels.index(one) for one in asked)),
        where,
        str(value.get("text") or ""),
        speaker=str(value.get("speaker") or ""),
        language=_language(value.get("language")),
        original_data={"supervision": facts},
    )


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < LONGEST else None


def _language(value: Any) -> str:
    return value if isinstance(value, str) and re.fullmatch(LANGUAGE_TAG, value) else ""


BATCH = 4096  # rows of text
# By default pyarrow keeps all pages in memory until the file is closed.
STREAMED: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20}


def read_parquet(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """Parquet with embedded audio: one file, or a folder of files of any depth.

    The audio column holds ``{bytes, path}``, as ``datasets`` writes it, or plain bytes. ``options``
    name other columns than ``audio`` and ``text``. The audio bytes are not read here, but once when
    the utterance is indexed (``corpora/sources.py``). Raises ConfigError if a column is missing.
    """
    options = config.options if isinstance(config.options, ParquetOptions) else ParquetOptions()
    for path in [root] if root.is_file() else files_below(root, {".parquet"}):
        if isinstance(path, SetAside):
            yield path
            continue
        name = path.name if path == root else str(path.relative_to(root))
        try:
            with pq.ParquetFile(path, **STREAMED) as file:
                yield from _read_file(path, name, file, options, config)
        except PermissionError:
            yield SetAside(name, "no permission to read", "chmod a+r")
        except (pa.ArrowInvalid, OSError) as error:
            yield SetAside(name, "not readable as Parquet", f"{error}; copy it again")


def _read_file(
    path: Path, name: str, file: pq.ParquetFile, options: ParquetOptions, config: CorpusConfig
) -> Iterator[Entry | SetAside]:
    columns = _columns(path, file.schema_arrow, options)
    audio, text, speaker = options.named
    number = 0
    for batch in file.iter_batches(BATCH, columns=columns):
        for row in range(len(batch)):
            where = f"{name}:{number}"
            cells = {column: _cell(batch, column, row, where) for column in batch.schema.names}
            bad = next((cell for cell in cells.values() if isinstance(cell, SetAside)), None)
            source = cells.get(audio)
            fields = {"original_data": {"path": source}} if source else {}
            yield bad or entry(
                config,
                Embedded(path, audio, number),
                where,
                cells.get(text, ""),
                speaker=cells.get(speaker, ""),
                **fields,
            )
            number += 1


def _columns(path: Path, schema: pa.Schema, options: ParquetOptions) -> list[str]:
    """The columns to read besides the audio bytes. Raises ConfigError if one is missing."""
    name, *others = options.named
    for column, option in zip(options.named, ("audio", "text", "speaker"), strict=True):
        if column and column not in schema.names:
            raise ConfigError(
                f"{path} has no column {column!r}; set options.columns.{option} to one of "
                f"{schema.names}"
            )
    audio = schema.field(name).type
    columns = [column for column in others if column]
    if pa.types.is_struct(audio):
        fields = {
            audio.field(number).name: audio.field(number).type for number in range(len(audio))
        }
        audio = fields.get("bytes", audio)
        columns += [f"{name}.path"] if "path" in fields else []
    if not (pa.types.is_binary(audio) or pa.types.is_large_binary(audio)):
        raise ConfigError(
            f"{path}: column {name!r} holds {audio} instead of audio; "
            f"set options.columns.audio to one of {schema.names}"
        )
    return columns


def _cell(batch: pa.RecordBatch, column: str, row: int, where: str) -> Any:
    """A text, a number as text, or the path of an audio cell; empty for null."""
    try:
        value = batch.column(column)[row].as_py()
    except UnicodeDecodeError as error:
        return SetAside(where, "text is not UTF-8", f"{column}: {error}")
    if isinstance(value, dict):
        value = value.get("path")
    if value is None:
        return ""
    if not isinstance(value, str | int):
        detail = f"{column} is a {type(value).__name__} instead of text"
        return SetAside(where, "a field of another type", detail)
    if isinstance(value, str) and len(value) > LONGEST_LINE:
        return SetAside(where, "text too long", f"{column} has {len(value):,} characters; split it")
    return str(value)
