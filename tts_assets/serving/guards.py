"""What a listener would not accept, seen in a completion before it is handed out.

A sampled completion can go wrong: it runs on to the token limit, loops, or says nothing. Each is
a property of the codes and the waveform alone, so the same completion is always judged alike.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Fault = Literal["unending", "repeating", "silent"]

FRAME_SECONDS = 0.02
AUDIBLE = 10 ** (-45 / 20)  # RMS of a frame, of full scale: speech is 10-25 dB above
AUDIBLE_SHARE = 0.2  # of the frames: the sparsest of the 551 demo recordings has 0.55
LOOP_SECONDS = 2.0  # of one thing over and over
LONGEST_PERIOD = 50  # codes of what is repeated


def fault(
    codes: NDArray[np.int64],
    wave: NDArray[np.float32],
    ended: bool,
    sample_rate: int,
    token_rate: float,
) -> Fault | None:
    """Why a completion should not be heard; None if it may."""
    if not ended:
        return "unending"
    if audible_share(wave, sample_rate) < AUDIBLE_SHARE:
        return "silent"
    if loops(codes, token_rate):
        return "repeating"
    return None


def audible_share(wave: NDArray[np.float32], sample_rate: int) -> float:
    """The share of frames of 20 ms above -45 dB of full scale; 0 for no samples."""
    size = round(FRAME_SECONDS * sample_rate)
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    if not len(frames):
        return 0.0
    return float((np.sqrt((frames**2).mean(axis=1)) > AUDIBLE).mean())


def loops(codes: NDArray[np.int64], token_rate: float) -> bool:
    """Is a block of up to 50 codes said over and over for two seconds, and three times at least?"""
    return first_repeat(codes, token_rate) is not None


def first_repeat(codes: NDArray[np.int64], token_rate: float) -> int | None:
    """The index at which a loop begins to say its block again; None without one."""
    for period in range(1, min(LONGEST_PERIOD, len(codes) // 3) + 1):
        same = np.concatenate([[False], codes[period:] == codes[:-period], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        longest = int(lengths.max(initial=0)) + period
        if longest >= max(LOOP_SECONDS * token_rate, 3 * period):
            return int(starts[lengths.argmax()]) + period
    return None
