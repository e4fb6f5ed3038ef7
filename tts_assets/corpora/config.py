"""What ``dagster_project.toml`` may say of corpora and filters.

By whose leave a voice is imitated: ``[corpora.<name>.consent]``.

A model that was trained on a person's voice speaks as that person. No serving model is published
of it before the configuration says who agreed, to what, and until when; what was agreed goes into
the model's card. Nothing here is proof: it makes the question one that somebody answered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tts_assets.core.config import Config, ConfigError
from tts_assets.core.hub import identity
from tts_assets.core.program import ProgramConfig
from tts_assets.corpora.segments.config import SegmentConfig

SYNTHETIC = "synthetic"
ONE_LINE = r"^[^\x00-\x1f]+$"  # it goes into headers and tags
EXAMPLE = 'consent = { who = "Ann Example", purpose = "our audio guide", until = 2030-12-31 }'


class Consent(Config):
    """What a speaker, or all speakers of a corpus, agreed to."""

    who: str = Field(pattern=ONE_LINE, description="whose voice it is")
    purpose: str = Field(pattern=ONE_LINE, description="what it may be used for")
    until: date | None = Field(None, description="the last day; unset: without an end")
    basis: str = Field("", description="where it is written: a contract, a licence")

    def ended(self, today: date) -> bool:
        return self.until is not None and self.until < today

    def in_words(self) -> str:
        until = f", until {self.until}" if self.until else ""
        basis = f" ({self.basis})" if self.basis else ""
        return f"{self.who}: {self.purpose}{until}{basis}"


VoiceConsent = Consent | Literal["synthetic"]  # the voice of nobody


def people(consents: Mapping[str, VoiceConsent]) -> str:
    """Who agreed; empty where the voices are nobody's."""
    agreed = [one for one in consents.values() if isinstance(one, Consent)]
    return ", ".join(sorted({one.who for one in agreed}))


class ConsentError(ConfigError):
    """A voice that may not be published; the message says what to write where."""


