"""Who is validation: decided by an utterance's identity alone, the same in every stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tts_assets.core.config import Config


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


def held_out(ids: Sequence[bytes], split: ValidationSplit) -> NDArray[np.bool_]:
    """:func:`is_validation` of many ids (UTF-8) at once, in a quarter of the time."""
    seeded = hashlib.blake2b(f"{split.salt}:".encode(), digest_size=8)
    digests = []
    for identity in ids:
        digest = seeded.copy()
        digest.update(identity)
        digests.append(digest.digest())
    numbers = np.frombuffer(b"".join(digests), dtype=">u8")
    return numbers.astype(np.float64) / 2**64 < split.fraction
