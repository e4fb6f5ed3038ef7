"""Configuration of corpora, their filters and the consent of their speakers.

A model that is trained on a person's recordings imitates that person's voice. A serving model is
published only if ``[corpora.<name>.consent]`` states who agreed to which use and until when. The
model card repeats it. This is a statement of the user, not a proof.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)

from tts_assets.audio_models.whisper import whisper_identity
from tts_assets.core.config import Config, ConfigError
from tts_assets.core.program import ProgramConfig
from tts_assets.corpora.segments import SegmentConfig
from tts_assets.normalization.rules import LanguageRules, Pronunciation

SYNTHETIC = "synthetic"
ONE_LINE = r"^[^\x00-\x1f]+$"  # it is written to headers and tags
EXAMPLE = 'consent = { who = "Ann Example", purpose = "our audio guide", until = 2030-12-31 }'


class Consent(Config):
    """What a speaker, or all speakers of a corpus, agreed to."""

    added_keys: ClassVar[frozenset[str]] = frozenset({"publication"})
    who: str = Field(pattern=ONE_LINE, description="the person whose voice it is")
    purpose: str = Field(pattern=ONE_LINE, description="the permitted use")
    until: date | None = Field(None, description="the last day; unset: no end")
    basis: str = Field("", description="where it is written: a contract or licence")
    publication: bool = Field(False, description="the weights of a model may be given to others")

    def ended(self, today: date) -> bool:
        """Whether the consent ended before ``today``."""
        return self.until is not None and self.until < today

    def in_words(self) -> str:
        """One line for the model card."""
        until = f", until {self.until}" if self.until else ""
        basis = f" ({self.basis})" if self.basis else ""
        return f"{self.who}: {self.purpose}{until}{basis}"


VoiceConsent = Consent | Literal["synthetic"]  # synthetic: not the voice of a person


def people(consents: Mapping[str, VoiceConsent]) -> str:
    """The names of those who agreed; empty if all voices are synthetic."""
    agreed = [one for one in consents.values() if isinstance(one, Consent)]
    return ", ".join(sorted({one.who for one in agreed}))


class ConsentError(ConfigError):
    """A voice without valid consent; the message says what to write and where."""


def check_consents(
    consents: Mapping[str, VoiceConsent | None], refused: str, today: date
) -> dict[str, VoiceConsent]:
    """The consents by corpus. Raises :class:`ConsentError` if one is missing or has ended.

    The message begins with ``refused``, the name of what is not published.
    """
    found: dict[str, VoiceConsent] = {}
    for corpus, consent in sorted(consents.items()):
        if consent is None:
            raise ConsentError(
                f"{refused}: corpora.{corpus} has no consent of the speaker. "
                f"Add to its table: {EXAMPLE}, or consent = "
                f'"{SYNTHETIC}" if it is not the voice of a person'
            )
        if isinstance(consent, Consent) and consent.ended(today):
            raise ConsentError(
                f"{refused}: the consent of {consent.who} (corpora.{corpus}) ended "
                f"on {consent.until}. Renew it and change the date, or train without this corpus"
            )
        found[corpus] = consent
    return found


Metric = Literal["dnsmos", "p808", "snr", "clipping", "silence", "wer"]
METRICS: tuple[Metric, ...] = get_args(Metric)

ReaderName = Literal[
    "jsonl",
    "ljspeech",
    "folder",
    "pipe_list",
    "librispeech",
    "libritts",
    "vctk",
    "common_voice",
    "speakers",
    "parquet",
    "lhotse",
    "recordings",
]

LANGUAGE_TAG = r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*"


def _language_tag(value: str) -> str:
    if not re.fullmatch(LANGUAGE_TAG, value):
        raise ValueError(f"{value!r} is not a language tag; write one like 'en' or 'es-MX'")
    return value


Language = Annotated[str, AfterValidator(_language_tag)]


MANNERS = ("style", "emotion", "voice_description")


class ParquetOptions(Config):
    """``options`` of the reader ``parquet``: names of columns; empty means that there is none.

    The column ``audio`` holds ``{bytes, path}`` or plain bytes, the others text or numbers. Columns
    that are not named are ``{ audio = "audio", text = "text", speaker = "" }``.
    """

    replaced_keys: ClassVar[Mapping[str, str]] = {
        f"{name}_column": f"write columns = {{ {name} = '…' }} in options"
        for name in ("audio", "text", "speaker")
    }

    columns: dict[Literal["audio", "text", "speaker"], str] = Field(default_factory=dict)

    @property
    def named(self) -> tuple[str, str, str]:
        """The columns of audio, text and speaker."""
        columns = {"audio": "audio", "text": "text", "speaker": ""} | self.columns
        return columns["audio"], columns["text"], columns["speaker"]

    @model_validator(mode="after")
    def _has_audio(self) -> Self:
        if not self.named[0]:
            raise ValueError("columns.audio is empty: name the column that holds the audio")
        return self

    def in_former_shape(self, values: dict[str, Any]) -> dict[str, Any]:
        """A key for each column."""
        return dict(zip(self.replaced_keys, self.named, strict=True))


class ListOptions(Config):
    """``options`` of the readers ``pipe_list`` and ``ljspeech``.

    ``columns`` name the columns of a list without a header, from left to right.
    """

    columns: tuple[Literal["audio", "text", "speaker", "skip"], ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("audio", "text", "speaker"):
            if self.columns.count(name) > 1 or (name != "speaker" and name not in self.columns):
                raise ValueError(f"columns must have {name!r} once; call others 'skip'")
        return self


class SynthesisConfig(Config):
    """``[corpora.<name>.synthesis]``: the clips of the corpus are made from texts.

    ``texts`` is a file with one text per line. ``voice`` is an ``.onnx`` file of Piper, the name of
    an installed package that carries one, or ``flite:<name>``, a voice of Flite. Each text gets one
    of ``lengths``, factors of its duration, and one of ``speakers``, names in a voice with several.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"engine": "piper", "seed": 0}

    seed: ClassVar[int] = 0  # of the lengths and speakers of the texts

    voice: str = Field(min_length=1)
    texts: Path
    lengths: tuple[Annotated[float, Field(gt=0.3, lt=3.0)], ...] = Field((1.0,), min_length=1)
    speakers: tuple[str, ...] = ()


