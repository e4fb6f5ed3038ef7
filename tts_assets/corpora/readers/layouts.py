"""Readers of file layouts: lists, trees of public corpora, and plain folders."""

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
CHAPTER_FILES = ".trans.txt"
ORIGINAL, NORMALIZED = ".original.txt", ".normalized.txt"
TREES = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))  # of VCTK
COMMON_VOICE_LIST = "validated.tsv"
COLUMNS = ("client_id", "path", "sentence")
KEPT = ("age", "gender", "accents", "up_votes", "down_votes")
PIPE_LIST = "metadata.csv"
AUDIO, TEXT, SPEAKER = "audio_file", "text", "speaker_name"
PLAIN = {2: [AUDIO, TEXT], 3: [AUDIO, SPEAKER, TEXT]}


def read_ljspeech(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """LJSpeech: ``metadata.csv`` with ``name|raw text|normalized text``, and ``wavs/<name>.wav``.

    The last column is read, which is the normalized text if there are three.
    """
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


def read_librispeech(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """LibriSpeech: ``<speaker>/<chapter>/`` with audio and one ``*.trans.txt`` per chapter.

    Lines are ``<utterance> <TEXT>``. ``root`` is the whole corpus or one subset.
    """
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
    """LibriTTS: ``<utterance>.normalized.txt`` and ``<utterance>.original.txt`` beside each wav.

    The original text is read, because normalization is a stage of this pipeline.
    """
    for audio in files_below(root, {".wav"}):
        if isinstance(audio, SetAside):
            yield audio
            continue
        where = str(audio.relative_to(root))
        beside = [audio.with_name(audio.stem + suffix) for suffix in (ORIGINAL, NORMALIZED)]
        words = text_beside(beside, where)
        yield entry(config, audio, where, words, speaker=audio.stem.split("_")[0])


def read_vctk(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """VCTK: ``txt/<speaker>/<utterance>.txt``, and audio in a parallel tree.

    Version 0.92 has ``wav48_silence_trimmed/<speaker>/<utterance>_mic1.flac``, version 0.80
    ``wav48/<speaker>/<utterance>.wav``. Of the two microphones of 0.92 the first is read, because
    both recorded the same speech. Raises ConfigError if ``txt`` is missing.
    """
    texts = root / "txt"
    if not texts.is_dir():
        raise ConfigError(f"{texts}, the folder of VCTK's transcripts, is missing; correct path")
    tree, suffix = next((pair for pair in TREES if (root / pair[0]).is_dir()), TREES[0])
    for path in files_below(texts, {".txt"}):
        if isinstance(path, SetAside):
            yield path
            continue
        where = str(path.relative_to(root))
        speaker = path.parent.name
        audio = inside(root, f"{tree}/{speaker}/{path.stem}{suffix}", where)
        yield entry(config, audio, where, text_file(path, where), speaker=speaker)


def read_common_voice(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """Common Voice: the TSV of a release of one language, with its clips in ``clips/``.

    ``root`` is the TSV (``train.tsv``, ``other.tsv``, …), or the folder of ``validated.tsv``. The
    speaker is the anonymous ``client_id``. Raises ConfigError if a column is missing.
    """
    path = root / COMMON_VOICE_LIST if root.is_dir() else root
    rows = lines(path)
    header = _header(path, next(rows, (0, ""))[1])
    for number, line in rows:
        if isinstance(line, SetAside):
            yield line
            continue
        where = f"{path.name}:{number}"
        # These files have no quoted fields: quotation marks are part of sentences.
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
        raise ConfigError(f"{path} has no columns {', '.join(missing)}; correct path or reader")
    return header


def read_pipe_list(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """Lists with columns between bars, as for Coqui TTS and VITS.

    ``root`` is the list, or a folder with ``metadata.csv``. With Coqui's header
    (``audio_file|text|speaker_name``) columns are read by name. Without a header a line is
    ``audio|text`` or, as in VITS, ``audio|speaker|text``. Audio lies below the folder of the list.
    """
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
    """A plain folder of any depth: ``x.wav`` (or flac, mp3, …) beside ``x.txt`` with its text."""
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        where = str(audio.relative_to(root))
        yield entry(config, audio, where, text_beside([audio.with_suffix(".txt")], where))


def read_recordings(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """A plain folder of long recordings without text, of any depth: shows, interviews, audiobooks.

    Texts are empty; ``speech_segments`` makes utterances. The speaker is the declared one, else the
    name of the folder of the recording.
    """
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        folder = audio.parent.name if audio.parent != root else ""
        where = str(audio.relative_to(root))
        yield entry(config, audio, where, "", speaker=config.speaker or folder)


def read_speakers(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """One folder per speaker, without text, as in VoxCeleb: ``<speaker>/<session>/<clip>.wav``.

    For speaker encoders and codecs. A clip directly below its speaker has no session.
    """
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
