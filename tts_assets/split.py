"""Who is validation: decided by an utterance's identity alone, the same in every stage."""

from __future__ import annotations

import hashlib

from pydantic import Field

from tts_assets.config import Config


class ValidationSplit(Config):
    """``[validation]``. Another ``salt`` draws another set of the same expected size."""

    fraction: float = Field(default=0.06, ge=0, lt=1)
    salt: str = "1"


def is_validation(utterance_id: str, split: ValidationSplit) -> bool:
    """Whether an utterance is held out: its hash, as a number in [0, 1), is below the fraction.

    It does not depend on order, shard, rank count or any other utterance.
    """
    digest = hashlib.blake2b(f"{split.salt}:{utterance_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < split.fraction
