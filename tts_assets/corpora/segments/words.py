"""What is said, and when: Whisper with word timestamps, on windows that end in pauses.

Beam search at temperature 0 without the fallback to sampling, one window at a time and without
the text before it: what is heard in a window depends on nothing else. Timestamps come from
cross-attention; they are off by 0.1 s now and then, and a word may take in a pause at its side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_assets.core.audio import Wave
from tts_assets.corpora.segments.speech import RATE, Stretch

LONGEST_WINDOW = 28.0  # s; Whisper hears 30
SILENCE_AROUND = 0.2  # s of a window before and after its speech
WHISPER_SAMPLES = 30 * RATE
LONGEST_TEXT = 448  # tokens; all that Whisper's decoder holds
BEAM_SIZE = 5
PREPENDED, APPENDED = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"  # punctuation that is part of a word


@dataclass(frozen=True)
class Word:
    """``text`` as Whisper writes it, with the space before it and the punctuation after it;
    ``start`` and ``end`` in seconds of the recording; ``probability`` from 0 to 1."""

    text: str
    start: float
    end: float
    probability: float

    @property
    def stretch(self) -> Stretch:
        return Stretch(self.start, self.end)

    @property
    def ends_sentence(self) -> bool:
        return self.text.rstrip("\"'”’»)")[-1:] in set(".?!…。？！")


class WordTranscriber:
    """A Whisper model: ``folder`` of CTranslate2; one thread a process, so that nothing depends
    on how many there are. ``device`` as torch names it."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from faster_whisper import WhisperModel

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
        return not self.whisper.model.is_multilingual

    def language(self, wave: Wave) -> str:
        """The language of up to 30 s of speech at 16 kHz, as a code of two letters."""
        return str(self.whisper.detect_language(wave)[0])

    def words(self, wave: Wave, window: Stretch, language: str) -> list[Word]:
        """The words within a window of ``wave``, in order; ``language``: two letters."""
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
        (heard,) = self.whisper.model.generate(
            encoded, [prompt], beam_size=BEAM_SIZE, max_length=LONGEST_TEXT
        )
        tokens = [token for token in heard.sequences_ids[0] if token < tokenizer.eot]
        if not tokens:
            return []
        frames = (last - first) // self.whisper.feature_extractor.hop_length
        (found,) = self.whisper.find_alignment(tokenizer, [tokens], encoded, frames)
        merge_punctuations(found, PREPENDED, APPENDED)
        offset = first / RATE
        return [
            Word(
                text=word["word"],
                start=round(offset + float(word["start"]), 3),
                end=round(offset + float(word["end"]), 3),
                probability=round(float(word["probability"]), 4),
            )
            for word in found
            if word["word"]
        ]


def windows(speech: Sequence[Stretch]) -> Iterator[Stretch]:
    """Stretches of up to 28 s that hold all speech, but what goes on for longer without a pause.

    A window ends at the longest of the pauses in its second half.
    """
    left = [stretch for stretch in speech if stretch.seconds <= LONGEST_WINDOW]
    while left:
        start = left[0].start
        fits = [i for i, part in enumerate(left) if part.end - start <= LONGEST_WINDOW]
        later = [i for i in fits if left[i].end - start > LONGEST_WINDOW / 2]
        last = fits[-1]
        if later and len(left) > len(fits):
            last = max(later, key=lambda i: left[i + 1].start - left[i].end)
        yield Stretch(start, left[last].end)
        left = left[last + 1 :]
