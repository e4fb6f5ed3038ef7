"""Splits long texts into pieces, decodes them while codes are generated, joins their audio.

Texts are normalized first, so that the length of a piece is that of what is spoken. A model
generates at most ``max_tokens`` tokens and is trained on clips of seconds. A text that needs more
than half of ``max_tokens`` is therefore split, at paragraphs and sentences first. The pause between
two pieces depends on the punctuation, or on a mark such as ``[pause 0.5s]``. The edges of pieces
are faded. Where a sentence is cut between words there is no pause: the two pieces are crossfaded.

The decoder of the codec also uses future codes, so a sample is final only when these are known.
:class:`StreamDecoder` therefore decodes each chunk with all previous codes (including the voice
prompt) and ``LOOKAHEAD`` codes after it, and crossfades it into the previous chunk. The difference
to decoding everything at once is, for the bundled codec, 16-24 dB below the speech with 8 codes of
lookahead, 15-24 dB with 4, and 21-30 dB with 50. The last chunk equals the whole decoding.
Chunks grow from ``FIRST`` to ``LONGEST`` codes by doubling, so decoding the past again costs about
as much as decoding once. These counts are frames of 50 per second; other codecs have as many frames
as take the same time, rounded up (:class:`Chunks`).

A sampled completion can fail: it does not end, it repeats itself, or it is silent.
:func:`find_fault` detects this from codes and waveform. :class:`PieceStream` combines both for one
piece of a text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tts_assets.codec.model import Codec
from tts_assets.speechlm.config import SamplingConfig

Wave = NDArray[np.float32]

CHARACTERS_A_SECOND = 15.0  # English read aloud: 150 words a minute
WIDE = 3  # letters that take as long as one Chinese character or kana
MIN_PIECE = 20  # characters
MARGIN = 1.5  # a slow speaker takes that much longer than an average one
FILLED = 0.5  # fraction of max_tokens for an average speaker: a slow one needs the rest
# Seconds of silence after a mark. An empty mark is a cut between words.
PAUSES = {"\n": 0.6, ".": 0.35, "!": 0.35, "?": 0.35, ":": 0.25, ";": 0.25, ",": 0.15, "": 0.0}
FULL_WIDTH = str.maketrans("。！？；：，、", ".!?;:,,")
PARAGRAPH = re.compile(r"\n\s*\n")
# Where to cut, best first: paragraphs, sentences, colons, commas, words.
ENDS = (
    PARAGRAPH,
    re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])"),
    re.compile(r"(?<=[;:])\s+|(?<=[；：])"),
    re.compile(r"(?<=,)\s+|(?<=[，、])"),
    re.compile(r"\s+"),
)
ABBREVIATION = re.compile(r"(?:^|\s)(?:[A-Z]|Mrs?|Ms|Drs?|St|Jr|Sr|Prof|vs|e\.g|i\.e|No)\.\s*$")
# [pause 0.5s] and the <break> of SSML, with a time or a strength
PAUSE_MARK = re.compile(
    r"\[pause\b([^\[\]\n]{0,20})\]"
    r"|<break((?:\s[^<>]{0,100}?)?)\s{0,20}/?>",
    re.IGNORECASE,
)
VALUE = r"\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'/]+))"
TIME_OF_BREAK = re.compile(rf"\btime{VALUE}", re.IGNORECASE)
STRENGTH_OF_BREAK = re.compile(rf"\bstrength{VALUE}", re.IGNORECASE)
TIME = re.compile(r"\+?(\d{1,5}(?:\.\d{1,5})?|\.\d{1,5})\s?(ms|s)?", re.IGNORECASE)
STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.4, "strong": 0.7, "x-strong": 1.2}
LONGEST_PAUSE = 10.0  # seconds
FADE_SECONDS = 0.005  # an abrupt cut is an audible click, a fade of 5 ms is not
CROSSFADE_SECONDS = 0.02
QUIET = 0.003  # amplitude, -50 dB of full scale: the pauses of a speaker stay below it
Fault = Literal["unending", "repeating", "silent"]

FRAME_SECONDS = 0.02
AUDIBLE = 10 ** (-45 / 20)  # RMS of a frame, of full scale: speech is 10-25 dB above
AUDIBLE_FRACTION = 0.2  # of the frames: the lowest of the 551 demo recordings is 0.55
LOOP_SECONDS = 2.0  # shortest repetition that counts as a loop
LONGEST_PERIOD = 50  # codes of the repeated block; frames of a codec with several codebooks

RATE = 50.0  # frames per second of the counts that follow
FIRST = 16  # frames of the first chunk: 0.3 s
LONGEST = 256
LOOKAHEAD = 8
OVERLAP = 1  # at the end of a chunk, crossfaded into the next one


@dataclass(frozen=True)
class Piece:
    """A part of a text, and the pause after it in seconds."""

    text: str
    pause: float


def sections(text: str) -> list[Piece]:
    """The texts between marks of pauses, each with the seconds of the mark behind it.

    A mark without a time is a strong break. A pause has at most :data:`LONGEST_PAUSE` seconds; the
    first and the last text of a line have no pause before and behind them. Raises ValueError for a
    mark with a time that is none.
    """
    found, start = [], 0
    for mark in PAUSE_MARK.finditer(text):
        value = mark[1] if mark[1] is not None else _value_of_break(mark[2])
        found.append(Piece(text[start : mark.start()], pause_seconds(value)))
        start = mark.end()
    return [*found, Piece(text[start:], 0.0)]


def _value_of_break(attributes: str) -> str:
    """The time of a ``<break>``, else its strength, else nothing."""
    found = TIME_OF_BREAK.search(attributes) or STRENGTH_OF_BREAK.search(attributes)
    return next(filter(None, found.groups()), "") if found else ""


def pause_seconds(value: str) -> float:
    """The seconds of ``500ms``, ``0.5s``, ``0.5`` or ``strong``. Raises ValueError for others."""
    value = value.strip()
    if not value:
        return STRENGTHS["strong"]
    if value.lower() in STRENGTHS:
        return STRENGTHS[value.lower()]
    time = TIME.fullmatch(value)
    if time is None:
        known = ", ".join(STRENGTHS)
        raise ValueError(f"{value!r} is no pause: write 500ms, 0.5s, or one of {known}")
    seconds = float(time[1]) / (1000 if (time[2] or "").lower() == "ms" else 1)
    return min(seconds, LONGEST_PAUSE)


def longest_piece(sampling: SamplingConfig, token_rate: float) -> int:
    """The number of characters whose speech fills half of ``max_tokens``."""
    return max(MIN_PIECE, int(FILLED * sampling.max_tokens / token_rate * CHARACTERS_A_SECOND))


def longest_in_context(room: int, text_tokens: float, token_rate: float) -> int:
    """The number of characters that fit into ``room`` tokens together with their speech.

    ``text_tokens`` is the number of text tokens per character, ``token_rate`` that of speech tokens
    per second.
    """
    a_character = text_tokens + MARGIN * token_rate / CHARACTERS_A_SECOND
    return max(MIN_PIECE, int(room / a_character))


def speech_tokens(characters: int, token_rate: float) -> int:
    """Speech tokens that a text of this length needs at most, at ``token_rate`` per second."""
    return round(MARGIN * characters / CHARACTERS_A_SECOND * token_rate)


def split(text: str, longest: int) -> list[Piece]:
    """Split ``text`` into pieces of at most ``longest`` characters, as few as possible.

    Cuts are at paragraphs if possible, else at sentences, colons, commas, or between words. A word
    is never cut, so a longer word is a longer piece. The pieces have all words in their order.
    """
    text = text.strip()
    parts = [part.strip() for part in _parts(text, longest, 0)]
    paragraphs = {match.start() for match in ENDS[0].finditer(text)}
    pieces, position = [], 0
    for part in filter(None, parts):
        position = text.index(part, position) + len(part)
        mark = "\n" if position in paragraphs else part.rstrip("\"')]")[-1:].translate(FULL_WIDTH)
        pieces.append(Piece(part, PAUSES.get(mark, 0.0)))
    if pieces:
        pieces[-1] = Piece(pieces[-1].text, 0.0)
    return pieces


def speech_length(text: str) -> int:
    """Number of characters. A wide character counts as ``WIDE``."""
    return sum(WIDE if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _parts(text: str, longest: int, level: int) -> Iterator[str]:
    if speech_length(text) <= longest or level == len(ENDS):
        yield text
        return
    packed = ""
    for part in _cut(text, ENDS[level]):
        if packed and speech_length((packed + part).strip()) > longest:
            yield from _parts(packed, longest, level + 1)
            packed = ""
        packed += part
    yield from _parts(packed, longest, level + 1)


def _cut(text: str, end: re.Pattern[str]) -> Iterator[str]:
    """Yield the parts of ``text``, each up to and including a match of ``end``."""
    start = 0
    for match in end.finditer(text):
        if ABBREVIATION.search(text[start : match.start()]):
            continue
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


class PieceConcatenator:
    """Joins the audio of pieces, whole or in chunks. Waveforms are float32 of shape (samples,).

    The last ``CROSSFADE_SECONDS`` of a piece are kept back until the next chunk is known. Silence
    at the edges of the pieces counts towards the pause between them.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.fade = round(FADE_SECONDS * rate)
        self.tail = np.zeros(0, dtype=np.float32)  # kept back from the last chunk
        self.quiet = 0  # samples since the last audible one
        self.pause: float | None = None  # after the last piece, if that has ended

    def push(self, wave: Wave) -> Wave:
        """Add a chunk of the current piece; return the samples that are final now."""
        if not len(wave):
            return wave
        if self.pause is not None:
            start = self._join(wave)
            self.pause = None
        else:
            start = np.concatenate([self.tail, wave])
        loud = np.flatnonzero(np.abs(wave) > QUIET)
        self.quiet = len(wave) - 1 - int(loud[-1]) if len(loud) else self.quiet + len(wave)
        cut = max(0, len(start) - round(CROSSFADE_SECONDS * self.rate))
        self.tail = start[cut:]
        return start[:cut]

    def end_piece(self, pause: float) -> None:
        """End the current piece. The next one starts after ``pause`` seconds."""
        self.pause = pause

    def finish(self) -> Wave:
        """The samples that were kept back."""
        tail, self.tail = self.tail, np.zeros(0, dtype=np.float32)
        return tail

    def _join(self, wave: Wave) -> Wave:
        """The kept-back end, the pause, and the start of the next piece."""
        assert self.pause is not None
        if self.pause == 0:
            return crossfade(self.tail, wave)
        loud = np.flatnonzero(np.abs(wave) > QUIET)
        before = int(loud[0]) if len(loud) else len(wave)
        missing = max(0, round(self.pause * self.rate) - self.quiet - before)
        ramp = _ramp(min(self.fade, len(self.tail), len(wave)))
        end, start = self.tail.copy(), wave.copy()
        end[len(end) - len(ramp) :] *= ramp[::-1]
        start[: len(ramp)] *= ramp
        return np.concatenate([end, np.zeros(missing, dtype=np.float32), start])


