"""Codes to audio as they come: the first audio long before the last token.

The codec's decoder looks both ways, so a code's samples are final only when the future is known.
Each chunk is therefore decoded with all that came before it (voice prompt, too) and with
``LOOKAHEAD`` codes after it, and is crossfaded into the one before. Against the whole decode the
difference is 16-24 dB below the speech for the vendored codec with 8 codes ahead, 15-24 dB with 4,
21-30 dB with 50; the last chunk is the whole decode's, bit for bit.

Chunks double, from ``FIRST`` to ``LONGEST`` codes, so that decoding the past again costs about as
much again as decoding once. ``PieceStream`` keeps from the listener what can still be kept.

What a serving model says of its speech (:mod:`tts_assets.core.audio`), and whether it may speak.

Raw pcm has no place for a comment: the server says it in a header, too.

Audio formats that are sent over a network: whole files, and streams without a length.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from datetime import date
from typing import Literal, get_args

import numpy as np
import soxr
from numpy.typing import NDArray

from tts_assets.codec.model import Codec
from tts_assets.core.audio import statement, wav_comment, write_speech
from tts_assets.corpora.config import check_consents
from tts_assets.serving.config import ServingCard
from tts_assets.serving.pieces import Fault, Wave, audible_share, crossfade, fault, first_repeat

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


Format = Literal["mp3", "opus", "flac", "wav", "pcm"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
CONTAINERS = {
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "flac": ("FLAC", "PCM_16"),
    "wav": ("WAV", "PCM_16"),
}
PCM_RATE = 24_000  # of OpenAI's pcm, which names no rate: 16-bit little-endian mono
UNKNOWN = 0x7FFFF000  # the size that a header names when the end is not known


def encode(wave: Wave, rate: int, name: Format, comment: str) -> bytes:
    """A whole waveform, mono float32, with a comment; pcm has none and is resampled to 24 kHz."""
    if name == "pcm":
        return pcm16(soxr.resample(wave, rate, PCM_RATE).astype(np.float32))
    container, subtype = CONTAINERS[name]
    buffer = io.BytesIO()
    write_speech(buffer, wave, rate, comment, container, subtype)
    return buffer.getvalue()


def pcm16(wave: Wave) -> bytes:
    """Signed 16-bit little-endian samples."""
    return (wave.clip(-1, 1) * 32767).round().astype("<i2").tobytes()


class StreamEncoder:
    """pcm at 24 kHz, or wav of unknown length at the model's rate, as the waveform comes."""

    def __init__(self, rate: int, name: Literal["wav", "pcm"], comment: str) -> None:
        self.head = wav_header(rate, comment) if name == "wav" else b""
        self.resampler = soxr.ResampleStream(rate, PCM_RATE, 1) if name == "pcm" else None

    def push(self, wave: Wave) -> bytes:
        head, self.head = self.head, b""
        if self.resampler is not None:
            wave = self.resampler.resample_chunk(wave)
        return head + pcm16(wave)

    def finish(self) -> bytes:
        """What the resampler still holds."""
        if self.resampler is None:
            return b""
        return pcm16(self.resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))


def wav_header(rate: int, comment: str) -> bytes:
    """Of 16-bit mono whose length is not known."""
    tags = wav_comment(comment)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    data = struct.pack("<4sI", b"data", UNKNOWN)
    size = UNKNOWN + 36 + len(tags)
    return struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + form + tags + data


FIRST = 16  # codes: 0.3 s at 50 a second
LONGEST = 256
LOOKAHEAD = 8
OVERLAP = 1  # codes of a chunk's end that are crossfaded into the next


class StreamDecoder:
    """Decodes one completion. Hand it codes; it gives the waveforms that are due.

    :meth:`due` and :meth:`decode` are apart so that a server can decode in another thread.
    """

    def __init__(self, codec: Codec, prompt: Sequence[int] = ()) -> None:
        self.codec = codec
        self.prompt = np.asarray(prompt, dtype=np.int64)
        self.codes = np.empty(0, dtype=np.int64)
        self.given = 0  # codes whose samples were handed out
        self.chunk = FIRST
        self.held = np.zeros(0, dtype=np.float32)  # the overlap, as the last chunk has it

    def add(self, codes: NDArray[np.int64]) -> None:
        self.codes = np.concatenate([self.codes, codes])

    def due(self) -> bool:
        """Are there enough codes for the next chunk?"""
        return len(self.codes) >= self.given + self.chunk + OVERLAP + LOOKAHEAD

    def decode(self, last: bool = False) -> Wave:
        """The next chunk; ``last``: all that is left, to be called once, at the end."""
        hop = self.codec.hop_length
        end = len(self.codes) if last else self.given + self.chunk
        if end == self.given:
            return np.zeros(0, dtype=np.float32)
        stop = len(self.codes) if last else end + OVERLAP + LOOKAHEAD
        seen = np.concatenate([self.prompt, self.codes[:stop]])
        wave = self.codec.decode([seen])[0][len(self.prompt) * hop :]
        fresh = wave[self.given * hop : end * hop]
        size = min(len(self.held), len(fresh))
        fresh = np.concatenate([crossfade(self.held[:size], fresh[:size]), fresh[size:]])
        self.held = wave[end * hop : (end + OVERLAP) * hop] if not last else self.held[:0]
        self.given, self.chunk = end, min(2 * self.chunk, LONGEST)
        return fresh


class PieceStream:
    """One piece while its codes come: what may be heard of it.

    Silence at the start is held back, so that a piece which has given no audio can be drawn again.
    A loop ends the piece where it begins to say the same again, or at what was given by then.
    """

    def __init__(
        self, codec: Codec, prompt: Sequence[int], sample_rate: int, token_rate: float
    ) -> None:
        self.decoder = StreamDecoder(codec, prompt)
        self.sample_rate, self.token_rate = sample_rate, token_rate
        self.waves: list[Wave] = []
        self.given = 0  # of ``waves``
        self.looping = False  # nothing more of it should be drawn

    def add(self, codes: NDArray[np.int64]) -> None:
        self.decoder.add(codes)

    def due(self) -> bool:
        return not self.looping and self.decoder.due()

    def decode(self) -> Wave:
        """The next chunk, after the silence that was held back; no samples: keep silent."""
        self.looping = first_repeat(self.decoder.codes, self.token_rate) is not None
        if not self.looping:
            self.waves.append(self.decoder.decode())
            if self.given or audible_share(self.waves[-1], self.sample_rate):
                wave = np.concatenate(self.waves[self.given :])
                self.given = len(self.waves)
                return wave
        return np.zeros(0, dtype=np.float32)

    def finish(self, ended: bool) -> tuple[Wave, Fault | None]:
        """All that is left, and what is wrong with the piece; ``ended``: the model said it was
        done."""
        codes = self.decoder.codes
        repeat = first_repeat(codes, self.token_rate)
        if repeat is not None:
            self.decoder.codes = codes[: max(repeat, self.decoder.given)]
        self.waves.append(self.decoder.decode(last=True))
        whole, done = np.concatenate(self.waves), ended or repeat is not None
        found = fault(codes, whole, done, self.sample_rate, self.token_rate)
        return np.concatenate(self.waves[self.given :]), found
