"""Evaluates a speaker encoder: ``python -m tts_assets.speakers.evaluate run.json``.

The program embeds recordings of the test speakers, draws trials from a seed, and measures the
encoder and optionally a baseline on them. ``result/`` has ``trials.txt``, ``scores.parquet``,
``voices.parquet`` (the embeddings), ``confusion.csv``, ``report.json``, ``report.md`` and the
plots: DET curves, the confusion matrix, and the embeddings in two dimensions.
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
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.audio import BrokenAudio
from tts_assets.core.metadata import csv_cell, table_row
from tts_assets.core.program import Run, load_config, one_thread
from tts_assets.speakers.config import SEED_OF_TRIALS, ReportProgram, resolve
from tts_assets.speakers.dataset import (
    P_TARGET,
    REPORTED,
    Errors,
    SpeakerRecording,
    SpeakerSplit,
    Trial,
    TrialLimits,
    confusion,
    errors,
    make_trials,
    read_speakers,
    sample_utterances,
    score_trials,
    write_trials,
)
from tts_assets.speakers.encoder import NoSpeech, VoiceEncoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENCODER = "encoder"  # the name of the evaluated encoder in the files of the report
PLOTTED_EMBEDDINGS = 2000  # t-SNE takes about 10 s for so many
SHOWN_SPEAKERS = 20  # with colours that can be distinguished
SHOWN_NAMES = 40  # that fit along a confusion matrix
LEAST_ERROR = 1e-3  # lower end of the axes of a DET curve
TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4)
NEIGHBOURS = 30  # perplexity of t-SNE, neighbours of UMAP; less with few embeddings
PLOTS = {
    "det.png": "DET curve: misses over false alarms",
    "confusion.png": "Confusion matrix of the nearest speaker",
    "tsne.png": "Embeddings by t-SNE",
    "umap.png": "Embeddings by UMAP",
}
NO_UMAP = "no UMAP: pip install tts-assets[umap]"

Embeddings = dict[str, NDArray[np.float32]]  # unit vectors by the id of the recording
Scores = dict[str, NDArray[np.float64]]  # (trials,) by the name of the encoder


def main(argv: list[str] | None = None) -> None:
    """Evaluate the encoder of a ``run.json``."""
    program = load_config(ReportProgram, argv)
    with one_thread(), Run(program.run_dir) as run:
        split = read_speakers(program.corpora, program.selection)
        evaluation = EncoderEvaluation(run, split, load_encoders(program))
        run.finish(facts(evaluation.evaluate()))


def load_encoders(program: ReportProgram) -> dict[str, VoiceEncoder]:
    """The evaluated encoder and the baseline, by name."""
    encoders = {ENCODER: VoiceEncoder.load(resolve(program.encoder, Path()))}
    baseline = program.trials.baseline
    if baseline:
        encoders[baseline] = VoiceEncoder.load(resolve(baseline, program.root))
    return encoders


class EncoderEvaluation:
    """Measures encoders on the recordings of the test speakers."""

    def __init__(
        self,
        run: Run,
        split: SpeakerSplit,
        encoders: Mapping[str, VoiceEncoder],
        limits: TrialLimits = REPORTED,
    ) -> None:
        self.run, self.split, self.encoders, self.limits = run, split, encoders, limits
        self.set_aside: list[SetAside] = []

    def evaluate(self) -> dict[str, Any]:
        """Write all files of the report; return its numbers."""
        recordings, embeddings = self._embed(trial_recordings(self.split.test, self.limits))
        trials = make_trials(recordings, self.limits)
        same = [trial.same for trial in trials]
        scores = {name: score_trials(trials, found) for name, found in embeddings.items()}
        found = {name: errors(values, same, P_TARGET) for name, values in scores.items()}
        names, counts = confusion(recordings, embeddings[ENCODER])
        report = {
            "speakers": len(names),
            "utterances": len(recordings),
            "set_aside": len(self.set_aside),
            "trials": len(trials),
            "identified": round(float(np.trace(counts)) / len(recordings), 6),
            "p_target": P_TARGET,
            "eer": {name: round(one.eer, 6) for name, one in found.items()},
            "min_dcf": {name: round(one.min_dcf, 6) for name, one in found.items()},
            "eer_within_corpora": eer_within_corpora(recordings, trials, scores),
        }
        folder = self.run.result_dir
        write_set_aside(folder / SET_ASIDE_FILE, [*self.split.set_aside, *self.set_aside])
        write_tables(folder, trials, scores, recordings, embeddings[ENCODER])
        write_confusion(folder, names, counts)
        plot_det(found, folder / "det.png")
        self._plot_embeddings(recordings, embeddings[ENCODER])
        write_report(folder, report)
        return report

    def _embed(
        self, recordings: Sequence[SpeakerRecording]
    ) -> tuple[list[SpeakerRecording], dict[str, Embeddings]]:
        """The recordings that have speech, and their embeddings by encoder; sets others aside."""
        embeddings: dict[str, Embeddings] = {name: {} for name in self.encoders}
        kept = []
        for recording in self.run.progress(recordings, "embeddings"):
            try:
                made = {n: e.wav_to_embedding(recording.path) for n, e in self.encoders.items()}
            except (BrokenAudio, NoSpeech) as error:
                reason = error.reason if isinstance(error, BrokenAudio) else "no speech"
                where = f"{recording.corpus}/{recording.id}"
                self.set_aside.append(SetAside(where, reason, str(error)))
                continue
            kept.append(recording)
            for name, vector in made.items():
                embeddings[name][recording.id] = vector
        return kept, embeddings

    def _plot_embeddings(
        self, recordings: Sequence[SpeakerRecording], embeddings: Embeddings
    ) -> None:
        """t-SNE, and UMAP if it is installed, of some embeddings."""
        folder, seed = self.run.result_dir, SEED_OF_TRIALS
        order = np.random.default_rng(seed).permutation(len(recordings))[:PLOTTED_EMBEDDINGS]
        shown = [recordings[index] for index in sorted(order)]
        matrix = np.stack([embeddings[r.id] for r in shown])
        speakers = [r.speaker for r in shown]
        plot_points(tsne_points(matrix, seed), speakers, folder / "tsne.png")
        points = umap_points(matrix, seed)
        if points is None:
            self.run.note(NO_UMAP)
        else:
            plot_points(points, speakers, folder / "umap.png")


def trial_recordings(
    recordings: Sequence[SpeakerRecording], limits: TrialLimits
) -> list[SpeakerRecording]:
    """The recordings that trials may use; no others are embedded."""
    by_speaker: dict[str, list[SpeakerRecording]] = {}
    for recording in sorted(recordings):
        by_speaker.setdefault(recording.speaker, []).append(recording)
    groups = sorted(by_speaker.items())
    return [r for name, group in groups for r in sample_utterances(group, name, limits)]


def eer_within_corpora(
    recordings: Sequence[SpeakerRecording], trials: Sequence[Trial], scores: Scores
) -> dict[str, float]:
    """The EER by encoder on trials within one corpus, where the channel is less informative.

    Empty if each corpus has only one speaker.
    """
    corpus = {recording.id: recording.corpus for recording in recordings}
    chosen = [i for i, t in enumerate(trials) if corpus[t.a] == corpus[t.b]]
    same = [trials[i].same for i in chosen]
    if len(set(same)) < 2:
        return {}
    return {
        name: round(errors(values[chosen], same, P_TARGET).eer, 6)
        for name, values in scores.items()
    }


def write_tables(
    folder: Path,
    trials: Sequence[Trial],
    scores: Scores,
    recordings: Sequence[SpeakerRecording],
    embeddings: Embeddings,
) -> None:
    """Write the trials, their scores, and the embeddings of the evaluated encoder."""
    write_trials(folder / "trials.txt", trials)
    rows = [(t.same, t.a, t.b) for t in trials]
    frame = pl.DataFrame(rows, schema=["same", "a", "b"], orient="row")
    columns = [pl.Series(name, values) for name, values in scores.items()]
    frame.with_columns(columns).write_parquet(folder / "scores.parquet")
    pl.DataFrame(
        {
            "id": [r.id for r in recordings],
            "speaker": [r.speaker for r in recordings],
            "corpus": [r.corpus for r in recordings],
            "session": [r.session for r in recordings],
            "voice": np.stack([embeddings[r.id] for r in recordings]),
        }
    ).write_parquet(folder / "voices.parquet")


def write_confusion(folder: Path, names: Sequence[str], counts: NDArray[np.int64]) -> None:
    """Write the confusion matrix (speakers, speakers) as a table and as a plot."""
    plot_confusion(names, counts, folder / "confusion.png")
    shown = list(map(csv_cell, names))
    frame = pl.DataFrame(counts, schema=shown)
    frame.insert_column(0, pl.Series("speaker", shown)).write_csv(folder / "confusion.csv")


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write ``report.json``, and ``report.md`` with the plots that exist."""
    with atomic_write(folder / "report.json") as aside:
        aside.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    shown = [
        f"## {title}\n\n![{title}]({name})\n"
        for name, title in PLOTS.items()
        if (folder / name).is_file()
    ]
    if not (folder / "umap.png").is_file():
        shown.append(f"{NO_UMAP}\n")
    (folder / "report.md").write_text("\n".join(["# Speaker encoder\n", table(report), *shown]))


