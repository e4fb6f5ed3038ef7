"""Long texts, piece by piece: split at sentences, joined again without clicks.

A model speaks as long as its ``max_tokens`` and no longer, and was trained on clips of seconds. A
text that fills more than half of that is split where a speaker would breathe. The pieces' audio
meets in silence: faded at its edges, with the pause that the punctuation asks for; where a sentence
had to be cut between words there is none, and the two are crossfaded.

What a listener would not accept, seen in a completion before it is handed out.

A sampled completion can go wrong: it runs on to the token limit, loops, or says nothing. Each is
a property of the codes and the waveform alone, so the same completion is always judged alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tts_assets.speechlm.config import SamplingConfig

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


Wave = NDArray[np.float32]

CHARACTERS_A_SECOND = 15.0  # English read aloud: 150 words a minute
WIDE = 3  # a Chinese character or a kana is spoken as long as three letters
FILLED = 0.5  # of max_tokens: a slow speaker needs the rest
PAUSES = {"\n": 0.6, ".": 0.35, "!": 0.35, "?": 0.35, ":": 0.25, ";": 0.25, ",": 0.15, "": 0.0}
FULL_WIDTH = str.maketrans("。！？；：，、", ".!?;:,,")
ENDS = (
    re.compile(r"\n\s*\n"),
    re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])"),
    re.compile(r"(?<=[;:])\s+|(?<=[；：])"),
    re.compile(r"(?<=,)\s+|(?<=[，、])"),
    re.compile(r"\s+"),
)
ABBREVIATION = re.compile(r"(?:^|\s)(?:[A-Z]|Mrs?|Ms|Drs?|St|Jr|Sr|Prof|vs|e\.g|i\.e|No)\.\s*$")
FADE_SECONDS = 0.005  # a cut of a wave is a click; over 5 ms it is none
CROSSFADE_SECONDS = 0.02
QUIET = 0.003  # -50 dB below full scale: what a speaker's own pause stays under


@dataclass(frozen=True)
class Piece:
    """A part of a text, and the pause in seconds that follows it."""

    text: str
    pause: float


def longest_piece(sampling: SamplingConfig, token_rate: float) -> int:
    """Characters of speech that fill half of ``max_tokens``."""
    return max(20, int(FILLED * sampling.max_tokens / token_rate * CHARACTERS_A_SECOND))


def split(text: str, longest: int) -> list[Piece]:
    """``text`` in pieces of at most ``longest`` characters, each as long as it may be.

    Cut at paragraphs, else at sentences, at colons, at commas, between words; one word is never
    cut. All words are in the pieces, in order.
    """
    text = text.strip()
    parts = [part.strip() for part in _parts(text, longest, 0)]
    paragraphs = {match.start() for match in ENDS[0].finditer(text)}
    pieces, place = [], 0
    for part in filter(None, parts):
        place = text.index(part, place) + len(part)
        mark = "\n" if place in paragraphs else part.rstrip("\"')]")[-1:].translate(FULL_WIDTH)
        pieces.append(Piece(part, PAUSES.get(mark, 0.0)))
    if pieces:
        pieces[-1] = Piece(pieces[-1].text, 0.0)
    return pieces


def spoken_length(text: str) -> int:
    """Characters, wide ones counted as often as they take."""
    return sum(WIDE if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _parts(text: str, longest: int, level: int) -> Iterator[str]:
    if spoken_length(text) <= longest or level == len(ENDS):
        yield text
        return
    packed = ""
    for part in _cut(text, ENDS[level]):
        if packed and spoken_length((packed + part).strip()) > longest:
            yield from _parts(packed, longest, level + 1)
            packed = ""
        packed += part
    yield from _parts(packed, longest, level + 1)


def _cut(text: str, end: re.Pattern[str]) -> Iterator[str]:
    """The parts of ``text`` up to and including each match of ``end``."""
    start = 0
    for match in end.finditer(text):
        if ABBREVIATION.search(text[start : match.start()]):
            continue
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


class PieceConcatenator:
    """Joins the audio of pieces, whole or as it comes: float32 in, float32 out, nothing lost.

    The end of a piece is held back, ``CROSSFADE_SECONDS``, until it is known what follows it. The
    quiet that the speaker left at a joint counts towards its pause.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.fade = round(FADE_SECONDS * rate)
        self.held = np.zeros(0, dtype=np.float32)  # the last of what came
        self.quiet = 0  # samples since the last audible one
        self.pause: float | None = None  # that follows a piece which has ended

    def push(self, wave: Wave) -> Wave:
        """More of the present piece; what can be heard now."""
        if not len(wave):
            return wave
        if self.pause is not None:
            start = self._joint(wave)
            self.pause = None
        else:
            start = np.concatenate([self.held, wave])
        loud = np.flatnonzero(np.abs(wave) > QUIET)
        self.quiet = len(wave) - 1 - int(loud[-1]) if len(loud) else self.quiet + len(wave)
        cut = max(0, len(start) - round(CROSSFADE_SECONDS * self.rate))
        self.held = start[cut:]
        return start[:cut]

    def end_piece(self, pause: float) -> None:
        """The present piece is complete; ``pause`` seconds before the next."""
        self.pause = pause

    def finish(self) -> Wave:
        held, self.held = self.held, np.zeros(0, dtype=np.float32)
        return held

    def _joint(self, wave: Wave) -> Wave:
        """The held end, the pause, and the start of the next piece."""
        assert self.pause is not None
        if self.pause == 0:
            return crossfade(self.held, wave)
        loud = np.flatnonzero(np.abs(wave) > QUIET)
        before = int(loud[0]) if len(loud) else len(wave)
        missing = max(0, round(self.pause * self.rate) - self.quiet - before)
        ramp = _ramp(min(self.fade, len(self.held), len(wave)))
        end, start = self.held.copy(), wave.copy()
        end[len(end) - len(ramp) :] *= ramp[::-1]
        start[: len(ramp)] *= ramp
        return np.concatenate([end, np.zeros(missing, dtype=np.float32), start])


def crossfade(end: Wave, start: Wave) -> Wave:
    """``end`` becomes ``start`` over the shorter of the two; the amplitudes' weights sum to 1."""
    size = min(len(end), len(start))
    ramp = _ramp(size)
    mixed = end[len(end) - size :] * ramp[::-1] + start[:size] * ramp
    return np.concatenate([end[: len(end) - size], mixed, start[size:]])


def _ramp(size: int) -> Wave:
    """Raised cosine from 0 to 1."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(size) + 0.5) / max(size, 1))).astype(np.float32)
