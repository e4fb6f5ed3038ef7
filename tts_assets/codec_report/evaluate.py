"""Measures codecs on held-out speech: ``python -m tts_assets.codec_report.evaluate run.json``.

The program resynthesizes every clip with every codec, and measures each clip and the usage of the
codes. The metrics of a codec are saved when they are complete; a restart measures only the other
codecs. ``result/`` has ``report.html``, ``report.json`` and ``listening.ipynb``. Real-time factors
are the only metrics that differ between two runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tts_assets.codec.model import Codec
from tts_assets.codec_report.config import CodecReportProgram, CodecVersion
from tts_assets.codec_report.measure import ORIGINAL, ClipMetrics, Measurer, SystemMetrics
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import ConfigError, canonical_json
from tts_assets.core.metadata import (
    NOTEBOOK_FILE,
    NotebookClip,
    Section,
    spectrograms,
    write_notebook,
)
from tts_assets.core.program import Run, load_config, one_thread
from tts_assets.evaluation import page
from tts_assets.evaluation.page import Embedder, Player, percent, player_of, read_flac

PAGE_FILE, FIGURES_FILE = "report.html", "report.json"
TEMPLATE = Path(__file__).with_name("codec_report.html.j2")
SPECTROGRAMS = 6  # clips with spectrograms: 60 kB each
METRICS = {  # attribute of ClipMetrics: heading, digits, better
    "stoi": ("STOI", 3, "higher"),
    "pesq": ("PESQ", 2, "higher"),
    "mel": ("Mel L1", 3, "lower"),
    "stft": ("STFT distance", 3, "lower"),
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
        transcribed=transcription(systems[0], program.report.whisper),
        held_out=program.validation is not None,
        lineage=program.lineage,
    )


def transcription(recordings: SystemMetrics, whisper: str) -> str:
    """What the page says about the ASR model, and about clips without a WER."""
    left_out = sum(not clip.words for clip in recordings.clips)
    if left_out == len(recordings.clips):
        return "WER was not measured: no ASR model is configured for the language, or no texts"
    without = f"; {left_out} have no WER: no text, or another language" if left_out else ""
    return f"transcribed by Whisper {whisper or 'tiny.en'}{without}"


def report_json(systems: Sequence[SystemMetrics]) -> list[dict[str, object]]:
    """The content of ``report.json``: the metrics of each system and clip."""
    return [
        {
            "name": system.name,
            "wer": system.wer,
            "cer": system.cer,
            "wer_interval": asdict(system.wer_interval) if system.wer_interval else None,
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
    if not clip.words:
        return NotebookClip(version.name, "not transcribed", folder / clip.audio)
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
        if self.measurer.transcriber is None:
            self.run.note(
                "WER is left out: no ASR model for the language of the clips, or no texts"
            )
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
    with one_thread(), Run(program.run_dir) as run:
        systems = Evaluation(run, program).systems()
        write_report(run.result_dir, systems, program)
        run.finish(facts_of(systems))


if __name__ == "__main__":
    main()
