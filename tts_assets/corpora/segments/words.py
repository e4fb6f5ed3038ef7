"""Word transcripts with timestamps: Whisper on windows that end in pauses.

Decoding is a beam search at temperature 0, without the fallback to sampling and without text from
the previous window. A transcript depends on its window alone. Timestamps come from cross-attention;
they are occasionally wrong by 0.1 s, and a word may include a neighbouring pause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tts_assets.core.audio import Wave
from tts_assets.corpora.segments.speech import RATE, Interval

LONGEST_WINDOW = 28.0  # s; Whisper's input has 30
SILENCE_AROUND = 0.2  # s before and after the speech of a window
WHISPER_SAMPLES = 30 * RATE
LONGEST_TEXT = 448  # tokens; the context of Whisper's decoder
BEAM_SIZE = 5
NOT_WORDS = re.compile(r"[\d$£€%#&+=<>@\[\](){}*♪♫]")
PREPENDED, APPENDED = (
    "\"'“¿([{-",
    "\"'.。,，!！?？:：”)]}、",
)  # punctuation that is joined to a word


@dataclass(frozen=True)
class Word:
    """One word with its time in seconds of the recording.

    ``text`` is Whisper's, with the space before it and the punctuation after it. ``probability``
    is between 0 and 1.
    """

    text: str
    start: float
    end: float
    probability: float

    @property
    def interval(self) -> Interval:
        """The time of the word."""
        return Interval(self.start, self.end)

    @property
    def ends_sentence(self) -> bool:
        """Whether the word ends with sentence punctuation."""
        return self.text.rstrip("\"'”’»)")[-1:] in set(".?!…。？！")


class WordTranscriber:
    """A Whisper model in CTranslate2 format, read from ``folder``.

    It runs on one thread, so that results do not depend on the number of cores. ``device`` is a
    torch device name.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from faster_whisper import WhisperModel  # not at module level: Dagster imports this module

        kind, _, number = device.partition(":")
        self.whisper = WhisperModel(
            str(folder),
            device=kind,
            device_index=int(number or 0),
            compute_type="int8" if kind == "cpu" else "float16",
            cpu_threads=1,
            local_files_only=True,
        )

    @property
    def knows_english_only(self) -> bool:
        """Whether the model has no language tokens."""
        return not self.whisper.model.is_multilingual

    @cached_property
    def not_words(self) -> list[int]:
        """Tokens that transcripts for training must not have.

        With digits and symbols suppressed, Whisper writes numbers as the words that it recognizes.
        A normalizer would guess them: "1998" may be spoken in two ways. Brackets and asterisks
        begin annotations such as "(beep)" and "[music]".
        """
        vocabulary = self.whisper.hf_tokenizer
        size = vocabulary.get_vocab_size(with_added_tokens=False)
        texts = vocabulary.decode_batch([[token] for token in range(size)])
        return [token for token, text in enumerate(texts) if NOT_WORDS.search(text)]

    def language(self, wave: Wave) -> str:
        """The language of up to 30 s of speech (samples,) at 16 kHz, as a code of two letters."""
        return str(self.whisper.detect_language(wave)[0])

    def words(self, wave: Wave, window: Interval, language: str) -> list[Word]:
        """The words within a window of ``wave`` (16 kHz), in order; ``language``: two letters."""
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import merge_punctuations

        first = max(0, round((window.start - SILENCE_AROUND) * RATE))
        last = min(len(wave), round((window.end + SILENCE_AROUND) * RATE))
        tokenizer = Tokenizer(
            self.whisper.hf_tokenizer,
            not self.knows_english_only,
            task="transcribe",
            language=language,
        )
        silence = max(0, WHISPER_SAMPLES - (last - first))
        mel = self.whisper.feature_extractor(np.pad(wave[first:last], (0, silence)), padding=0)
        encoded = self.whisper.encode(mel)
        prompt = self.whisper.get_prompt(tokenizer, [], without_timestamps=True)
        (result,) = self.whisper.model.generate(
            encoded,
            [prompt],
            beam_size=BEAM_SIZE,
            max_length=LONGEST_TEXT,
            suppress_tokens=[-1, *self.not_words],  # -1: those of the model's configuration
        )
        tokens = [token for token in result.sequences_ids[0] if token < tokenizer.eot]
        if not tokens:
            return []
        frames = (last - first) // self.whisper.feature_extractor.hop_length
        (alignment,) = self.whisper.find_alignment(tokenizer, [tokens], encoded, frames)
        merge_punctuations(alignment, PREPENDED, APPENDED)
        offset = first / RATE
        return [
            Word(
                text=word["word"],
                start=round(offset + float(word["start"]), 3),
                end=round(offset + float(word["end"]), 3),
                probability=round(float(word["probability"]), 4),
            )
            for word in alignment
            if word["word"]
        ]


def windows(speech: Sequence[Interval]) -> Iterator[Interval]:
    """Intervals of up to 28 s that hold all speech. Speech without a pause for 28 s is left out.

    A window ends at the longest pause of its second half.
    """
    left = [interval for interval in speech if interval.seconds <= LONGEST_WINDOW]
    while left:
        start = left[0].start
        fits = [i for i, part in enumerate(left) if part.end - start <= LONGEST_WINDOW]
        later = [i for i in fits if left[i].end - start > LONGEST_WINDOW / 2]
        last = fits[-1]
        if later and len(left) > len(fits):
            last = max(later, key=lambda i: left[i + 1].start - left[i].end)
        yield Interval(start, left[last].end)
        left = left[last + 1 :]
