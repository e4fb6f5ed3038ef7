"""LibriSpeech and LibriTTS trees: ``<speaker>/<chapter>/`` with audio and transcripts beside it.

LibriSpeech has one ``*.trans.txt`` a chapter, with lines ``<utterance> <TEXT>``. LibriTTS has
``<utterance>.normalized.txt`` and ``<utterance>.original.txt`` beside each wav; the original is
read, as normalization is a stage of its own. ``path`` may be the whole corpus or one subset.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry
from tts_assets.corpora.readers.files import files_below, inside, lines, text_beside

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