def check_consents(
    consents: Mapping[str, VoiceConsent | None], refused: str, today: date
) -> dict[str, VoiceConsent]:
    """The consents by corpus; raises :class:`ConsentError` where one is missing or has ended,
    with a message that begins with what is ``refused``."""
    found: dict[str, VoiceConsent] = {}
    for corpus, consent in sorted(consents.items()):
        if consent is None:
            raise ConsentError(
                f"{refused}: corpora.{corpus} does not say who agreed that this "
                f"voice is imitated. Write to its table: {EXAMPLE}, or consent = "
                f'"{SYNTHETIC}" where it is the voice of nobody'
            )
        if isinstance(consent, Consent) and consent.ended(today):
            raise ConsentError(
                f"{refused}: the consent of {consent.who} (corpora.{corpus}) ended "
                f"on {consent.until}. Ask again and write the new date, or train without it"
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
        raise ValueError(f"{value!r} is no language tag; write one like 'en' or 'es-MX'")
    return value


Language = Annotated[str, AfterValidator(_language_tag)]


MANNERS = ("style", "emotion", "voice_description")


class ParquetOptions(Config):
    """``options`` of the reader ``parquet``: names of columns; an empty name means there is none.

    ``audio_column`` holds ``{bytes, path}`` or plain bytes, the others text or numbers.
    """

    audio_column: str = Field(default="audio", min_length=1)
    text_column: str = "text"
    speaker_column: str = ""


class CorpusConfig(Config):
    """``[corpora.<name>]``: where recordings lie, in which layout, and whose they are.

    ``language``, ``licence``, ``speaker``, ``style``, ``emotion`` and ``voice_description`` hold
    for utterances that do not say otherwise.
    ``filters`` are laid over ``[filters]`` for this corpus (see :meth:`FilterConfig.for_corpus`).
    ``segments`` declares that they are long recordings, to be cut into utterances; the reader
    ``recordings`` implies it. ``consent`` is needed before a model of the voice is published.
    """

    path: Path
    reader: ReaderName
    language: Language
    licence: str = "unknown"
    speaker: str = ""
    style: str = ""
    emotion: str = ""
    voice_description: str = ""
    consent: VoiceConsent | None = None
    options: ParquetOptions | None = None
    filters: dict[str, Any] = Field(default_factory=dict)
    segments: SegmentConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _recordings_are_cut(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("reader") == "recordings":
            return {"segments": {}, **values}
        return values

    @model_validator(mode="after")
    def _only_parquet_has_options(self) -> Self:
        if self.options is not None and self.reader != "parquet":
            raise ValueError(
                f"the reader {self.reader!r} has no options; leave them out, or is it 'parquet'?"
            )
        return self

    @model_validator(mode="after")
    def _model_knows_language(self) -> Self:
        if self.segments is not None:
            self.segments.check_language(self.language)
        return self

    @model_serializer(mode="wrap")
    def _only_manners_that_are_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that corpora without them keep the fingerprint from before there were any."""
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if value or name not in MANNERS}

    def as_indexed(self) -> Self:
        """What of it determines the index of the corpus: not what is done with it later."""
        return self.model_copy(update={"filters": {}, "segments": None, "consent": None})


class TextConfig(Config):
    """``[text]``: who makes written text spoken, in training and in synthesis.

    ``num2words``: numbers, times, money and symbols (:mod:`tts_assets.corpora.text`). ``nemo``:
    NeMo's grammars first (dates, units, abbreviations; ``pip install tts-assets[nemo]``), then
    the former for what they leave. ``none``: the text is spoken as it is written.
    """

    normalizer: Literal["num2words", "nemo", "none"] = "num2words"


class DiscoveryConfig(Config):
    """``[discovery]``: the folder whose subfolders are corpora (see ``discovery.py``).

    ``language``, ``licence`` and ``speaker`` hold for those whose ``corpus.toml`` does not say
    otherwise.
    """

    root: Path | None = None
    language: Language | None = None
    licence: str = "unknown"
    speaker: str = ""

    @model_validator(mode="after")
    def _defaults_are_of_something(self) -> Self:
        if self.root is None and self.model_fields_set:
            raise ValueError(
                f"{sorted(self.model_fields_set)} hold for discovered corpora, but no root says "
                f"where those lie; write root = 'corpora', or leave [discovery] out"
            )
        return self


class FilterConfig(Config):
    """``[filters]``: which utterances are kept; the order of the fields is that of the checks.

    Durations in seconds, rates in Hz, shares from 0 to 1; what is not set is not checked.
    ``allowed_languages`` empty allows all; ``en`` allows ``en-GB`` too. Metrics are measured where
    a filter or ``measure`` wants them (``quality.py`` says what they are and cost), of samples
    that pass the checks before ``min_dnsmos``; a sample's own ``dnsmos_mos_ovr`` is believed.
    """

    without_text: bool = Field(
        default=False, description="the corpus has no transcripts, and needs none (codecs, voices)"
    )
    allowed_languages: tuple[Language, ...] = ()
    max_duration: float = Field(default=30.0, gt=0)
    min_sample_rate: int = Field(default=8000, ge=0)
    min_dnsmos: float | None = Field(default=None, ge=1, le=5, description="P.835 overall")
    min_duration: float = Field(default=0.2, ge=0)
    max_channels: int | None = Field(default=None, ge=1)
    min_p808: float | None = Field(default=None, ge=1, le=5)
    min_snr: float | None = Field(default=None, ge=-20, le=100, description="dB")
    max_clipping: float | None = Field(default=None, ge=0, lt=1, description="share of samples")
    max_silence: float | None = Field(default=None, ge=0, lt=1, description="share of the time")
    max_characters_per_second: float | None = Field(
        default=40.0, gt=0, description="faster than anybody speaks: the text is of another clip"
    )
    min_characters_per_second: float | None = Field(default=None, gt=0)
    max_wer: float | None = Field(default=None, ge=0, description="word errors of Whisper a word")
    duplicate_text: Literal["keep", "reject", "reject_of_speaker"] = Field(
        default="keep", description="'reject': the first by id stays, of all or of each speaker"
    )
    slowest_percent: float = Field(default=0.0, ge=0, lt=100, description="by speaking rate")
    fastest_percent: float = Field(default=0.0, ge=0, lt=100, description="of what is left by then")

    measure: tuple[Metric, ...] = Field(default=(), description="metrics that no filter needs")
    whisper: str = Field(default="", description="a faster-whisper model; empty: tiny.en")

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        for low, high, unit in (
            ("min_duration", "max_duration", "s"),
            ("min_characters_per_second", "max_characters_per_second", "characters a second"),
        ):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least >= most:
                raise ValueError(
                    f"{low} {least} {unit} leaves nothing below {high} {most} {unit}; raise {high}"
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
                f"{', '.join(set_) or 'measure wer'} looks at it; leave out one of them"
            )
        return self

    def for_corpus(self, over: Mapping[str, Any], name: str) -> FilterConfig:
        """These filters with ``[corpora.<name>.filters]`` laid over them; ``without_text`` there
        takes out what these say about text. Raises :class:`ConfigError`."""
        below = self.model_dump(exclude_unset=True)
        if over.get("without_text") and not self.without_text:
            below = {key: value for key, value in below.items() if key not in TEXT_FILTERS}
        return FilterConfig.parse({**below, **over}, f"corpora.{name}.filters")

    def identified(self) -> FilterConfig:
        """The same with a Whisper that is a folder named by its files."""
        return self.model_copy(update={"whisper": identity(self.whisper)})

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What must be measured, in the order of the filters."""
        wanted = {
            "dnsmos": self.min_dnsmos,
            "p808": self.min_p808,
            "snr": self.min_snr,
            "clipping": self.max_clipping,
            "silence": self.max_silence,
            "wer": self.max_wer,
        }
        return tuple(m for m in METRICS if wanted[m] is not None or m in self.measure)


TEXT_FILTERS = {
    "max_characters_per_second",
    "min_characters_per_second",
    "max_wer",
    "duplicate_text",
    "slowest_percent",
    "fastest_percent",
}


class MeasureProgram(ProgramConfig):
    """``tts_assets.corpora.quality``: metrics of audio files, into a cache.

    ``clips`` is a Parquet file with the columns ``audio`` (absolute path), ``audio_sha256``,
    ``language``, and one of Booleans for each metric: whether it is wanted there.
    """

    clips: Path
    metrics: tuple[Metric, ...]
    whisper: str = ""
    cache: Path


class FilterProgram(ProgramConfig):
    """``tts_assets.corpora.filter``: sample JSONL in, kept and rejected JSONL out.

    No audio is opened: of the metrics only the samples' own ``dnsmos_mos_ovr`` can be filtered by.
    ``cache``: a folder for the grammars and results of NeMo; empty: below ``run_dir``.
    """

    samples: tuple[Path, ...] = Field(min_length=1)
    filters: FilterConfig = FilterConfig()
    text: TextConfig = TextConfig()
    dataset_name: str = Field(default="", description="for samples that name none")
    cache: Path | None = None

    @model_validator(mode="after")
    def _no_audio_is_opened(self) -> Self:
        needed = [metric for metric in self.filters.metrics if metric != "dnsmos"]
        if needed or self.filters.max_channels is not None:
            raise ValueError(
                f"{', '.join(needed) or 'max_channels'} would need the audio, which this program "
                "does not open; leave it out, or declare the samples as a corpus"
            )
        return self
