"""``report.html``, ``report.json`` and ``listening.ipynb`` of measured codecs.

Real-time factors are the only figures that another run does not repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tts_assets.codec_report.config import CodecReportProgram
from tts_assets.codec_report.measure import ClipFigures, SystemFigures
from tts_assets.config import canonical_json
from tts_assets.evaluation import page
from tts_assets.evaluation.clips import Embedder, read_flac
from tts_assets.evaluation.page import Player, percent, player_of
from tts_assets.notebook import NOTEBOOK_FILE, Clip, Section, write_notebook
from tts_assets.plots import spectrograms

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


def listened(folder: Path, version: Version) -> Clip:
    clip = version.clip
    errors = f"heard: {clip.heard or 'nothing'}" if clip.word_errors else "heard as written"
    rate = clip.word_errors / clip.words
    return Clip(version.name, f"{errors} ({percent(rate, 0)} word errors)", folder / clip.audio)
