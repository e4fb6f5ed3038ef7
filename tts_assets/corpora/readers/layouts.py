"""LJSpeech: ``metadata.csv`` with ``name|raw text|normalized text`` and ``wavs/<name>.wav``.

LibriSpeech and LibriTTS trees: ``<speaker>/<chapter>/`` with audio and transcripts beside it.

LibriSpeech has one ``*.trans.txt`` a chapter, with lines ``<utterance> <TEXT>``. LibriTTS has
``<utterance>.normalized.txt`` and ``<utterance>.original.txt`` beside each wav; the original is
read, as normalization is a stage of its own. ``path`` may be the whole corpus or one subset.

VCTK: ``txt/<speaker>/<utterance>.txt`` and audio in a tree beside it.

Version 0.92 keeps ``wav48_silence_trimmed/<speaker>/<utterance>_mic1.flac``, version 0.80
``wav48/<speaker>/<utterance>.wav``. Of the two microphones of 0.92 the first is read: the second
recorded the same words.

Common Voice: a TSV of one language's release, and its clips in ``clips/`` beside it.

``path`` is the TSV (``train.tsv``, ``other.tsv``, …), or the release's folder for
``validated.tsv``. The speaker is the release's anonymous ``client_id``.

Lists with columns between bars, as Coqui TTS and VITS train from.

``path`` is the list, or a folder with ``metadata.csv``. With Coqui's header
(``audio_file|text|speaker_name``) columns are read by name. Without a header a line is
``audio|text`` or, as in VITS, ``audio|speaker|text``. Audio lies below the list's folder.

A plain folder, at any depth: ``x.wav`` (or flac, mp3, …) beside ``x.txt`` with its words.

A plain folder of long recordings without text, at any depth: shows, interviews, audiobooks.

One row a recording, with empty text; ``speech_segments`` makes utterances of them. The speaker is
the declared one, or else the name of the folder a recording lies in.

One folder a speaker, without text, as VoxCeleb has it: ``<speaker>/<session>/<clip>.wav``.

For speaker encoders and codecs. A clip directly below its speaker's folder has no session.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.core.accounting import SetAside
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.files import (
    AUDIO_SUFFIXES,
    Entry,
    entry,
    files_below,
    inside,
    lines,
    text_beside,
    text_file,
)

METADATA_FILE = "metadata.csv"


def read_ljspeech(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """The last column is read, which is the normalized text where there are three."""
    for number, line in lines(root / METADATA_FILE):
        if isinstance(line, SetAside):
            yield line
            continue
        where = f"{METADATA_FILE}:{number}"
        columns = line.split("|")
        if len(columns) < 2:
            yield SetAside(where, "no text column", "a line is name|text or name|raw|text")
            continue
        audio = inside(root, f"wavs/{columns[0]}.wav", where)
        yield entry(config, audio, where, columns[-1].strip())


CHAPTER_FILES = ".trans.txt"
ORIGINAL, NORMALIZED = ".original.txt", ".normalized.txt"


def read_librispeech(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for chapter in files_below(root, {".txt"}):
        if isinstance(chapter, SetAside):
            yield chapter
            continue
        if not chapter.name.endswith(CHAPTER_FILES):
            continue
        folder = chapter.parent.relative_to(root)
        try:
            numbered = list(lines(chapter))
        except PermissionError:
            where = str(folder / chapter.name)
            yield SetAside(where, "no permission to read", "its utterances are lost; chmod a+r")
            continue
        for number, line in numbered:
            where = f"{folder / chapter.name}:{number}"
            if isinstance(line, SetAside):
                yield SetAside(where, line.reason, line.detail)
                continue
            name, _, text = line.strip().partition(" ")
            audio = inside(root, str(folder / f"{name}.flac"), where)
            yield entry(config, audio, where, text, speaker=name.split("-")[0])


def read_libritts(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for audio in files_below(root, {".wav"}):
        if isinstance(audio, SetAside):
            yield audio
            continue
        where = str(audio.relative_to(root))
        beside = [audio.with_name(audio.stem + suffix) for suffix in (ORIGINAL, NORMALIZED)]
        words = text_beside(beside, where)
        yield entry(config, audio, where, words, speaker=audio.stem.split("_")[0])


TREES = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))


def read_vctk(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    texts = root / "txt"
    if not texts.is_dir():
        raise ConfigError(f"{texts}, the folder of VCTK's transcripts, is missing; mend path")
    tree, suffix = next((pair for pair in TREES if (root / pair[0]).is_dir()), TREES[0])
    for path in files_below(texts, {".txt"}):
        if isinstance(path, SetAside):
            yield path
            continue
        where = str(path.relative_to(root))
        speaker = path.parent.name
        audio = inside(root, f"{tree}/{speaker}/{path.stem}{suffix}", where)
        yield entry(config, audio, where, text_file(path, where), speaker=speaker)


COMMON_VOICE_LIST = "validated.tsv"
COLUMNS = ("client_id", "path", "sentence")
KEPT = ("age", "gender", "accents", "up_votes", "down_votes")


def read_common_voice(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    path = root / COMMON_VOICE_LIST if root.is_dir() else root
    rows = lines(path)
    header = _header(path, next(rows, (0, ""))[1])
    for number, line in rows:
        if isinstance(line, SetAside):
            yield line
            continue
        where = f"{path.name}:{number}"
        # Sentences contain plain quotation marks: nothing is quoted in these files.
        row = dict(zip(header, line.split("\t"), strict=False))
        if not row.get("path") or "sentence" not in row:
            yield SetAside(where, "columns are missing", f"a row has {', '.join(COLUMNS)}")
            continue
        facts = {name: row[name] for name in KEPT if row.get(name)}
        fields = {"original_data": facts} if facts else {}
        yield entry(
            config,
            inside(path.parent, f"clips/{row['path']}", where),
            where,
            row["sentence"],
            speaker=row["client_id"],
            language=row.get("locale", ""),
            **fields,
        )


def _header(path: Path, line: str | SetAside) -> list[str]:
    header = [] if isinstance(line, SetAside) else line.split("\t")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ConfigError(f"{path} has no columns {', '.join(missing)}; mend path or reader")
    return header


PIPE_LIST = "metadata.csv"
AUDIO, TEXT, SPEAKER = "audio_file", "text", "speaker_name"
PLAIN = {2: [AUDIO, TEXT], 3: [AUDIO, SPEAKER, TEXT]}


def read_pipe_list(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    path = root / PIPE_LIST if root.is_dir() else root
    header: list[str] | None = None
    for number, line in lines(path):
        if isinstance(line, SetAside):
            yield line
            continue
        cells = line.split("|")
        where = f"{path.name}:{number}"
        if number == 1 and AUDIO in cells:
            header = cells
            continue
        columns = header or PLAIN.get(len(cells))
        if columns is None or len(cells) != len(columns):
            detail = f"{len(cells)} columns; a line is audio|text or audio|speaker|text"
            yield SetAside(where, "other columns", detail)
            continue
        row = dict(zip(columns, map(str.strip, cells), strict=True))
        audio = inside(path.parent, row[AUDIO], where)
        yield entry(config, audio, where, row.get(TEXT, ""), speaker=row.get(SPEAKER, ""))


def read_folder(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        where = str(audio.relative_to(root))
        yield entry(config, audio, where, text_beside([audio.with_suffix(".txt")], where))


def read_recordings(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        folder = audio.parent.name if audio.parent != root else ""
        where = str(audio.relative_to(root))
        yield entry(config, audio, where, "", speaker=config.speaker or folder)


def read_speakers(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        where = audio.relative_to(root)
        if len(where.parts) < 2:
            detail = "clips belong into a folder named after their speaker"
            yield SetAside(str(where), "no speaker folder", detail)
            continue
        speaker, *session, _ = where.parts
        fields = {"original_data": {"session": "/".join(session)}} if session else {}
        yield entry(config, audio, str(where), "", speaker=speaker, **fields)
