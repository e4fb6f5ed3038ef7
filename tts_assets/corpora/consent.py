"""By whose leave a voice is imitated: ``[corpora.<name>.consent]``.

A model that was trained on a person's voice speaks as that person. No serving model is published
of it before the configuration says who agreed, to what, and until when; what was agreed goes into
the model's card. Nothing here is proof: it makes the question one that somebody answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Literal

from pydantic import Field

from tts_assets.config import Config, ConfigError

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
