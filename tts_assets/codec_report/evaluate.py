"""Measures codecs on held-out speech: ``python -m tts_assets.codec_report.evaluate run.json``.

Each codec's figures are kept as soon as they are there; a restart measures the others.

The figures of one codec: of every clip what is lost of it, of the codes how they are used.

``report.html``, ``report.json`` and ``listening.ipynb`` of measured codecs.

Real-time factors are the only figures that another run does not repeat.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.speaker_similarity import SpeakerEncoder
from tts_assets.audio_models.transcription import Transcriber
from tts_assets.audio_models.wer import Interval, match, normalize_for_match, rate_interval
from tts_assets.codec.model import Codec
from tts_assets.codec.quality import (
    aligned,
    bit_rate,
    count_codes,
    mel_distance,
    pesq,
    pitch,
    pitch_error,
    stoi,
    usage,
)
from tts_assets.codec.xcodec2 import SAMPLE_RATE
from tts_assets.codec_report.config import CodecReportProgram, CodecVersion
from tts_assets.core.artifacts import written_aside
from tts_assets.core.audio import Wave, read_clip, resample
from tts_assets.core.config import Config, ConfigError, canonical_json
from tts_assets.core.notebook import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.core.plots import spectrograms
from tts_assets.core.program import Run, load_config
from tts_assets.core.split import is_validation
from tts_assets.corpora.samples import Sample, read_samples
from tts_assets.evaluation import page
from tts_assets.evaluation.page import Embedder, Player, percent, player_of, read_flac, write_flac

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
        self.naturalness = DnsmosScorer()
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


PAGE_FILE, FIGURES_FILE = "report.html", "report.json"
TEMPLATE = Path(__file__).with_name("codec_report.html.j2")
PICTURED = 6  # clips with spectrograms: 60 kB each
FIGURES = {  # attribute of ClipFigures: heading, digits, better
    "stoi": ("STOI", 3, "higher"),
    "pesq": ("PESQ", 2, "higher"),
    "mel": ("Mel L1", 3, "lower"),
    "cents": ("Pitch error, cents", 0, "lower"),
    "voicing": ("Voicing error", 3, "lower"),
    "p808": ("DNSMOS P.808", 2, "higher"),
    "overall": ("DNSMOS overall", 2, "higher"),
    "similarity": ("Likeness of the voice", 3, "higher"),
}


@dataclass(frozen=True)
class Version:
    """How one system says a clip."""

    name: str
    clip: ClipFigures
    player: Player | None


@dataclass(frozen=True)
class Said:
    """A clip in all systems, the original first; ``picture`` is a data URI or empty."""

    text: str
    versions: list[Version]
    picture: str


def write_report(
    folder: Path, systems: Sequence[SystemFigures], program: CodecReportProgram
) -> None:
    """Write page, figures and notebook into ``folder``, which holds the audio already."""
    embed = Embedder(folder / clip.audio for system in systems for clip in system.clips)
    said = [
        Said(
            clips[0].text,
            [
                Version(system.name, clip, player_of(folder / clip.audio, embed))
                for system, clip in zip(systems, clips, strict=True)
            ],
            picture(folder, systems, clips) if number < PICTURED else "",
        )
        for number, clips in enumerate(zip(*(system.clips for system in systems), strict=True))
    ]
    (folder / PAGE_FILE).write_text(render(systems, said, program))
    (folder / FIGURES_FILE).write_text(canonical_json(figures(systems)) + "\n")
    sections = [Section(item.text, [listened(folder, v) for v in item.versions]) for item in said]
    write_notebook(folder / NOTEBOOK_FILE, "Codecs side by side", sections)


def render(
    systems: Sequence[SystemFigures], said: Sequence[Said], program: CodecReportProgram
) -> str:
    return page.render(
        TEMPLATE,
        title="Codecs side by side",
        systems=systems,
        columns={
            name: heading
            for name, heading in FIGURES.items()
            if any(system.mean(name) is not None for system in systems)
        },
        said=said,
        whisper=program.report.whisper or "tiny.en",
        lineage=program.lineage,
    )


def figures(systems: Sequence[SystemFigures]) -> list[dict[str, object]]:
    """What the page says, for machines."""
    return [
        {
            "name": system.name,
            "wer": system.wer,
            "wer_interval": asdict(system.wer_interval),
            **{name: system.mean(name) for name in FIGURES},
            "codes": system.codes,
            "speed": system.speed,
            "clips": system.clips,
        }
        for system in systems
    ]


def picture(folder: Path, systems: Sequence[SystemFigures], clips: Sequence[ClipFigures]) -> str:
    heard = [read_flac(folder / clip.audio) for clip in clips]
    return spectrograms({s.name: clip for s, clip in zip(systems, heard, strict=True)})


def listened(folder: Path, version: Version) -> NotebookClip:
    clip = version.clip
    errors = f"heard: {clip.heard or 'nothing'}" if clip.word_errors else "heard as written"
    rate = clip.word_errors / clip.words
    return NotebookClip(
        version.name, f"{errors} ({percent(rate, 0)} word errors)", folder / clip.audio
    )


class Evaluation:
    """The systems of a report, one after the other: the originals, then every codec."""

    def __init__(self, run: Run, program: CodecReportProgram) -> None:
        self.run, self.program = run, program
        names = [version.name for version in program.versions]
        if not names or len(set(names)) != len(names) or ORIGINAL in names:
            raise ConfigError(f"versions need names of their own, other than {ORIGINAL!r}: {names}")
        self.measurer = Measurer(program, run.result_dir)

    def systems(self) -> list[SystemFigures]:
        self.run.note(f"{len(self.measurer.samples)} clips, {self.measurer.seconds:.0f} s")
        return [self._kept(None), *(self._kept(version) for version in self.program.versions)]

    def _kept(self, version: CodecVersion | None) -> SystemFigures:
        name = ORIGINAL if version is None else version.name
        path = self.run.checkpoint_dir / f"{name.replace(' ', '-')}.json"
        if path.is_file():
            return SystemFigures.from_json(path)
        found = self._measured(name, version)
        with written_aside(path) as aside:
            aside.write_text(found.to_json())
        return found

    def _measured(self, name: str, version: CodecVersion | None) -> SystemFigures:
        codes = speed = None
        if version is None:
            clips = self.measurer.originals()
        else:
            codec = Codec.load(version.codec)
            if version.decoder is not None:
                codec.use_decoder(version.decoder)
            codes, speed, clips = self.measurer.through(name, codec)
        rows: list[ClipFigures] = []
        for clip in self.run.progress(clips, name, total=len(self.measurer.samples)):
            rows.append(clip)
            if self.run.stop_requested:
                self.run.stopped()
        return SystemFigures(name=name, clips=tuple(rows), codes=codes, speed=speed)


def facts_of(systems: list[SystemFigures]) -> dict[str, Any]:
    """Of the codec that the report is of."""
    original, codec = systems[0], systems[1]
    assert codec.codes is not None and codec.speed is not None
    means = ("stoi", "pesq", "mel", "cents", "voicing", "p808", "similarity")
    return {
        "clips": len(codec.clips),
        "versions": len(systems) - 1,
        "wer": codec.wer,
        "wer_original": original.wer,
        "p808_original": original.mean("p808"),
        **{name: codec.mean(name) for name in means},
        "perplexity": codec.codes.perplexity,
        "codes_used": codec.codes.codes_used,
        "bit_rate": codec.codes.bit_rate,
        "encode_real_time_factor": codec.speed.encode,
        "decode_real_time_factor": codec.speed.decode,
    }


def main(argv: list[str] | None = None) -> None:
    program = load_config(CodecReportProgram, argv)
    with Run(program.run_dir) as run:
        systems = Evaluation(run, program).systems()
        write_report(run.result_dir, systems, program)
        run.finish(facts_of(systems))


if __name__ == "__main__":
    main()
