"""The entries that readers yield, and safe access to the files of a corpus.

A bad name, line or link is set aside; the rest is read.
"""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from tts_assets.core.accounting import SetAside
from tts_assets.corpora.config import MANNERS, CorpusConfig
from tts_assets.corpora.samples import LONGEST_LINE, bounded_lines


@dataclass(frozen=True)
class Embedded:
    """Audio inside a Parquet file: the bytes in row ``row`` (from 0) of ``column``."""

    file: Path
    column: str
    row: int


@dataclass(frozen=True)
class RecordingPart:
    """A part of a recording, in seconds; ``channels`` count from 0, empty means all."""

    file: Path
    start: float
    duration: float
    channels: tuple[int, ...] = ()


Audio = Path | Embedded | RecordingPart  # a path: a file that is one utterance


@dataclass(frozen=True)
class Entry:
    """One utterance as the corpus describes it, before its audio is opened.

    ``where`` is the line or file for messages. ``extra`` has further fields of the sample schema.
    ``match`` says how a name that is written differently was matched with its file.
    """

    audio: Audio
    where: str
    text: str
    speaker: str
    language: str
    licence: str
    extra: dict[str, Any] = field(default_factory=dict)
    match: str = ""

    @property
    def file(self) -> Path:
        """The file that holds the audio."""
        return file_of(self.audio)


@dataclass(frozen=True)
class Listed:
    """The file of a name in a list; ``match`` says how it was found if the names differ."""

    path: Path
    match: str = ""


def file_of(audio: Audio) -> Path:
    """The file that holds ``audio``."""
    return audio if isinstance(audio, Path) else audio.file


def entry(
    config: CorpusConfig,
    audio: Audio | Listed | SetAside,
    where: str,
    text: str | SetAside,
    **fields: Any,
) -> Entry | SetAside:
    """An entry with the defaults of the corpus for missing fields.

    If ``audio`` or ``text`` is a SetAside, that is returned.
    """
    if isinstance(audio, SetAside):
        return audio
    if isinstance(text, SetAside):
        return text
    match = audio.match if isinstance(audio, Listed) else ""
    if isinstance(audio, Listed):
        audio = audio.path
    manners = {name: fields.get(name) or getattr(config, name) for name in MANNERS}
    fields |= {name: manner for name, manner in manners.items() if manner}
    return Entry(
        audio=audio,
        where=where,
        text=text,
        speaker=fields.pop("speaker", "") or config.speaker,
        language=fields.pop("language", "") or config.language,
        licence=fields.pop("licence", "") or config.licence,
        extra=fields,
        match=match,
    )


AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".aac", ".webm", ".mka"}
    | {".aif", ".aiff", ".au", ".caf", ".w64", ".g722"}
)
# Audio that the readers of folders pass over; such files are counted.
OTHER_AUDIO = frozenset(
    {".gsm", ".sln", ".wma", ".amr", ".3gp", ".ape", ".wv", ".sph", ".ulaw", ".alaw", ".raw"}
    | {".pcm", ".vox", ".mp2", ".m4b", ".mov", ".mkv", ".avi", ".spx", ".aifc", ".snd", ".ra"}
    | {".tta", ".mpc", ".ac3", ".voc", ".nist", ".rf64", ".dsf"}
)
OTHER_SUFFIX = "another suffix"
BOM = b"\xef\xbb\xbf"


def inside(root: Path, name: str, where: str, *, absolute: bool = False) -> Path | SetAside:
    """The file ``name`` below ``root``, or a SetAside if it lies outside, by ``..`` or a link.

    With ``absolute``, an absolute name may be anywhere.
    """
    if "\0" in name:
        return SetAside(where, "not a path", f"{name!r} has a zero byte; write the file's name")
    if absolute and Path(name).is_absolute():
        return Path(name)
    path = os.path.realpath(root / name)  # compared as text, which is faster than as a Path
    if not f"{path}/".startswith(f"{_real(root).rstrip('/')}/"):
        detail = f"{name} lies outside the corpus; move it there, or declare its folder as a corpus"
        return SetAside(where, "path outside the corpus", detail)
    return Path(path)


def listed(root: Path, name: str, where: str, *, absolute: bool = False) -> Listed | SetAside:
    """The file that a list names, as :func:`inside`.

    If there is no such file, the single file whose name differs only in backslashes, Unicode form,
    letter case or a missing audio suffix is taken. Lists from other systems have such names. A
    file with another suffix is named in the record, because it may be other audio.
    """
    path = inside(root, name, where, absolute=absolute)
    if isinstance(path, SetAside) or _exists(path):
        return path if isinstance(path, SetAside) else Listed(path)
    written = name.replace("\\", "/")
    start = Path(written) if absolute and Path(written).is_absolute() else root / written
    found, matches = _similar(start)
    if found and matches[-1:] == [OTHER_SUFFIX]:
        detail = f"{name}; there is {found[0].name}: correct the suffix in the list"
        return SetAside(where, "no such file", detail)
    if len(found) > 1:
        names = ", ".join(sorted(one.name for one in found))
        detail = f"{name}; {names} have similar names: write the exact one"
        return SetAside(where, "no such file", detail)
    if not found:
        return Listed(path)
    match = [*(["backslashes"] if written != name else []), *matches]
    if absolute and Path(written).is_absolute():
        return Listed(found[0], ", ".join(match))
    safe = inside(root, os.path.relpath(found[0], root), where)
    return safe if isinstance(safe, SetAside) else Listed(safe, ", ".join(match))