def table(report: dict[str, Any]) -> str:
    """The errors of each encoder in Markdown, after a sentence about the trials."""
    within = report["eer_within_corpora"]
    lines = [
        f"{report['trials']} trials of {report['utterances']} utterances of "
        f"{report['speakers']} test speakers; {report['set_aside']} utterances were set "
        f"aside. {100 * report['identified']:.1f} % of the utterances are nearest to their own "
        "speaker.\n",
        f"| | EER, % | EER within a corpus, % | minDCF ({report['p_target']:g}) |",
        "|---|---|---|---|",
    ]
    for name, eer in report["eer"].items():
        inside = f"{100 * within[name]:.2f}" if name in within else "–"
        least = f"{report['min_dcf'][name]:.3f}"
        lines.append(table_row([name, f"{100 * eer:.2f}", inside, least]))
    return "\n".join(lines) + "\n"


def facts(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the report as facts of the artifact; ``beside`` is the baseline."""
    baselines = [name for name in report["eer"] if name != ENCODER]
    return {
        "eer": report["eer"][ENCODER],
        "min_dcf": report["min_dcf"][ENCODER],
        "identified": report["identified"],
        "beside": baselines[0] if baselines else "",
        "eer_beside": report["eer"][baselines[0]] if baselines else None,
        **{name: report[name] for name in ("speakers", "utterances", "set_aside", "trials")},
    }


def plot_det(curves: Mapping[str, Errors], path: Path) -> None:
    """Misses over false alarms on axes of normal deviates (Martin et al., 1997)."""
    figure = _figure(5, 5)
    axes = figure.subplots()
    ends = deviates([LEAST_ERROR, 0.5])
    axes.plot(ends, ends, color="#bbbbbb", linewidth=1)
    for name, found in curves.items():
        points = [
            deviates(np.clip(side, LEAST_ERROR, 0.6)) for side in (found.false_alarms, found.misses)
        ]
        axes.plot(*points, label=f"{name}: EER {100 * found.eer:.1f} %")
    positions = deviates(TICKS)
    labels = [f"{100 * tick:g}" for tick in TICKS]
    axes.set_xticks(positions, labels)
    axes.set_yticks(positions, labels)
    axes.set(xlim=ends, ylim=ends, xlabel="false alarms, %", ylabel="misses, %")
    axes.legend()
    figure.savefig(path)


def deviates(fractions: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The quantiles of the standard normal distribution, (n,), for ``fractions`` (n,) in (0, 1)."""
    return np.array([NormalDist().inv_cdf(fraction) for fraction in fractions])


def plot_confusion(names: Sequence[str], counts: NDArray[np.int64], path: Path) -> None:
    """The fractions of each speaker's recordings by their nearest speaker."""
    size = min(12.0, 3 + 0.25 * len(names))
    figure = _figure(size, size)
    axes = figure.subplots()
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Greens", vmin=0, vmax=1)
    if len(names) <= SHOWN_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
        axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set(xlabel="nearest speaker", ylabel="speaker")
    figure.savefig(path)


def plot_points(points: NDArray[np.floating], speakers: Sequence[str], path: Path) -> None:
    """A scatter plot of embeddings (n, 2), coloured by speaker."""
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


def tsne_points(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.floating]:
    """Unit vectors (n, d) to points (n, 2) (van der Maaten and Hinton, 2008)."""
    perplexity = min(NEIGHBOURS, (len(embeddings) - 1) / 3)
    made = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
    return np.asarray(made.fit_transform(embeddings))


def umap_points(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.floating] | None:
    """Unit vectors (n, d) to points (n, 2) (McInnes et al., 2018).

    None if ``umap-learn``, the extra ``umap``, is not installed.
    """
    if find_spec("umap") is None:
        return None
    from umap import UMAP

    neighbours = min(NEIGHBOURS, len(embeddings) - 1)
    made = UMAP(metric="cosine", n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(made.fit_transform(embeddings))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=80, layout="constrained")


if __name__ == "__main__":
    main()
