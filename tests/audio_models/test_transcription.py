"""Whisper transcribes real recordings, alone and in a batch."""

from __future__ import annotations

import numpy as np
import pytest

from tts_assets.audio_models.transcription import Transcriber, quietest_position
from tts_assets.audio_models.wer import corpus_wer, match
from tts_assets.core.audio import Clip

Recordings = dict[str, tuple[str, Clip]]


def sentences(recordings: Recordings) -> list[tuple[str, tuple[np.ndarray, int]]]:
    return [(text, (c.wave, c.rate)) for text, c in recordings.values() if c.seconds > 2][:4]


def test_real_recordings(transcriber: Transcriber, recordings: Recordings) -> None:
    texts, clips = zip(*sentences(recordings), strict=True)
    transcripts = transcriber(clips)
    pairs = zip(texts, transcripts, strict=True)
    assert corpus_wer(match(text, words) for text, words in pairs) <= 0.06


def test_a_transcript_does_not_depend_on_batch_mates(
    transcriber: Transcriber, recordings: Recordings
) -> None:
    clips = [clip for _, clip in sentences(recordings)][:3]
    assert transcriber(clips) == [transcriber([clip])[0] for clip in clips]


def test_an_empty_clip_has_an_empty_transcript(transcriber: Transcriber) -> None:
    assert transcriber([(np.zeros(0, dtype=np.float32), 16_000)]) == [""]
    assert transcriber([]) == []


def test_a_clip_longer_than_the_window_is_transcribed_completely(recordings: Recordings) -> None:
    words, waves = [], []
    for text, (wave, _) in sentences(recordings)[:3]:
        words.append(text)
        waves.append(wave)
    long = np.concatenate(waves)
    transcript = Transcriber(window_seconds=6, threads=1)([(long, 16_000)])[0]
    assert match(" ".join(words), transcript).wer <= 0.15


def test_the_cut_is_in_the_pause() -> None:
    wave = np.full(32_000, 0.5, dtype=np.float32)
    wave[20_000:24_000] = 0.0
    assert 21_000 < quietest_position(wave, 8_000, 32_000) < 23_000


def test_an_english_model_refuses_another_language() -> None:
    with pytest.raises(ValueError, match=r"knows English only.*'es'"):
        Transcriber(language="es")
