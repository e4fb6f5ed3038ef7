"""The text normalizer that ``[text]`` chooses, for one text (synthesis) or a column (filters).

Most texts are spoken as they are written. A regular expression finds them in a column, and only
the others, each once a batch, go through Python.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import polars as pl

from tts_assets.core.cache import RecordCache
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import TextConfig
from tts_assets.corpora.text import is_spoken, normalize_by_words

# What normalize() leaves alone wherever it stands: letters that are their own NFC and combine with
# none of the others, and punctuation. Anything else (a digit, a symbol, a mark, a control) may
# change; <, > and _ make tags. ASCII, Latin, Greek, Cyrillic, kana, Chinese characters, Korean
# syllables.
PLAIN_LETTERS = (
    r"A-Za-z\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u017F\u0386\u0388-\u038A\u038C\u038E-\u03A1"
    r"\u03A3-\u03CE\u0400-\u0481\u048A-\u0513\u3041-\u3096\u30A1-\u30FA\u4E00-\u9FFF\uAC00-\uD7A3"
)
CHANGES = rf"[^{PLAIN_LETTERS} .,;:!?'\"()\[\]<>_¿¡«»、。，！？-]| [.,;:!?]"
SPACES = r"[ \t\r\n]{2,}|[\t\r\n]"
SPOKEN = r"[\p{L}\p{N}]"
REMEMBERED = 100_000  # texts of a column: 20 MB
NEMO = "nemo_text_processing"


class Normalizer:
    """Written text to spoken text, as the configuration says. ``folder`` keeps NeMo's grammars
    (tens of MB a language, a minute to make) and what they gave; without it they are made anew."""

    def __init__(self, config: TextConfig, folder: Path | None = None) -> None:
        self._name = config.normalizer
        self._folder = folder
        self._known: dict[tuple[str, str], str] = {}  # of a column: (text, language) to spoken
        if self._name == "nemo":
            nemo_version()  # a missing package is told now, not after an hour

    def __call__(self, text: str, language: str) -> str:
        """The spoken form; empty if nothing in ``text`` can be spoken."""
        return self.many([text], language)[0]

    def many(self, texts: Sequence[str], language: str) -> list[str]:
        """The spoken form of each text."""
        if self._name == "none":
            return [text if is_spoken(text) else "" for text in texts]
        if self._name == "nemo":
            texts = self._nemo.many(texts, language)
        return [normalize_by_words(text, language) for text in texts]

    def rows(self, rows: pl.LazyFrame, where: pl.Expr) -> pl.LazyFrame:
        """Rows with ``transcript``: their ``text`` normalized by the tag in ``language`` where
        ``where`` is true, elsewhere as it is."""
        written, spoken = pl.col("text"), pl.col("transcript")
        if self._name == "none":
            silent = where & ~written.str.contains(SPOKEN)
            return rows.with_columns(transcript=pl.when(silent).then(pl.lit("")).otherwise(written))
        if self._name == "nemo":
            rows = rows.with_columns(transcript=written, changes=where)
        else:
            # null elsewhere, so that only what has such spaces is copied
            spaced = pl.when(where & written.str.contains(SPACES)).then(written)
            single = pl.coalesce(spaced.str.replace_all(SPACES, " "), written)
            stripped = pl.when(where).then(single.str.strip_chars(" ")).otherwise(written)
            changes = spoken.str.contains(CHANGES) | ~spoken.str.contains(f"[{PLAIN_LETTERS}]")
            rows = rows.with_columns(transcript=stripped).with_columns(changes=where & changes)
        columns = pl.struct("transcript", "text", "language", "changes")
        batches = columns.map_batches(self._batch, return_dtype=pl.String, is_elementwise=True)
        return rows.with_columns(transcript=batches).drop("changes")

    def _batch(self, rows: pl.Series) -> pl.Series:
        """The transcripts of a struct's rows; those that change are made of their texts, once."""
        transcript, text, language, changes = map(rows.struct.field, rows.struct.fields)
        places = changes.arg_true()
        if places.is_empty():
            return transcript
        chosen = (column.gather(places).to_list() for column in (text, language))
        written = list(zip(*chosen, strict=True))
        known = self._known
        new = {each for each in written if each not in known}
        for tag in {tag for _, tag in new}:
            texts = [text for text, other in new if other == tag]
            known.update(zip(((text, tag) for text in texts), self.many(texts, tag), strict=True))
        if len(known) > REMEMBERED:
            self._known = {}
        return transcript.scatter(places, [known[each] for each in written])

    @cached_property
    def _nemo(self) -> Nemo:
        return Nemo(self._folder)


class Nemo:
    """NeMo's grammars (Bakhturina et al., Interspeech 2022), each loaded when first needed."""

    def __init__(self, folder: Path | None) -> None:
        version = nemo_version()
        self._grammars = folder / "nemo" / version if folder else None
        self._spoken = RecordCache(folder / f"nemo-{version}.sqlite") if folder else None
        self._lock = threading.Lock()  # the grammars are not made for several threads
        self._of = cache(partial(load_grammar, folder=self._grammars))

    def many(self, texts: Sequence[str], language: str) -> list[str]:
        """Texts as NeMo speaks them; as they are in a language that it does not know."""
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


def user_cache() -> Path:
    """Where what is slow to make lies for programs that know of no storage."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "tts-assets"


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
    """NeMo's normalizer of a language, kept in ``folder``; None if it has none."""
    import logging

    from nemo_text_processing.text_normalization.normalize import Normalizer as Grammar

    logging.getLogger("NeMo-text-processing").setLevel(logging.WARNING)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return Grammar(input_case="cased", lang=language, cache_dir=folder and str(folder))
    except NotImplementedError:
        return None
