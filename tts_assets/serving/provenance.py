"""What a serving model says of its speech (:mod:`tts_assets.provenance`), and whether it may speak.

Raw pcm has no place for a comment: the server says it in a header, too.
"""

from __future__ import annotations

from datetime import date

from tts_assets.corpora.consent import check_consents
from tts_assets.provenance import statement
from tts_assets.serving.config import ServingCard

HEADER = "X-Provenance"


def provenance(card: ServingCard) -> str:
    """What is written into every file that the model speaks."""
    return statement(f"{card.stage}/{card.recipe}", card.whose)


def refuse_ended(card: ServingCard) -> None:
    """Raise :class:`ConsentError` if somebody's consent has ended since it was published."""
    check_consents(card.consents, f"{card.recipe} may not speak", date.today())


def header(comment: str) -> dict[str, str]:
    """The comment as an HTTP header, which is ASCII."""
    return {HEADER: comment.encode("ascii", "backslashreplace").decode()}
