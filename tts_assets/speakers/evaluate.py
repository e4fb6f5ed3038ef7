"""Judges a speaker encoder: ``python -m tts_assets.speakers.evaluate run.json``.

Voices of the test speakers, a seeded list of trials, and on it the errors of the encoder and of
one beside it. ``result/``: ``trials.txt``, ``scores.parquet``, ``voices.parquet``,
``confusion.csv``, ``report.json``, ``report.md`` and the pictures.

The pictures of a report: DET curves, who is taken for whom, and the voices on a plane.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from tts_assets.core.accounting import SET_ASIDE_FILE, SetAside, write_set_aside
from tts_assets.core.artifacts import written_aside
from tts_assets.core.audio import BrokenAudio
from tts_assets.core.program import Run, load_config
from tts_assets.speakers.config import ReportProgram, TrialConfig, resolve
from tts_assets.speakers.dataset import SpeakerRecording, read_people
from tts_assets.speakers.encoder import NoSpeech, VoiceEncoder
from tts_assets.speakers.verification import (
    Errors,
    Trial,
    confusion,
    errors,
    make_trials,
    score_trials,
    some,
    write_trials,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_SPEAKERS = 20  # whose points have colours that can be told apart
SHOWN_NAMES = 40  # that fit beside a plot_confusion
LEAST_ERROR = 1e-3  # where the axes of a DET curve begin
TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4)
NEIGHBOURS = 30  # perplexity of t-SNE, neighbours of UMAP; fewer where there are few voices


def plot_det(curves: Mapping[str, Errors], path: Path) -> None:
    """Misses over false alarms, on the scale of the normal distribution."""
    figure = _figure(5, 5)
    axes = figure.subplots()
    ends = deviates([LEAST_ERROR, 0.5])
    axes.plot(ends, ends, color="#bbbbbb", linewidth=1)
    for name, found in curves.items():
        points = [
            deviates(np.clip(side, LEAST_ERROR, 0.6)) for side in (found.false_alarms, found.misses)
        ]
        axes.plot(*points, label=f"{name}: EER {100 * found.eer:.1f} %")
    places = deviates(TICKS)
    labels = [f"{100 * tick:g}" for tick in TICKS]
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)
    axes.set(xlim=ends, ylim=ends, xlabel="false alarms, %", ylabel="misses, %")
    axes.legend()
    figure.savefig(path)


def deviates(shares: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the normal distribution has these shares below."""
    return np.array([NormalDist().inv_cdf(share) for share in shares])


def plot_confusion(names: Sequence[str], counts: NDArray[np.int64], path: Path) -> None:
    """Shares of each speaker's recordings by the speaker they are nearest to."""
    size = min(12.0, 3 + 0.25 * len(names))
    figure = _figure(size, size)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    if len(names) <= SHOWN_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
        axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set(xlabel="nearest", ylabel="speaks")
    figure.savefig(path)


def plot_plane(points: NDArray[np.floating], speakers: Sequence[str], path: Path) -> None:
    """Voices [n, 2] as dots, coloured by speaker."""
    from matplotlib import colormaps

    figure = _figure(8, 5.5)
    axes = figure.subplots()
    names = sorted(set(speakers))
    colours = colormaps["tab20"]
    for number, name in enumerate(names):
        mine = points[[speaker == name for speaker in speakers]]
        label = name if len(names) <= SHOWN_SPEAKERS else None
        axes.scatter(
            mine[:, 0], mine[:, 1], s=6, color=colours(number % SHOWN_SPEAKERS), label=label
        )
    axes.set_xticks([])
    axes.set_yticks([])
    if len(names) <= SHOWN_SPEAKERS:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    figure.savefig(path)


def tsne_points(voices: NDArray[np.float32], seed: int) -> NDArray[np.floating]:
    """Unit vectors [n, d] to points [n, 2] (van der Maaten and Hinton, 2008)."""
    perplexity = min(NEIGHBOURS, (len(voices) - 1) / 3)
    made = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
    return np.asarray(made.fit_transform(voices))