def in_layout(root: Path, name: str, suffix: str, where: str) -> Listed | SetAside:
    """The audio ``name`` of a layout with ``suffix``, as :func:`listed`.

    Converted audio has another suffix: then the single file of this name is taken.
    """
    found = listed(root, name + suffix, where)
    other = isinstance(found, SetAside) and found.reason == "no such file"
    return listed(root, name, where) if other else found


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def _similar(path: Path) -> tuple[list[Path], list[str]]:
    """The files with the most similar path, and the differences."""
    if _exists(path) or path == path.parent:
        return ([path] if _exists(path) else []), []
    folders, differences = _similar(path.parent)
    if len(folders) != 1 or not folders[0].is_dir():
        return [], []
    try:
        names = _names(folders[0], folders[0].stat().st_mtime_ns)
    except OSError:
        return [], []
    forms = _forms(path.name)
    suffix = "suffix" if forms[1] == forms[2] else OTHER_SUFFIX
    for kind, difference in enumerate(("Unicode form", "letter case", suffix)):
        found = names.get((kind, forms[kind]), ())
        if found:
            return [folders[0] / one for one in found], [*differences, difference]
    return [], []


def _forms(name: str) -> tuple[str, str, str]:
    """A name without its Unicode form, then without letter case, then without audio suffixes."""
    plain = unicodedata.normalize("NFC", name)
    folded = unicodedata.normalize("NFC", plain.casefold())
    stem = folded
    while Path(stem).suffix in AUDIO_SUFFIXES:
        stem = Path(stem).stem
    return plain, folded, stem


@lru_cache(maxsize=32)
def _names(folder: Path, _changed: int) -> dict[tuple[int, str], list[str]]:
    """The names in a folder by their forms; files without an audio suffix have no third form."""
    names: dict[tuple[int, str], list[str]] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        forms = _forms(name)
        for kind, form in enumerate(forms):
            if kind < 2 or form != forms[1]:
                names.setdefault((kind, form), []).append(name)
    return names


@lru_cache
def _real(root: Path) -> str:
    return os.path.realpath(root)


def files_below(root: Path, suffixes: Collection[str]) -> Iterator[Path | SetAside]:
    """Yield the files with these suffixes at any depth, sorted by name.

    Links inside ``root`` are followed. An unreadable folder is set aside.
    """
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scan:
                found = sorted(scan, key=lambda item: item.name)
        except PermissionError:
            if folder == root:
                raise
            where = str(folder.relative_to(root))
            yield SetAside(where, "no permission to read", "its files are not seen; chmod -R a+rX")
            continue
        for item in found:
            path = folder / item.name
            if item.is_dir(follow_symlinks=False):
                folders.append(path)
            elif not item.is_symlink():
                if path.suffix.lower() in suffixes:
                    yield path
            elif path.suffix.lower() in suffixes or _is_folder(item):
                name = str(path.relative_to(root))
                target = inside(root, name, name)
                if isinstance(target, SetAside) or not _is_folder(item):
                    yield target  # a folder inside the root is visited at its own path


def _is_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # a link to itself, or to a place without permission
        return False


def lines(path: Path) -> Iterator[tuple[int, str | SetAside]]:
    """Yield the non-blank lines of a UTF-8 file, numbered from 1, without line ends and BOM.

    A line that is not UTF-8 is set aside alone. A ``.gz`` file is unpacked; if its end is damaged,
    a record of that is the last item.
    """
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        try:
            for number, raw in enumerate(bounded_lines(cast(IO[bytes], stream)), start=1):
                where = f"{path.name}:{number}"
                if raw is None:
                    detail = f"more than {LONGEST_LINE:,} bytes; split it"
                    yield number, SetAside(where, "line too long", detail)
                    continue
                line = _text(raw.removeprefix(BOM) if number == 1 else raw, where)
                if isinstance(line, SetAside) or line.strip():
                    yield number, line if isinstance(line, SetAside) else line.rstrip("\r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            where = f"{path.name}:{number + 1}"
            yield number + 1, SetAside(where, "truncated", f"{error}; copy {path.name} again")


def json_object(line: str | SetAside, where: str) -> dict[str, Any] | SetAside:
    """The JSON object of a line. NaN and infinity are refused: they are not JSON."""
    if isinstance(line, SetAside):
        return line
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return SetAside(where, "not JSON", f"{error}; a line is one JSON object")
    if not isinstance(value, dict):
        return SetAside(where, "not a JSON object", f"a {type(value).__name__}")
    return value


def text_file(path: Path, where: str) -> str | SetAside:
    """The content of a transcript file; a SetAside if it is not UTF-8, too long or not readable."""
    try:
        size = path.stat().st_size
        if size > LONGEST_LINE:
            return SetAside(where, "text too long", f"{path.name} has {size:,} bytes; split it")
        text = _text(path.read_bytes().removeprefix(BOM), where)
    except PermissionError:
        return SetAside(where, "no permission to read", f"{path.name}; chmod a+r")
    return text if isinstance(text, SetAside) else text.strip()


def text_beside(names: Sequence[Path], where: str) -> str | SetAside:
    """The transcript of an audio file: the content of the first of ``names`` that exists."""
    path = next((path for path in names if path.is_file()), None)
    if path is None:
        return SetAside(where, "no text file", f"its words belong into {names[0].name} beside it")
    return text_file(path, where)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number; write null")


def _text(raw: bytes, where: str) -> str | SetAside:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return SetAside(where, "text is not UTF-8", f"{error}; save it as UTF-8")
