"""Languages as corpora tag them, and as Whisper knows them."""

from __future__ import annotations

UNSPACED = ("zh", "ja", "ko")  # scored by characters: what a word is, is a matter of segmentation


def spoken_language(tag: str) -> str:
    """``en`` of ``en-GB``."""
    return tag.split("-")[0].lower()


def unspaced(tag: str) -> bool:
    """Whether it is written without spaces."""
    return spoken_language(tag) in UNSPACED


def known_to_whisper(tag: str) -> bool:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return spoken_language(tag) in LANGUAGES