def umap_points(voices: NDArray[np.float32], seed: int) -> NDArray[np.floating] | None:
    """Unit vectors [n, d] to points [n, 2] (McInnes et al., 2018); None without ``umap-learn``,
    the extra ``umap``."""
    if find_spec("umap") is None:
        return None
    from umap import UMAP

    neighbours = min(NEIGHBOURS, len(voices) - 1)
    made = UMAP(metric="cosine", n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(made.fit_transform(voices))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=80, layout="constrained")


OURS = "encoder"
PLANE_VOICES = 2000  # t-SNE takes about 10 s for so many
PICTURES = {
    "det.png": "Errors at every threshold",
    "confusion.png": "Whose voice a recording is nearest to",
    "tsne.png": "The voices by t-SNE",
    "umap.png": "The voices by UMAP",
}
NO_UMAP = "no UMAP: pip install tts-assets[umap]"

Voices = dict[str, NDArray[np.float32]]


class EncoderEvaluation:
    """One encoder on the test speakers, and another beside it."""

    def __init__(self, run: Run, program: ReportProgram) -> None:
        self.run, self.config = run, program.trials
        self.people = read_people(program.corpora, program.people)
        self.encoders = {OURS: VoiceEncoder.load(resolve(program.encoder, Path()))}
        if self.config.beside:
            beside = resolve(self.config.beside, program.root)
            self.encoders[self.config.beside] = VoiceEncoder.load(beside)
        self.set_aside: list[SetAside] = []

    def judge(self) -> dict[str, Any]:
        """Write all files of the report; returns its numbers."""
        recordings = chosen(self.people.test, self.config)
        voices = {name: {} for name in self.encoders}  # type: dict[str, Voices]
        heard = [
            recording
            for recording in self.run.progress(recordings, "voices")
            if self._hear(recording, voices)
        ]
        trials = make_trials(heard, self.config)
        same = [trial.same for trial in trials]
        scores = {name: score_trials(trials, found) for name, found in voices.items()}
        p = self.config.p_target
        found = {name: errors(values, same, p) for name, values in scores.items()}
        within = self._within_corpora(heard, trials, scores)
        names, counts = confusion(heard, voices[OURS])
        report = {
            "speakers": len(names),
            "utterances": len(heard),
            "set_aside": len(self.set_aside),
            "trials": len(trials),
            "identified": round(float(np.trace(counts)) / len(heard), 6),
            "p_target": p,
            "eer": {name: round(one.eer, 6) for name, one in found.items()},
            "min_dcf": {name: round(one.min_dcf, 6) for name, one in found.items()},
            "eer_within_corpora": within,
        }
        self._write(trials, scores, heard, voices[OURS])
        self._draw(found, names, counts, heard, voices[OURS])
        self._tell(report)
        return report

    def _hear(self, recording: SpeakerRecording, voices: dict[str, Voices]) -> bool:
        """Add a recording's voice by each encoder; all of them, or none."""
        try:
            made = {n: e.wav_to_embedding(recording.path) for n, e in self.encoders.items()}
        except (BrokenAudio, NoSpeech) as error:
            reason = error.reason if isinstance(error, BrokenAudio) else "no speech"
            where = f"{recording.corpus}/{recording.id}"
            self.set_aside.append(SetAside(where, reason, str(error)))
            return False
        for name, voice in made.items():
            voices[name][recording.id] = voice
        return True

    def _within_corpora(
        self,
        heard: Sequence[SpeakerRecording],
        trials: Sequence[Trial],
        scores: dict[str, NDArray[np.float64]],
    ) -> dict[str, float]:
        """The EER on trials whose two recordings are of one corpus: channels tell less there.
        Empty where a corpus has but one speaker."""
        corpus = {recording.id: recording.corpus for recording in heard}
        places = [i for i, t in enumerate(trials) if corpus[t.a] == corpus[t.b]]
        same = [trials[i].same for i in places]
        if len(set(same)) < 2:
            return {}
        p = self.config.p_target
        return {
            name: round(errors(values[places], same, p).eer, 6) for name, values in scores.items()
        }

    def _write(
        self,
        trials: Sequence[Trial],
        scores: dict[str, NDArray[np.float64]],
        heard: Sequence[SpeakerRecording],
        voices: Voices,
    ) -> None:
        folder = self.run.result_dir
        write_trials(folder / "trials.txt", trials)
        write_set_aside(folder / SET_ASIDE_FILE, [*self.people.set_aside, *self.set_aside])
        rows = [(t.same, t.a, t.b) for t in trials]
        table = pl.DataFrame(rows, schema=["same", "a", "b"], orient="row")
        columns = [pl.Series(name, values) for name, values in scores.items()]
        table.with_columns(columns).write_parquet(folder / "scores.parquet")
        pl.DataFrame(
            {
                "id": [r.id for r in heard],
                "speaker": [r.speaker for r in heard],
                "corpus": [r.corpus for r in heard],
                "session": [r.session for r in heard],
                "voice": np.stack([voices[r.id] for r in heard]),
            }
        ).write_parquet(folder / "voices.parquet")

    def _draw(
        self,
        found: dict[str, Errors],
        names: Sequence[str],
        counts: NDArray[np.int64],
        heard: Sequence[SpeakerRecording],
        voices: Voices,
    ) -> None:
        folder = self.run.result_dir
        plot_det(found, folder / "det.png")
        plot_confusion(names, counts, folder / "confusion.png")
        table = pl.DataFrame(counts, schema=list(names)).insert_column(
            0, pl.Series("speaker", names)
        )
        table.write_csv(folder / "confusion.csv")
        order = np.random.default_rng(self.config.seed).permutation(len(heard))[:PLANE_VOICES]
        shown = [heard[place] for place in sorted(order)]
        matrix = np.stack([voices[r.id] for r in shown])
        speakers = [r.speaker for r in shown]
        plot_plane(tsne_points(matrix, self.config.seed), speakers, folder / "tsne.png")
        points = umap_points(matrix, self.config.seed)
        if points is None:
            self.run.note(NO_UMAP)
        else:
            plot_plane(points, speakers, folder / "umap.png")

    def _tell(self, report: dict[str, Any]) -> None:
        folder = self.run.result_dir
        with written_aside(folder / "report.json") as aside:
            aside.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
        shown = [
            f"## {title}\n\n![{title}]({name})\n"
            for name, title in PICTURES.items()
            if (folder / name).is_file()
        ]
        if not (folder / "umap.png").is_file():
            shown.append(f"{NO_UMAP}\n")
        (folder / "report.md").write_text("\n".join(["# Speaker encoder\n", table(report), *shown]))