OPTIONS: dict[str, type[Config]] = {
    "parquet": ParquetOptions,
    "pipe_list": ListOptions,
    "ljspeech": ListOptions,
}


class CorpusConfig(Config):
    """``[corpora.<name>]``: the folder of a corpus, its layout and its speakers.

    ``language``, ``licence``, ``speaker``, ``style``, ``emotion`` and ``voice_description`` are the
    defaults of utterances without their own. ``filters`` override ``[filters]`` for this corpus.
    ``segments`` declares long recordings, which are cut into utterances; the reader ``recordings``
    implies it. ``consent`` is required before a model of the voice is published. ``synthesis``
    makes the corpus from texts: ``path`` is the folder that it writes, and ``consent`` is
    "synthetic" unless the table says whose voice it is.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset((*MANNERS, "synthesis"))

    path: Path
    reader: ReaderName
    language: Language
    licence: str = "unknown"
    speaker: str = ""
    style: str = ""
    emotion: str = ""
    voice_description: str = ""
    consent: VoiceConsent | None = None
    options: ParquetOptions | ListOptions | None = None
    filters: dict[str, Any] = Field(default_factory=dict)
    segments: SegmentConfig | None = None
    synthesis: SynthesisConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _synthesis_writes_samples(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("synthesis") is None:
            return values
        if values.get("reader", "jsonl") != "jsonl":
            raise ValueError(
                f"synthesis writes a corpus for the reader jsonl, not {values['reader']}: drop it"
            )
        return {"reader": "jsonl", "consent": SYNTHETIC, **values}

    @model_validator(mode="before")
    @classmethod
    def _recordings_are_cut(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("reader") == "recordings":
            return {"segments": {}, **values}
        return values

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_reader(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("options"), Mapping):
            return values
        kind = OPTIONS.get(str(values.get("reader")))
        if kind is None:
            raise ValueError(
                f"the reader {values.get('reader')!r} has no options: drop them, or use one of "
                f"{', '.join(OPTIONS)}"
            )
        return {**values, "options": kind.model_validate(values["options"])}

    @model_validator(mode="after")
    def _model_knows_language(self) -> Self:
        if self.segments is not None:
            self.segments.check_language(self.language)
        return self

    def as_indexed(self) -> Self:
        """The part of the configuration that determines the index of the corpus."""
        unset = dict.fromkeys(("segments", "consent", "synthesis"))
        return self.model_copy(update={"filters": {}, **unset})


class TextConfig(Config):
    """``[text]``: the text normalizer of training and synthesis (``docs/text.md``).

    ``rules`` reads numbers, dates, units, abbreviations and signs in every language. ``nemo``
    applies NeMo's grammars first (``pip install tts-assets[nemo]``). ``none`` keeps the text.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"rules", "lexicon"})

    normalizer: Literal["rules", "nemo", "none"] = "rules"
    rules: dict[str, LanguageRules] = Field(
        {}, description="tables by language, or a TOML file of them"
    )
    lexicon: dict[str, str] = Field(
        {}, description="words by their respelling or /phonemes/, or a TOML file of them"
    )

    @field_validator("normalizer", mode="before")
    @classmethod
    def _former_name(cls, value: Any) -> Any:
        """``num2words`` in the cards of published models is the former name of ``rules``."""
        return "rules" if value == "num2words" else value

    @field_validator("lexicon")
    @classmethod
    def _well_formed(cls, lexicon: dict[str, str]) -> dict[str, str]:
        for word, pronunciation in lexicon.items():
            Pronunciation.of(word, pronunciation)
        return lexicon

    @model_validator(mode="after")
    def _rules_are_used(self) -> Self:
        if self.rules and self.normalizer == "none":
            raise ValueError("rules need a normalizer: delete normalizer = 'none', or the rules")
        return self


