"""Assigns utterances to the training or validation split from a hash of their id."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tts_assets.core.config import Config


class ValidationSplit(Config):
    """``[validation]``. Another ``salt`` selects another set of the same expected size."""

    fraction: float = Field(default=0.06, ge=0, lt=1)
    salt: str = "1"


def is_validation(utterance_id: str, split: ValidationSplit) -> bool:
    """Whether the hash of an id, as a number in [0, 1), is below ``split.fraction``.

    The result does not depend on order, shards, ranks or other utterances.
    """
    digest = hashlib.blake2b(f"{split.salt}:{utterance_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < split.fraction


def held_out(ids: Sequence[bytes], split: ValidationSplit) -> NDArray[np.bool_]:
    """:func:`is_validation` for many ids (UTF-8 bytes), four times as fast. Shape (ids,)."""
    seeded = hashlib.blake2b(f"{split.salt}:".encode(), digest_size=8)
    digests = []
    for identity in ids:
        digest = seeded.copy()
        digest.update(identity)
        digests.append(digest.digest())
    numbers = np.frombuffer(b"".join(digests), dtype=">u8")
    return numbers.astype(np.float64) / 2**64 < split.fraction
