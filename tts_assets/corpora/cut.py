"""A part of a recording as a FLAC file of its own: the same samples, rate and channels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import soundfile

from tts_assets.audio import HEADERLESS, SNDFILE_SUFFIXES, blocks

# What libsndfile and FFmpeg decode to no more than 16 bits.
SIXTEEN_BITS = {"PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "ALAC_16"}
SIXTEEN_BITS |= {"u8", "u8p", "s16", "s16p"}


def cut(path: Path, first: int, last: int, channels: Sequence[int] = ()) -> bytes:
    """Frames ``first`` to before ``last`` of the named channels (from 0; none named: all).

    Sources of up to 16 bits become 16-bit FLAC and those of 24 bits 24-bit FLAC, sample for
    sample. 32-bit, float and lossy sources are rounded to 24 bits (144 dB below full scale);
    float samples beyond full scale are clipped to it. Opus fills in noise that depends on where
    decoding began: a cut differs from the whole by -60 dB. Raises BrokenAudio.
    """
    found, left = [], last - first
    for block in blocks(path, first):
        found.append(block.frames[:left, list(channels)] if channels else block.frames[:left])
        left -= len(found[-1])
        if left <= 0:
            break
    bits = 16 if _sample_type(path) in SIXTEEN_BITS else 24
    # float32 holds 24 bits exactly, so that this gives back what the file has.
    scaled = np.rint(np.concatenate(found).astype(np.float64) * 2 ** (bits - 1))
    whole = np.clip(scaled, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int32)
    flac = io.BytesIO()
    soundfile.write(flac, whole << (32 - bits), block.rate, format="FLAC", subtype=f"PCM_{bits}")
    return flac.getvalue()


def _sample_type(path: Path) -> str:
    """libsndfile's subtype, or FFmpeg's sample format."""
    if path.suffix.lower() in SNDFILE_SUFFIXES:
        return soundfile.info(path).subtype
    with av.open(str(path), format=HEADERLESS.get(path.suffix.lower())) as container:
        return container.streams.audio[0].codec_context.format.name
