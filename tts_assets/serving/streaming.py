"""Decodes codec codes to audio while they are generated, and finds faulty completions.

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
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tts_assets.codec.model import Codec
from tts_assets.serving.pieces import Wave, crossfade

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
