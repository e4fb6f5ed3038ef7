"""The figures of one codec: of every clip what is lost of it, of the codes how they are used."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from tts_assets.audio import Wave, read_clip, resample
from tts_assets.codec.features import SAMPLE_RATE
from tts_assets.codec.model import Codec
from tts_assets.codec.quality import aligned, bit_rate, mel_distance, pesq, pitch, pitch_error, stoi
from tts_assets.codec.usage import count_codes, usage
from tts_assets.codec_report.config import CodecReportProgram
from tts_assets.config import Config
from tts_assets.corpora.samples import Sample, read_samples
from tts_assets.evaluation.clips import write_flac
from tts_assets.hearing.naturalness import NaturalnessScorer
from tts_assets.hearing.speaker_similarity import SpeakerEncoder
from tts_assets.hearing.text_match import Interval, match, normalize_for_match, rate_interval
from tts_assets.hearing.transcription import Transcriber
from tts_assets.split import is_validation

ORIGINAL = "original"


class ClipFigures(Config):
    """One clip through one codec; the original has no figure that compares it with itself."""

    id: str
    text: str
    audio: str
    heard: str
    word_errors: int
    words: int
    p808: float | None
    overall: float | None
    similarity: float | None = None
    stoi: float | None = None
    pesq: float | None = None
    mel: float | None = None
    cents: float | None = None
    voicing: float | None = None


class Speed(Config):
    """Seconds of work a second of audio."""

    encode: float
    decode: float


class CodesFigures(Config):
    """How a codec's codes are used by these clips."""

    codes: int
    codebook_size: int
    codes_used: int
    entropy: float
    perplexity: float
    bit_rate: float
    sample_rate: int
    parameters: int


class SystemFigures(Config):
    """All of a codec, or of the originals."""

    name: str
    clips: tuple[ClipFigures, ...]
    codes: CodesFigures | None = None
    speed: Speed | None = None

    @property
    def wer(self) -> float:
        return sum(c.word_errors for c in self.clips) / sum(c.words for c in self.clips)

    @property
    def wer_interval(self) -> Interval:
        """95 %, by bootstrap over the clips."""
        return rate_interval([c.word_errors for c in self.clips], [c.words for c in self.clips])

    def mean(self, name: str) -> float | None:
        """Over the clips that have this figure."""
        values = [value for clip in self.clips if (value := getattr(clip, name)) is not None]
        return fmean(values) if values else None


def held_out(program: CodecReportProgram) -> list[Sample]:
    """Validation utterances of the corpora that have words, by id; no codec that was trained here
    heard them."""
    config = program.report
    chosen = [
        sample
        for _, path in sorted(program.samples.items())
        for sample in read_samples(path)
        if is_validation(sample.id, program.validation)
        and sample.duration <= config.longest_seconds
        and not set(sample.original_data.get("text", sample.transcript)) & set("()[]…")
        and "..." not in sample.original_data.get("text", sample.transcript)
        and normalize_for_match(sample.transcript, config.language)  # "Hmm." has no words
    ]
    if not chosen:
        raise ValueError(
            f"{sorted(program.samples)} have no held-out utterance with words of at most "
            f"{config.longest_seconds} s: raise longest_seconds or [validation] fraction, or take "
            "corpora that have transcripts"
        )
    return sorted(chosen, key=lambda sample: sample.id)[: config.clips]


class Measurer:
    """The models that listen, loaded once, and the originals."""

    def __init__(self, program: CodecReportProgram, folder: Path) -> None:
        config = program.report
        self.language, self.folder = config.language, folder
        self.samples = held_out(program)
        self.recordings = [read_clip(Path(sample.wav_path)) for sample in self.samples]
        self.waves = [resample(clip.wave, clip.rate, SAMPLE_RATE) for clip in self.recordings]
        self.pitches = [pitch(wave) for wave in self.waves]
        self.transcriber = Transcriber(config.whisper, language=config.language, beam_size=1)
        self.naturalness = NaturalnessScorer()
        self.speakers = SpeakerEncoder()
        self.voices = [self.speakers.embed(wave, SAMPLE_RATE) for wave in self.waves]

    @property
    def seconds(self) -> float:
        return sum(map(len, self.waves)) / SAMPLE_RATE

    def originals(self) -> Iterator[ClipFigures]:
        """At their own rates: what a codec at another one has lost can be heard and seen."""
        return self._heard(ORIGINAL, [(clip.wave, clip.rate) for clip in self.recordings])

    def through(self, name: str, codec: Codec) -> tuple[CodesFigures, Speed, Iterator[ClipFigures]]:
        """Every clip encoded and decoded; the figures of the clips come as they are measured."""
        codec.decode(codec.encode(self.waves[:1]))  # what happens but once is not counted
        started = time.perf_counter()
        codes = codec.encode(self.waves)
        encoded = time.perf_counter()
        made = codec.decode(codes)
        decoded = time.perf_counter()
        speed = Speed(
            encode=(encoded - started) / self.seconds, decode=(decoded - encoded) / self.seconds
        )
        clips = self._heard(name, [(wave, codec.sample_rate) for wave in made])
        compared = (
            clip.model_copy(update=self._compared(row, made[row], codec.sample_rate))
            for row, clip in enumerate(clips)
        )
        return codes_figures(codec, codes), speed, compared

    def _heard(self, name: str, clips: Sequence[tuple[Wave, int]]) -> Iterator[ClipFigures]:
        """``clips``: waveforms with their rates in Hz, in the order of the samples."""
        for sample, (wave, rate) in zip(self.samples, clips, strict=True):
            audio = f"audio/{name.replace(' ', '-')}/{sample.id}.flac"
            write_flac(self.folder / audio, wave, rate)
            (text,) = self.transcriber([(wave, rate)])
            found = match(sample.transcript, text, self.language)
            mos = self.naturalness(wave, rate)
            yield ClipFigures(
                id=sample.id,
                text=sample.transcript,
                audio=audio,
                heard=text,
                word_errors=found.word_errors,
                words=found.words,
                p808=rounded(mos.p808 if mos else None),
                overall=rounded(mos.overall if mos else None),
            )

    def _compared(self, row: int, made: Wave, rate: int) -> dict[str, float | None]:
        pair = aligned(self.waves[row], made, rate)
        error = pitch_error(self.pitches[row], pitch(pair[1]))
        voices = self.voices[row], self.speakers.embed(made, rate)
        figures = {
            "similarity": cosine(*voices),
            "stoi": stoi(*pair),
            "pesq": pesq(*pair),
            "mel": mel_distance(*pair),
            "cents": error and error.cents,
            "voicing": error and error.voicing,
        }
        return {name: rounded(value) for name, value in figures.items()}


def codes_figures(codec: Codec, codes: Iterable[NDArray[np.int64]]) -> CodesFigures:
    counts = count_codes(codes, codec.codebook_size)
    used = usage(counts)
    return CodesFigures(
        codes=int(counts.sum()),
        codebook_size=codec.codebook_size,
        codes_used=int(used["codes_used"]),
        entropy=used["entropy"],
        perplexity=used["perplexity"],
        bit_rate=bit_rate(codec.token_rate, codec.codebook_size),
        sample_rate=codec.sample_rate,
        parameters=codec.facts.parameters,
    )


def cosine(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> float | None:
    """Of two unit vectors; None where a clip holds too little speech."""
    return None if a is None or b is None else float(np.dot(a, b))


def rounded(value: float | None) -> float | None:
    """Four digits: what BLAS and ONNX change beyond them is no difference between two clips."""
    return None if value is None else round(value, 4)
