"""Measures of clips: as recorded, and resynthesized by a codec.

ASR is Whisper, quality is DNSMOS, and speaker similarity is the cosine of Resemblyzer. A clip
whose language the ASR model does not know, or whose text has no words, has no WER.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.speaker_similarity import SpeakerEncoder
from tts_assets.audio_models.transcription import open_transcriber
from tts_assets.audio_models.wer import Interval, match, normalize_for_match, rate_interval
from tts_assets.audio_models.whisper import spoken_language, transcribes
from tts_assets.codec.losses import (
    aligned,
    bit_rate,
    count_codes,
    mel_distance,
    pesq,
    pitch,
    pitch_error,
    stft_distance,
    stoi,
    usage,
)
from tts_assets.codec.model import Codec
from tts_assets.codec.semantic import ContentCodec
from tts_assets.codec.xcodec2 import SAMPLE_RATE
from tts_assets.codec_report.config import LONGEST_SECONDS, CodecReportProgram
from tts_assets.core.accounting import SetAside, ValidationSplit, raise_nothing_usable
from tts_assets.core.audio import Wave, read_clip, resample
from tts_assets.core.config import Config
from tts_assets.corpora.samples import Sample, located_samples
from tts_assets.corpora.validation import is_held_out, settled
from tts_assets.evaluation.page import write_flac

ORIGINAL = "original"
SHORTEST = 1024  # samples of a clip with an STFT distance


class ClipMetrics(Config):
    """The metrics of one clip resynthesized by one codec.

    ``text`` is the reference, ``heard`` the transcript of the ASR model, ``audio`` a path below
    ``result/``. ``words`` is 0 for a clip without a WER. The recording itself has no intrusive
    metrics.
    """

    id: str
    text: str
    audio: str
    heard: str
    word_errors: int
    words: int
    character_errors: int = 0
    characters: int = 0
    p808: float | None
    overall: float | None
    similarity: float | None = None
    stoi: float | None = None
    pesq: float | None = None
    mel: float | None = None
    stft: float | None = None
    cents: float | None = None
    voicing: float | None = None


class Speed(Config):
    """Real-time factors: seconds of work per second of audio."""

    encode: float
    decode: float


class CodeStatistics(Config):
    """The usage of a codec's codes in these clips, and the size of the codec."""

    codes: int
    codebook_size: int
    codes_used: int
    entropy: float
    perplexity: float
    bit_rate: float
    sample_rate: int
    parameters: int


class SystemMetrics(Config):
    """All metrics of a codec or of the recordings."""

    name: str
    clips: tuple[ClipMetrics, ...]
    codes: CodeStatistics | None = None
    speed: Speed | None = None

    @property
    def wer(self) -> float | None:
        """Word errors of all clips / words of all clips; None if no clip was transcribed."""
        words = sum(c.words for c in self.clips)
        return sum(c.word_errors for c in self.clips) / words if words else None

    @property
    def cer(self) -> float | None:
        """Character errors of all clips / characters of all clips; None without transcripts."""
        characters = sum(c.characters for c in self.clips)
        return sum(c.character_errors for c in self.clips) / characters if characters else None

    @property
    def wer_interval(self) -> Interval | None:
        """The 95 % interval of the WER, by bootstrap over the clips that have one."""
        clips = [c for c in self.clips if c.words]
        if not clips:
            return None
        return rate_interval([c.word_errors for c in clips], [c.words for c in clips])

    def mean(self, name: str) -> float | None:
        """The mean over the clips that have the metric ``name``; None if there are none."""
        values = [value for clip in self.clips if (value := getattr(clip, name)) is not None]
        return fmean(values) if values else None


def held_out(program: CodecReportProgram) -> list[Sample]:
    """The clips of the report, sorted by id.

    They are the validation utterances of the corpora that have words: no codec of this project was
    trained on them. Without ``validation`` they are all utterances. Raises ValueError if there are
    none.
    """
    every = list(all_samples(program))
    chosen = [sample for sample, split in every if not unsuitable(sample, split)]
    if not chosen:
        raise_nothing_usable(
            f"{sorted(program.samples)} have no held-out utterance with words of at most "
            f"{LONGEST_SECONDS:g} s: raise [validation] fraction, or take corpora that have "
            "transcripts",
            (SetAside(s.id, unsuitable(s, split), s.transcript) for s, split in every),
        )
    return sorted(chosen, key=lambda sample: sample.id)[: program.report.clips]


def all_samples(program: CodecReportProgram) -> Iterator[tuple[Sample, ValidationSplit | None]]:
    """The samples of all corpora, each with the validation split of its corpus, if there is one."""
    for _, path in sorted(program.samples.items()):
        split = program.validation and settled(program.validation, [path])
        yield from ((sample, split) for sample in located_samples(path))


def unsuitable(sample: Sample, split: ValidationSplit | None) -> str:
    """Why the report does not use a sample; empty if it does."""
    if split is None:
        return ""
    if not is_held_out(sample, split):
        return "for training"
    return "too long" if sample.duration > LONGEST_SECONDS else no_words(sample)


def no_words(sample: Sample) -> str:
    """Why the text of a sample cannot be compared with a transcript; empty if it can."""
    text = sample.original_data.get("text", sample.transcript)
    if set(text) & set("()[]…") or "..." in text:
        return "text with parentheses or dots"
    words = normalize_for_match(sample.transcript, sample.language)
    return "" if words else "no words"  # "Hmm." is normalized to nothing