def crossfade(end: Wave, start: Wave) -> Wave:
    """Crossfade ``end`` into ``start`` over the shorter of the two, with weights that sum to 1."""
    size = min(len(end), len(start))
    ramp = _ramp(size)
    mixed = end[len(end) - size :] * ramp[::-1] + start[:size] * ramp
    return np.concatenate([end[: len(end) - size], mixed, start[size:]])


def _ramp(size: int) -> Wave:
    """A raised cosine from 0 to 1, shape (size,)."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(size) + 0.5) / max(size, 1))).astype(np.float32)


def find_fault(
    codes: NDArray[np.int64],
    wave: Wave,
    ended: bool,
    sample_rate: int,
    token_rate: float,
    frame: int = 1,
) -> Fault | None:
    """The reason why a completion is unusable; None if it is usable.

    ``codes`` has shape (codes,), in whole frames of ``frame`` codes, ``wave`` (samples,).
    ``ended``: the model generated its end token.
    """
    if not ended:
        return "unending"
    if audible_fraction(wave, sample_rate) < AUDIBLE_FRACTION:
        return "silent"
    if first_repeat(codes, token_rate, frame) is not None:
        return "repeating"
    return None


def audible_fraction(wave: Wave, sample_rate: int) -> float:
    """The fraction of 20 ms frames with an RMS above -45 dB of full scale; 0 without a frame."""
    size = round(FRAME_SECONDS * sample_rate)
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    if not len(frames):
        return 0.0
    return float((np.sqrt((frames**2).mean(axis=1)) > AUDIBLE).mean())


def first_repeat(codes: NDArray[np.int64], token_rate: float, frame: int = 1) -> int | None:
    """The index in ``codes`` (codes,) at which a loop starts to repeat its block; None without one.

    ``token_rate`` is in codes per second. A loop is a block of up to ``LONGEST_PERIOD`` frames of
    ``frame`` codes that is repeated for at least ``LOOP_SECONDS`` and at least three times.
    """
    longest_period = min(LONGEST_PERIOD, len(codes) // frame // 3)
    for period in range(frame, longest_period * frame + 1, frame):
        same = np.concatenate([[False], codes[period:] == codes[:-period], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        longest = int(lengths.max(initial=0)) + period
        if longest >= max(LOOP_SECONDS * token_rate, 3 * period):
            start = int(starts[lengths.argmax()]) + period
            return -(-start // frame) * frame
    return None


class Chunks:
    """The lengths of the chunks of a codec, in codes of whole frames."""

    def __init__(self, codec: Codec) -> None:
        self.frame = len(codec.frame)
        self.frames_a_second = codec.token_rate / self.frame

    def codes(self, frames: int) -> int:
        """The codes that take as long as ``frames`` of 50 per second, rounded up to frames."""
        return math.ceil(frames * self.frames_a_second / RATE) * self.frame


class StreamDecoder:
    """Decodes one completion in chunks, after a voice prompt of codes whose audio is dropped.

    :meth:`ready` and :meth:`decode` are separate so that a server can decode in another thread.
    """

    def __init__(self, codec: Codec, prompt: Sequence[int] = ()) -> None:
        self.codec = codec
        self.prompt = np.asarray(prompt, dtype=np.int64)
        self.codes = np.empty(0, dtype=np.int64)
        self.decoded = 0  # codes whose samples were returned
        chunks = Chunks(codec)
        self.chunk, self.longest = chunks.codes(FIRST), chunks.codes(LONGEST)
        self.margin, self.shared = chunks.codes(LOOKAHEAD), chunks.codes(OVERLAP)
        self.overlap = np.zeros(0, dtype=np.float32)  # samples of the last chunk's decoding

    def add(self, codes: NDArray[np.int64]) -> None:
        """Append generated codes, (codes,)."""
        self.codes = np.concatenate([self.codes, codes])

    def ready(self) -> bool:
        """True if there are enough codes for the next chunk."""
        return len(self.codes) >= self.decoded + self.chunk + self.shared + self.margin

    def decode(self, last: bool = False) -> Wave:
        """The next chunk, float32 of shape (samples,).

        ``last`` decodes all remaining codes in whole frames. Call it once, at the end.
        """
        samples = self.codec.samples
        whole = len(self.codes) - len(self.codes) % len(self.codec.frame)
        end = whole if last else self.decoded + self.chunk
        if end == self.decoded:
            return np.zeros(0, dtype=np.float32)
        stop = whole if last else end + self.shared + self.margin
        context = np.concatenate([self.prompt, self.codes[:stop]])
        wave = self.codec.decode([context])[0][samples(len(self.prompt)) :]
        fresh = wave[samples(self.decoded) : samples(end)]
        size = min(len(self.overlap), len(fresh))
        fresh = np.concatenate([crossfade(self.overlap[:size], fresh[:size]), fresh[size:]])
        overlap = wave[samples(end) : samples(end + self.shared)]
        self.overlap = overlap if not last else self.overlap[:0]
        self.decoded, self.chunk = end, min(2 * self.chunk, self.longest)
        return fresh


class PieceStream:
    """The audio of one piece while its codes are generated.

    Leading silence is kept back, so a piece that is silent can be generated again. A loop ends the
    piece where the repetition starts, or after the samples that were returned before.
    """

    def __init__(
        self, codec: Codec, prompt: Sequence[int], sample_rate: int, token_rate: float
    ) -> None:
        self.decoder, self.frame = StreamDecoder(codec, prompt), len(codec.frame)
        self.sample_rate, self.token_rate = sample_rate, token_rate
        self.waves: list[Wave] = []
        self.returned = 0  # of ``waves``
        self.looping = False  # generation should stop

    def add(self, codes: NDArray[np.int64]) -> None:
        """Append generated codes, (codes,)."""
        self.decoder.add(codes)

    def ready(self) -> bool:
        """True if :meth:`decode` has a chunk to decode."""
        return not self.looping and self.decoder.ready()

    def decode(self) -> Wave:
        """The next chunk, after any silence that was kept back. It may be empty."""
        self.looping = self._repeat() is not None
        if not self.looping:
            self.waves.append(self.decoder.decode())
            if self.returned or audible_fraction(self.waves[-1], self.sample_rate):
                wave = np.concatenate(self.waves[self.returned :])
                self.returned = len(self.waves)
                return wave
        return np.zeros(0, dtype=np.float32)

    def finish(self, ended: bool) -> tuple[Wave, Fault | None]:
        """The remaining samples, and the fault of the piece.

        ``ended``: the model generated its end token.
        """
        codes = self.decoder.codes
        repeat = self._repeat()
        if repeat is not None:
            self.decoder.codes = codes[: max(repeat, self.decoder.decoded)]
        self.waves.append(self.decoder.decode(last=True))
        whole, complete = np.concatenate(self.waves), ended or repeat is not None
        fault = find_fault(codes, whole, complete, self.sample_rate, self.token_rate, self.frame)
        return np.concatenate(self.waves[self.returned :]), fault

    def _repeat(self) -> int | None:
        return first_repeat(self.decoder.codes, self.token_rate, self.frame)
