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
from tts_assets.corpora.readers.entry import Entry, entry, text_file

CHAPTER_FILES = "*.trans.txt"
ORIGINAL, NORMALIZED = ".original.txt", ".normalized.txt"


def read_librispeech(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for chapter in sorted(root.rglob(CHAPTER_FILES)):
        words = text_file(chapter, str(chapter.relative_to(root)))
        if isinstance(words, SetAside):
            yield words
            continue
        for number, line in enumerate(words.splitlines(), start=1):
            where = f"{chapter.relative_to(root)}:{number}"
            name, _, text = line.strip().partition(" ")
            if name:
                audio = chapter.with_name(f"{name}.flac")
                yield entry(config, audio, where, text, speaker=name.split("-")[0])


def read_libritts(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for audio in sorted(root.rglob("*.wav")):
        where = str(audio.relative_to(root))
        beside = [audio.with_name(audio.stem + suffix) for suffix in (ORIGINAL, NORMALIZED)]
        text = next((path for path in beside if path.is_file()), None)
        if text is None:
            detail = f"its words belong into {beside[0].name} beside it"
            yield SetAside(where, "no text file", detail)
            continue
        words = text_file(text, where)
        if isinstance(words, SetAside):
            yield words
        else:
            yield entry(config, audio, where, words, speaker=audio.stem.split("_")[0])