class DiscoveryConfig(Config):
    """``[discovery]``: the folder whose subfolders are corpora (see ``discovery.py``).

    ``language``, ``licence`` and ``speaker`` are the defaults of ``corpus.toml`` files.
    """

    root: Path | None = None
    language: Language | None = None
    licence: str = "unknown"
    speaker: str = ""

    @model_validator(mode="after")
    def _defaults_are_of_something(self) -> Self:
        if self.root is None and self.model_fields_set:
            raise ValueError(
                f"{sorted(self.model_fields_set)} apply to discovered corpora, but no root is "
                f"set; write root = 'corpora', or drop [discovery]"
            )
        return self


class FilterConfig(Config):
    """``[filters]``: which utterances are kept. The filters apply in the order of the keys.

    Durations are in seconds, rates in Hz. An unset filter is not applied. An empty
    ``allowed_languages`` allows all languages; ``en`` allows ``en-GB``, too. A metric is measured
    if a filter or ``measure`` needs it, for samples that pass the filters before ``min_dnsmos``
    (``quality.py`` defines the metrics). The ``dnsmos_mos_ovr`` of a sample is used as it is.
    Speech with more than 40 characters per second is rejected.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {
        "max_channels": None,
        "max_clipping": None,
        "max_silence": None,
        "max_characters_per_second": 40.0,
    }

    without_text: bool = Field(
        default=False, description="the corpus has no transcripts (codec and speaker training)"
    )
    allowed_languages: tuple[Language, ...] = ()
    max_duration: float = Field(default=30.0, gt=0)
    min_sample_rate: int = Field(default=8000, ge=0)
    min_dnsmos: float | None = Field(default=None, ge=1, le=5, description="P.835 overall")
    min_duration: float = Field(default=0.2, ge=0)
    min_p808: float | None = Field(default=None, ge=1, le=5)
    min_snr: float | None = Field(default=None, ge=-20, le=100, description="dB")
    min_characters_per_second: float | None = Field(default=None, gt=0)
    max_wer: float | None = Field(default=None, ge=0, description="of Whisper's transcript")
    duplicate_text: Literal["keep", "reject", "reject_of_speaker"] = Field(
        default="keep", description="'reject' keeps the first by id, of all or of each speaker"
    )
    slowest_percent: float = Field(default=0.0, ge=0, lt=100, description="by speaking rate")
    fastest_percent: float = Field(default=0.0, ge=0, lt=100, description="of the same samples")

    measure: tuple[Metric, ...] = Field(default=(), description="further metrics to measure")
    whisper: str = Field(default="", description="as in [evaluation]; empty: tiny.en")

    @model_validator(mode="after")
    def _check_that_samples_remain(self) -> Self:
        if self.min_duration >= self.max_duration:
            raise ValueError(
                f"min_duration {self.min_duration} s leaves nothing below max_duration "
                f"{self.max_duration} s; raise max_duration"
            )
        if self.slowest_percent + self.fastest_percent >= 100:
            raise ValueError(
                f"slowest_percent {self.slowest_percent} and fastest_percent "
                f"{self.fastest_percent} leave nothing between them; lower one"
            )
        return self

    @model_validator(mode="after")
    def _text_filters_need_text(self) -> Self:
        set_ = sorted(self.model_fields_set & TEXT_FILTERS)
        if self.without_text and (set_ or "wer" in self.measure):
            raise ValueError(
                f"without_text keeps samples that have no transcript, but "
                f"{', '.join(set_) or 'measure wer'} needs it; drop one of them"
            )
        return self

    def for_corpus(self, over: Mapping[str, Any], name: str) -> FilterConfig:
        """These filters, overridden by ``[corpora.<name>.filters]``. Raises :class:`ConfigError`.

        With ``without_text`` there, the text filters of ``[filters]`` do not apply.
        """
        below = self.model_dump(exclude_unset=True)
        if over.get("without_text") and not self.without_text:
            below = {key: value for key, value in below.items() if key not in TEXT_FILTERS}
        return FilterConfig.parse({**below, **over}, f"corpora.{name}.filters")

    def identified(self) -> FilterConfig:
        """The same for fingerprints: a Whisper folder is replaced by the digest of its files."""
        return self.model_copy(update={"whisper": whisper_identity(self.whisper)})

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics to measure, in the order of the filters."""
        wanted: dict[Metric, float | None] = {
            "dnsmos": self.min_dnsmos,
            "p808": self.min_p808,
            "snr": self.min_snr,
            "wer": self.max_wer,
        }
        return tuple(m for m in METRICS if wanted.get(m) is not None or m in self.measure)


TEXT_FILTERS = {
    "min_characters_per_second",
    "max_wer",
    "duplicate_text",
    "slowest_percent",
    "fastest_percent",
}


class MeasureProgram(ProgramConfig):
    """``tts_assets.corpora.quality``: measures metrics of audio files into a cache.

    ``clips`` is a Parquet file with the columns ``audio`` (absolute path), ``audio_sha256``,
    ``language``, and for each metric a Boolean that requests it.
    """

    clips: Path
    metrics: tuple[Metric, ...]
    whisper: str = ""
    cache: Path


class SynthesisProgram(ProgramConfig):
    """``tts_assets.corpora.synthesis``: texts in, a corpus folder for the reader ``jsonl`` out.

    ``voice`` is the path of an ``.onnx`` file, or ``flite:<name>``. ``speaker`` is the speaker of a
    voice that has only one.
    """

    corpus: Path
    synthesis: SynthesisConfig
    voice: str
    texts: Path
    language: Language
    speaker: str
    licence: str
    text: TextConfig = TextConfig()
