"""Readers of corpus layouts: functions (root, config) that yield entries and set-aside records.

To add a reader: write a function here or in ``lists.py`` or ``manifests.py`` (``files.py`` has
helpers), add it to READERS and its name to ``ReaderName`` in ``corpora/config.py``, and test it on
a small real tree of that layout. Readers open no audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tts_assets.core.accounting import SetAside
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig, ReaderName
from tts_assets.corpora.readers.files import (
    AUDIO_SUFFIXES,
    Entry,
    entry,
    files_below,
    in_layout,
    lines,
    text_beside,
    text_file,
)
from tts_assets.corpora.readers.lists import read_common_voice, read_ljspeech, read_pipe_list
from tts_assets.corpora.readers.manifests import read_jsonl, read_lhotse, read_parquet

Reader = Callable[[Path, CorpusConfig], Iterator[Entry | SetAside]]

CHAPTER_FILES = ".trans.txt"
ORIGINAL, NORMALIZED = ".original.txt", ".normalized.txt"
TREES = (("wav48_silence_trimmed", "_mic1", ".flac"), ("wav48", "", ".wav"))  # of VCTK
# The folders of VoxCeleb and of its splits, which may lie above the folders of the speakers.
ABOVE_SPEAKERS = {
    "wav",
    "aac",
    "m4a",
    "mp3",
    "flac",
    "audio",
    "dev",
    "test",
    "train",
    "vox1",
    "vox2",
}


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
            audio = in_layout(root, str(folder / name), ".flac", where)
            yield entry(config, audio, where, text, speaker=name.split("-")[0])


def read_libritts(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """LibriTTS: ``<utterance>.normalized.txt`` and ``<utterance>.original.txt`` beside each clip.

    The original text is read, because normalization is a stage of this pipeline.
    """
    for audio in files_below(root, AUDIO_SUFFIXES):
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
    known = (each for each in TREES if (root / each[0]).is_dir())
    tree, microphone, suffix = next(known, TREES[0])
    for path in files_below(texts, {".txt"}):
        if isinstance(path, SetAside):
            yield path
            continue
        where = str(path.relative_to(root))
        speaker = path.parent.name
        name = f"{tree}/{speaker}/{path.stem}{microphone}"
        audio = in_layout(root, name, suffix, where)
        yield entry(config, audio, where, text_file(path, where), speaker=speaker)


def read_folder(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """A plain folder of any depth: ``x.wav`` (or flac, mp3, …) beside ``x.txt`` with its text.

    A text without audio is set aside, if its folder has audio: other folders may hold notes.
    """
    with_audio: set[Path] = set()
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        with_audio.add(audio.with_suffix(""))
        where = str(audio.relative_to(root))
        texts = [audio.with_suffix(".txt"), audio.with_suffix(".TXT")]  # as Windows may write it
        yield entry(config, audio, where, text_beside(texts, where))
    folders = {path.parent for path in with_audio}
    for text in files_below(root, {".txt"}):
        alone = isinstance(text, Path) and text.with_suffix("") not in with_audio
        if isinstance(text, Path) and alone and text.parent in folders:
            yield SetAside(str(text.relative_to(root)), "text without audio")


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

    For speaker encoders and codecs. A clip directly below its speaker has no session. Folders such
    as ``wav`` or ``dev`` above those of the speakers are skipped.
    """
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        where = audio.relative_to(root)
        parts = where.parts
        while len(parts) > 1 and parts[0].lower() in ABOVE_SPEAKERS:
            parts = parts[1:]
        if len(parts) < 2:
            detail = "clips belong into a folder named after their speaker"
            yield SetAside(str(where), "no speaker folder", detail)
            continue
        speaker, *session, _ = parts
        fields = {"original_data": {"session": "/".join(session)}} if session else {}
        yield entry(config, audio, str(where), "", speaker=speaker, **fields)


READERS: dict[ReaderName, Reader] = {
    "jsonl": read_jsonl,
    "ljspeech": read_ljspeech,
    "folder": read_folder,
    "pipe_list": read_pipe_list,
    "librispeech": read_librispeech,
    "libritts": read_libritts,
    "vctk": read_vctk,
    "common_voice": read_common_voice,
    "speakers": read_speakers,
    "parquet": read_parquet,
    "lhotse": read_lhotse,
    "recordings": read_recordings,
}