class Measurer:
    """Measures clips with models that are loaded once; holds the recordings."""

    def __init__(self, program: CodecReportProgram, folder: Path) -> None:
        self.whisper, self.folder = program.report.whisper, folder
        self.samples = held_out(program)
        self.recordings = [read_clip(Path(sample.wav_path)) for sample in self.samples]
        self.waves = [resample(clip.wave, clip.rate, SAMPLE_RATE) for clip in self.recordings]
        self.pitches = [pitch(wave) for wave in self.waves]
        self.transcriber = (
            open_transcriber(self.whisper, beam_size=1)
            if any(map(self.is_transcribed, self.samples))
            else None
        )
        self.dnsmos = DnsmosScorer()
        self.speaker_encoder = SpeakerEncoder()
        self.embeddings = [self.speaker_encoder.embed(wave, SAMPLE_RATE) for wave in self.waves]

    @property
    def seconds(self) -> float:
        """The duration of all recordings."""
        return sum(map(len, self.waves)) / SAMPLE_RATE

    def originals(self) -> Iterator[ClipMetrics]:
        """Yield the metrics of the recordings, each at its own sample rate."""
        return self._measured(ORIGINAL, [(clip.wave, clip.rate) for clip in self.recordings])

    def through(
        self, name: str, codec: Codec
    ) -> tuple[CodeStatistics, Speed, Iterator[ClipMetrics]]:
        """Encode and decode every clip with the codec ``name``.

        Returns code statistics, speed, and an iterator that measures the clips.
        """
        waves = self.waves
        if codec.input_rate != SAMPLE_RATE:
            waves = [resample(own.wave, own.rate, codec.input_rate) for own in self.recordings]
        codec.decode(codec.encode(waves[:1]))  # warm-up, not timed
        started = time.perf_counter()
        codes = codec.encode(waves)
        encoded = time.perf_counter()
        made = codec.decode(codes)
        decoded = time.perf_counter()
        speed = Speed(
            encode=(encoded - started) / self.seconds, decode=(decoded - encoded) / self.seconds
        )
        clips = self._measured(name, [(wave, codec.sample_rate) for wave in made])
        compared = (
            clip.model_copy(update=self._compared(row, made[row], codec))
            for row, clip in enumerate(clips)
        )
        return code_statistics(codec, codes), speed, compared

    def _measured(self, name: str, clips: Sequence[tuple[Wave, int]]) -> Iterator[ClipMetrics]:
        """Write and transcribe clips: waveforms with their rates in Hz, in the samples' order."""
        for sample, (wave, rate) in zip(self.samples, clips, strict=True):
            audio = f"audio/{name.replace(' ', '-')}/{sample.id}.flac"
            write_flac(self.folder / audio, wave, rate)
            text = self._transcript(sample, wave, rate)
            found = None if text is None else match(sample.transcript, text, sample.language)
            mos = self.dnsmos(wave, rate)
            yield ClipMetrics(
                id=sample.id,
                text=sample.transcript,
                audio=audio,
                heard=text or "",
                word_errors=found.word_errors if found else 0,
                words=found.words if found else 0,
                character_errors=found.character_errors if found else 0,
                characters=found.characters if found else 0,
                p808=rounded(mos.p808 if mos else None),
                overall=rounded(mos.overall if mos else None),
            )

    def is_transcribed(self, sample: Sample) -> bool:
        """Whether a clip has a WER."""
        return transcribes(self.whisper, sample.language) and not no_words(sample)

    def _transcript(self, sample: Sample, wave: Wave, rate: int) -> str | None:
        if self.transcriber is None or not self.is_transcribed(sample):
            return None
        return self.transcriber([(wave, rate)], [spoken_language(sample.language)])[0]

    def _compared(self, row: int, made: Wave, codec: Codec) -> dict[str, float | None]:
        """Intrusive metrics of a resynthesis of recording ``row``.

        The codes of a :class:`ContentCodec` have no pitch, so there is no error of it.
        """
        pair = aligned(self.waves[row], made, codec.sample_rate)
        pitched = not isinstance(codec.backend.model, ContentCodec)
        error = pitch_error(self.pitches[row], pitch(pair[1])) if pitched else None
        embeddings = self.embeddings[row], self.speaker_encoder.embed(made, codec.sample_rate)
        metrics = {
            "similarity": cosine(*embeddings),
            "stoi": stoi(*pair),
            "pesq": pesq(*pair),
            "mel": mel_distance(*pair),
            "stft": stft_distance(*pair) if len(pair[0]) >= SHORTEST else None,
            "cents": error and error.cents,
            "voicing": error and error.voicing,
        }
        return {name: rounded(value) for name, value in metrics.items()}


def code_statistics(codec: Codec, codes: Iterable[NDArray[np.int64]]) -> CodeStatistics:
    """The usage of the codes of all clips, each (codes,)."""
    counts = count_codes(codes, codec.codebook_size)
    used = usage(counts, len(codec.frame))
    return CodeStatistics(
        codes=int(counts.sum()),
        codebook_size=codec.codebook_size,
        codes_used=int(used["codes_used"]),
        entropy=used["entropy"],
        perplexity=used["perplexity"],
        bit_rate=bit_rate(codec.token_rate, codec.frame.sizes),
        sample_rate=codec.sample_rate,
        parameters=codec.facts.parameters,
    )


def cosine(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> float | None:
    """The cosine of two unit vectors (n,); None if a clip has too little speech for one."""
    return None if a is None or b is None else float(np.dot(a, b))


def rounded(value: float | None) -> float | None:
    """Four digits; BLAS and ONNX change further digits from machine to machine."""
    return None if value is None else round(value, 4)
