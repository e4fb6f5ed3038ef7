"""Measures codecs on held-out speech: ``python -m tts_assets.codec_report.evaluate run.json``.

The program resynthesizes every clip with every codec, and measures each clip and the usage of the
codes. The metrics of a codec are saved when they are complete; a restart measures only the other
codecs. ``result/`` has ``report.html``, ``report.json`` and ``listening.ipynb``. Real-time factors
are the only metrics that differ between two runs.
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
from tts_assets.core.accounting import SetAside, is_validation, raise_nothing_usable
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.audio import Wave, read_clip, resample
from tts_assets.core.config import Config, ConfigError, canonical_json
from tts_assets.core.metadata import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.core.plots import spectrograms
from tts_assets.core.program import Run, load_config
from tts_assets.corpora.audio_paths import located_samples
from tts_assets.corpora.samples import Sample
from tts_assets.evaluation import page
from tts_assets.evaluation.page import Embedder, Player, percent, player_of, read_flac, write_flac

ORIGINAL = "original"
LONGEST_SECONDS = 12.0  # of a clip; longer ones make the page large


class ClipMetrics(Config):
    """The metrics of one clip resynthesized by one codec.

    ``text`` is the reference, ``heard`` the transcript of the ASR model, ``audio`` a path below
    ``result/``. The recording itself has no intrusive metrics.
    """

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
    def wer(self) -> float:
        """Word errors of all clips / words of all clips."""
        return sum(c.word_errors for c in self.clips) / sum(c.words for c in self.clips)

    @property
    def wer_interval(self) -> Interval:
        """The 95 % interval of the WER, by bootstrap over the clips."""
        return rate_interval([c.word_errors for c in self.clips], [c.words for c in self.clips])

    def mean(self, name: str) -> float | None:
        """The mean over the clips that have the metric ``name``; None if there are none."""
        values = [value for clip in self.clips if (value := getattr(clip, name)) is not None]
        return fmean(values) if values else None


def held_out(program: CodecReportProgram) -> list[Sample]:
    """The validation utterances of the corpora that have words, sorted by id.

    No codec of this project was trained on them. Raises ValueError if there are none.
    """
    chosen = [sample for sample in all_samples(program) if not unsuitable(sample, program)]
    if not chosen:
        raise_nothing_usable(
            f"{sorted(program.samples)} have no held-out utterance with words of at most "
            f"{LONGEST_SECONDS:g} s: raise [validation] fraction, or take corpora that have "
            "transcripts",
            (SetAside(s.id, unsuitable(s, program), s.transcript) for s in all_samples(program)),
        )
    return sorted(chosen, key=lambda sample: sample.id)[: program.report.clips]


def all_samples(program: CodecReportProgram) -> Iterator[Sample]:
    """The samples of all corpora."""
    for _, path in sorted(program.samples.items()):
        yield from located_samples(path)


def unsuitable(sample: Sample, program: CodecReportProgram) -> str:
    """Why the report does not use a sample; empty if it does."""
    text = sample.original_data.get("text", sample.transcript)
    if not is_validation(sample.id, program.validation):
        return "for training"
    if sample.duration > LONGEST_SECONDS:
        return "too long"
    if set(text) & set("()[]…") or "..." in text:
        return "text with parentheses or dots"
    words = normalize_for_match(sample.transcript, program.report.language)
    return "" if words else "no words"  # "Hmm." is normalized to nothing


class Measurer:
    """Measures clips with models that are loaded once; holds the recordings.

    ASR is Whisper, quality is DNSMOS, and speaker similarity is the cosine of Resemblyzer.
    """

    def __init__(self, program: CodecReportProgram, folder: Path) -> None:
        config = program.report
        self.language, self.folder = config.language, folder
        self.samples = held_out(program)
        self.recordings = [read_clip(Path(sample.wav_path)) for sample in self.samples]
        self.waves = [resample(clip.wave, clip.rate, SAMPLE_RATE) for clip in self.recordings]
        self.pitches = [pitch(wave) for wave in self.waves]
        self.transcriber = Transcriber(config.whisper, language=config.language, beam_size=1)
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
        codec.decode(codec.encode(self.waves[:1]))  # warm-up, not timed
        started = time.perf_counter()
        codes = codec.encode(self.waves)
        encoded = time.perf_counter()
        made = codec.decode(codes)
        decoded = time.perf_counter()
        speed = Speed(
            encode=(encoded - started) / self.seconds, decode=(decoded - encoded) / self.seconds
        )
        clips = self._measured(name, [(wave, codec.sample_rate) for wave in made])
        compared = (
            clip.model_copy(update=self._compared(row, made[row], codec.sample_rate))
            for row, clip in enumerate(clips)
        )
        return code_statistics(codec, codes), speed, compared

    def _measured(self, name: str, clips: Sequence[tuple[Wave, int]]) -> Iterator[ClipMetrics]:
        """Write and transcribe clips: waveforms with their rates in Hz, in the samples' order."""
        for sample, (wave, rate) in zip(self.samples, clips, strict=True):
            audio = f"audio/{name.replace(' ', '-')}/{sample.id}.flac"
            write_flac(self.folder / audio, wave, rate)
            (text,) = self.transcriber([(wave, rate)])
            found = match(sample.transcript, text, self.language)
            mos = self.dnsmos(wave, rate)
            yield ClipMetrics(
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
        """Intrusive metrics of a resynthesis of recording ``row``."""
        pair = aligned(self.waves[row], made, rate)
        error = pitch_error(self.pitches[row], pitch(pair[1]))
        embeddings = self.embeddings[row], self.speaker_encoder.embed(made, rate)
        metrics = {
            "similarity": cosine(*embeddings),
            "stoi": stoi(*pair),
            "pesq": pesq(*pair),
            "mel": mel_distance(*pair),
            "cents": error and error.cents,
            "voicing": error and error.voicing,
        }
        return {name: rounded(value) for name, value in metrics.items()}


def code_statistics(codec: Codec, codes: Iterable[NDArray[np.int64]]) -> CodeStatistics:
    """The usage of the codes of all clips, each (codes,)."""
    counts = count_codes(codes, codec.codebook_size)
    used = usage(counts)
    return CodeStatistics(
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
    """The cosine of two unit vectors; None if a clip has too little speech for an embedding."""
    return None if a is None or b is None else float(np.dot(a, b))


def rounded(value: float | None) -> float | None:
    """Four digits; BLAS and ONNX change further digits from machine to machine."""
    return None if value is None else round(value, 4)


PAGE_FILE, FIGURES_FILE = "report.html", "report.json"
TEMPLATE = Path(__file__).with_name("codec_report.html.j2")
SPECTROGRAMS = 6  # clips with spectrograms: 60 kB each
METRICS = {  # attribute of ClipMetrics: heading, digits, better
    "stoi": ("STOI", 3, "higher"),
    "pesq": ("PESQ", 2, "higher"),
    "mel": ("Mel L1", 3, "lower"),
    "cents": ("Pitch error, cents", 0, "lower"),
    "voicing": ("Voicing error", 3, "lower"),
    "p808": ("DNSMOS P.808", 2, "higher"),
    "overall": ("DNSMOS overall", 2, "higher"),
    "similarity": ("Speaker similarity", 3, "higher"),
}


@dataclass(frozen=True)
class ClipVersion:
    """A clip as recorded or resynthesized by one system."""

    name: str
    clip: ClipMetrics
    player: Player | None


@dataclass(frozen=True)
class ComparedClip:
    """A clip in all systems, the recording first; ``plot`` is a data URI or empty."""

    text: str
    versions: list[ClipVersion]
    plot: str


def write_report(
    folder: Path, systems: Sequence[SystemMetrics], program: CodecReportProgram
) -> None:
    """Write page, metrics and notebook into ``folder``, which already has the audio."""
    embed = Embedder(folder / clip.audio for system in systems for clip in system.clips)
    compared = [
        ComparedClip(
            clips[0].text,
            [
                ClipVersion(system.name, clip, player_of(folder / clip.audio, embed))
                for system, clip in zip(systems, clips, strict=True)
            ],
            spectrogram_plot(folder, systems, clips) if number < SPECTROGRAMS else "",
        )
        for number, clips in enumerate(zip(*(system.clips for system in systems), strict=True))
    ]
    (folder / PAGE_FILE).write_text(render(systems, compared, program))
    (folder / FIGURES_FILE).write_text(canonical_json(report_json(systems)) + "\n")
    sections = [
        Section(item.text, [notebook_clip(folder, v) for v in item.versions]) for item in compared
    ]
    write_notebook(folder / NOTEBOOK_FILE, "Comparison of codecs", sections)


def render(
    systems: Sequence[SystemMetrics], compared: Sequence[ComparedClip], program: CodecReportProgram
) -> str:
    """The page ``report.html``."""
    return page.render(
        TEMPLATE,
        title="Comparison of codecs",
        systems=systems,
        columns={
            name: heading
            for name, heading in METRICS.items()
            if any(system.mean(name) is not None for system in systems)
        },
        clips=compared,
        whisper=program.report.whisper or "tiny.en",
        lineage=program.lineage,
    )


def report_json(systems: Sequence[SystemMetrics]) -> list[dict[str, object]]:
    """The content of ``report.json``: the metrics of each system and clip."""
    return [
        {
            "name": system.name,
            "wer": system.wer,
            "wer_interval": asdict(system.wer_interval),
            **{name: system.mean(name) for name in METRICS},
            "codes": system.codes,
            "speed": system.speed,
            "clips": system.clips,
        }
        for system in systems
    ]


def spectrogram_plot(
    folder: Path, systems: Sequence[SystemMetrics], clips: Sequence[ClipMetrics]
) -> str:
    """Spectrograms of one clip in all systems, as a data URI."""
    audio = [read_flac(folder / clip.audio) for clip in clips]
    return spectrograms({s.name: clip for s, clip in zip(systems, audio, strict=True)})


def notebook_clip(folder: Path, version: ClipVersion) -> NotebookClip:
    """A clip of the listening notebook, with its transcript."""
    clip = version.clip
    if clip.word_errors:
        transcript = f"transcript: {clip.heard or 'no words'}"
    else:
        transcript = "transcribed without errors"
    wer = percent(clip.word_errors / clip.words, 0)
    return NotebookClip(version.name, f"{transcript} (WER {wer})", folder / clip.audio)


class Evaluation:
    """Measures the systems of a report: first the recordings, then every codec."""

    def __init__(self, run: Run, program: CodecReportProgram) -> None:
        self.run, self.program = run, program
        names = [version.name for version in program.versions]
        if not names or len(set(names)) != len(names) or ORIGINAL in names:
            raise ConfigError(f"versions need different names, none of them {ORIGINAL!r}: {names}")
        self.measurer = Measurer(program, run.result_dir)

    def systems(self) -> list[SystemMetrics]:
        """The metrics of all systems; those that an earlier attempt saved are read."""
        self.run.note(f"{len(self.measurer.samples)} clips, {self.measurer.seconds:.0f} s")
        return [
            self._load_or_measure(None),
            *(self._load_or_measure(version) for version in self.program.versions),
        ]

    def _load_or_measure(self, version: CodecVersion | None) -> SystemMetrics:
        name = ORIGINAL if version is None else version.name
        path = self.run.checkpoint_dir / f"{name.replace(' ', '-')}.json"
        if path.is_file():
            return SystemMetrics.from_json(path)
        found = self._measure(name, version)
        with atomic_write(path) as aside:
            aside.write_text(found.to_json())
        return found

    def _measure(self, name: str, version: CodecVersion | None) -> SystemMetrics:
        codes = speed = None
        if version is None:
            clips = self.measurer.originals()
        else:
            codec = Codec.load(version.codec)
            if version.decoder is not None:
                codec.use_decoder(version.decoder)
            codes, speed, clips = self.measurer.through(name, codec)
        rows: list[ClipMetrics] = []
        for clip in self.run.progress(clips, name, total=len(self.measurer.samples)):
            rows.append(clip)
            if self.run.stop_requested:
                self.run.stopped()
        return SystemMetrics(name=name, clips=tuple(rows), codes=codes, speed=speed)


def facts_of(systems: list[SystemMetrics]) -> dict[str, Any]:
    """The facts of the artifact: metrics of the codec that the report is about."""
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
    """Measure the codecs of a ``run.json`` and write the report."""
    program = load_config(CodecReportProgram, argv)
    with Run(program.run_dir) as run:
        systems = Evaluation(run, program).systems()
        write_report(run.result_dir, systems, program)
        run.finish(facts_of(systems))


if __name__ == "__main__":
    main()