def chosen(tested: Sequence[SpeakerRecording], config: TrialConfig) -> list[SpeakerRecording]:
    """The recordings that trials may use: no other one is heard."""
    voices: dict[str, list[SpeakerRecording]] = {}
    for recording in sorted(tested):
        voices.setdefault(recording.speaker, []).append(recording)
    return [r for name, group in sorted(voices.items()) for r in some(group, name, config)]


def table(report: dict[str, Any]) -> str:
    """The errors of each encoder in Markdown, after a line of what they are measured on."""
    within = report["eer_within_corpora"]
    lines = [
        f"{report['trials']} trials of {report['utterances']} utterances of "
        f"{report['speakers']} speakers whom nobody was trained on; {report['set_aside']} set "
        f"aside. {100 * report['identified']:.1f} % of the utterances are nearest to their own "
        "speaker.\n",
        f"| | EER, % | EER within a corpus, % | minDCF ({report['p_target']:g}) |",
        "|---|---|---|---|",
    ]
    for name, eer in report["eer"].items():
        inside = f"{100 * within[name]:.2f}" if name in within else "–"
        lines.append(f"| {name} | {100 * eer:.2f} | {inside} | {report['min_dcf'][name]:.3f} |")
    return "\n".join(lines) + "\n"


def facts(report: dict[str, Any]) -> dict[str, Any]:
    """The report's numbers as the artifact has them."""
    beside = [name for name in report["eer"] if name != OURS]
    return {
        "eer": report["eer"][OURS],
        "min_dcf": report["min_dcf"][OURS],
        "identified": report["identified"],
        "beside": beside[0] if beside else "",
        "eer_beside": report["eer"][beside[0]] if beside else None,
        **{name: report[name] for name in ("speakers", "utterances", "set_aside", "trials")},
    }


def main(argv: list[str] | None = None) -> None:
    program = load_config(ReportProgram, argv)
    with Run(program.run_dir) as run:
        run.finish(facts(EncoderEvaluation(run, program).judge()))


if __name__ == "__main__":
    main()
