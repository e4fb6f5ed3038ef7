"""Descriptions for the metadata of a training: recipe, dataset card, and over-fitting.

:func:`read_card` reads the samples of the code arrays of each corpus. :func:`warnings` lists
properties of the data that can harm the voice. :func:`markdown` writes both.

:func:`assess_fit` assesses a training from the losses of its ``metrics.jsonl``. The gap is the
validation loss minus the training loss before the same step. The gap alone says little, because a
small corpus always has one. A model over-fits if its validation loss rises while its training loss
still falls. The assessment needs :data:`FEWEST` validations: a single one has no trend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from tts_assets.arrays.arrays import SPLITS
from tts_assets.core.artifacts import Checkpoint, CodeArrays
from tts_assets.core.metadata import (
    NOTEBOOK_FILE,
    Markdown,
    Metadata,
    curves,
    existing,
    image,
    literal,
    table_row,
)
from tts_assets.core.program import METRICS_FILE, read_metrics
from tts_assets.corpora.segments.result import LENGTHS, QUESTION, QUESTION_MARKS
from tts_assets.sft.config import FORGOTTEN, SftRecipe

FEW_MINUTES, SOME_MINUTES = 10.0, 30.0  # of speech: the thresholds of the warnings
NOISY_DNSMOS = 2.5  # DNSMOS P.835 overall, mean of a source
UNBALANCED = 10.0  # ratio of the weighted minutes of two sources
UNTAGGED = "none"
SCHEMA = {
    "duration": pl.Float64,
    "transcript": pl.String,
    "dnsmos_mos_ovr": pl.Float64,
    **dict.fromkeys(("speaker_id", "style", "emotion"), pl.String),
}


DIAGNOSTICS = (  # panels of the plot: metrics and their labels
    {
        "val_accuracy": "correct codes",
        "val_end_found": "ends found",
        "val_end_false": "codes predicted as ends",
    },
    {"val_entropy": "entropy, nats"},
    {"update_ratio": "change of a step / weights"},
)


def describe_recipe(recipe: SftRecipe) -> str:
    """The description of the asset: base, data and length of the training."""
    base = recipe.base
    named = Path(base.hub or "")  # a folder of the project is an absolute path here
    hub = named.name if named.is_absolute() else base.hub
    start = hub or (f"sft/{base.recipe}" if base.recipe else "a Llama from scratch")
    if recipe.steps == 0:
        return f"SpeechLM that is not trained: {start}."
    length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epochs"
    data = ", ".join([*recipe.corpora, *recipe.texts])
    how = "trained" if recipe.pretraining is None else "pretrained"
    return f"SpeechLM {how} from {start} on {data} for {length}."


@dataclass(frozen=True)
class SourceCard:
    """The statistics of one corpus of a recipe.

    ``weight`` is in epochs. ``lengths``, ``speakers``, ``styles`` and ``emotions`` are numbers of
    clips. ``dnsmos`` is the mean over the clips that have a score; None if none has.
    """

    weight: float
    samples: int
    seconds: float
    lengths: dict[str, int]
    questions: int
    speakers: dict[str, int]
    styles: dict[str, int]
    emotions: dict[str, int]
    dnsmos: float | None

    @property
    def minutes(self) -> float:
        """Minutes of speech, without the weight."""
        return self.seconds / 60


def read_card(folders: Mapping[str, Path], weights: Mapping[str, float]) -> dict[str, SourceCard]:
    """The statistics of each corpus, over training and validation samples."""
    return {name: read_source(folders[name], weight) for name, weight in weights.items()}


def read_source(folder: Path, weight: float) -> SourceCard:
    """The statistics of a corpus from the folder of its ``code_arrays``."""
    files = [folder / f"{split}_samples.jsonl" for split in SPLITS]
    scans = [pl.scan_ndjson(file, schema=SCHEMA) for file in files if file.stat().st_size]
    rows = pl.concat(scans).collect(engine="streaming")
    seconds = rows["duration"].clip(0)
    ends = rows["transcript"].str.strip_chars_end("\"'”’») ")
    questions = pl.any_horizontal(*(pl.lit(ends).str.ends_with(mark) for mark in QUESTION_MARKS))
    scores = rows["dnsmos_mos_ovr"].filter(rows["dnsmos_mos_ovr"] > 0)
    return SourceCard(
        weight=weight,
        samples=len(rows),
        seconds=float(seconds.sum()),
        lengths={
            name: int(seconds.is_between(low, high, closed="left").sum())
            for name, (low, high) in LENGTHS.items()
        },
        questions=int(rows.select(questions.sum()).item()),
        speakers=_tags(rows["speaker_id"]),
        styles=_tags(rows["style"]),
        emotions=_tags(rows["emotion"]),
        dnsmos=float(scores.to_numpy().mean()) if len(scores) else None,
    )


def _tags(column: pl.Series) -> dict[str, int]:
    """The count of each value, the most frequent first; ties are sorted by name."""
    named = column.fill_null("").replace("", UNTAGGED).rename("tag")
    counts = named.value_counts().sort(["count", "tag"], descending=[True, False])
    return dict(counts.iter_rows())


def warnings(card: Mapping[str, SourceCard]) -> list[str]:
    """Properties of the data that can harm the voice, each with a remedy."""
    found = []
    minutes = sum(source.minutes for source in card.values())
    if minutes < FEW_MINUTES:
        found.append(
            f"{minutes:.1f} minutes are few: below {FEW_MINUTES:g} the voice is recognizable, but "
            "its intonation is not. Record more, or train few steps at a low rate from a good base."
        )
    elif minutes < SOME_MINUTES:
        found.append(
            f"{minutes:.1f} minutes do for a voice that reads; {SOME_MINUTES:g} minutes or more "
            "also allow longer sentences."
        )
    found += one_manner(card)
    for name, source in card.items():
        if source.dnsmos is None:
            found.append(
                f"The noise of {name} was not measured: set filters.min_dnsmos = {NOISY_DNSMOS}, "
                "which measures it and leaves out noisy clips."
            )
        if source.dnsmos is not None and source.dnsmos < NOISY_DNSMOS:
            found.append(
                f"{name} is noisy: DNSMOS {source.dnsmos:.2f}. The model also learns the noise: "
                f"set filters.min_dnsmos = {NOISY_DNSMOS}, or record in a quieter room."
            )
        if not source.questions:
            found.append(
                f"{name} has no questions: synthesized questions will sound like statements."
            )
    found += unbalanced(card)
    return found


def one_manner(card: Mapping[str, SourceCard]) -> list[str]:
    """A warning if all samples have the same style and emotion, or none has any."""
    styles = {tag for source in card.values() for tag in source.styles}
    emotions = {tag for source in card.values() for tag in source.emotions}
    if len(styles) > 1 or len(emotions) > 1:
        return []
    if styles == emotions == {UNTAGGED}:
        return [
            "No sample has a style or an emotion: the model will speak in one manner. Tag them "
            "in the corpus (style, emotion) if there are several."
        ]
    return [
        f"All samples have the style {styles.pop()} and the emotion {emotions.pop()}: the model "
        "will speak in one manner. Record others, or tag those that differ (style, emotion)."
    ]


def unbalanced(card: Mapping[str, SourceCard]) -> list[str]:
    """A warning if an epoch has far more speech of one source than of another."""
    seen = {name: source.minutes * source.weight for name, source in card.items()}
    least, most = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
    if seen[least] <= 0 or seen[most] / seen[least] < UNBALANCED:
        return []
    weight = card[least].weight * seen[most] / seen[least] / 2
    return [
        f"{most} has {seen[most] / seen[least]:.0f} times as much speech as {least} in an epoch: "
        f"give {least} a larger weight (corpora.{least} = {min(weight, 10):.0f})."
    ]


def markdown(card: Mapping[str, SourceCard]) -> str:
    """The card as a Markdown table, with the warnings below."""
    head = ["source", "epochs", "samples", "minutes", *LENGTHS, QUESTION, "speakers", "DNSMOS"]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for name, source in card.items():
        score = "" if source.dnsmos is None else f"{source.dnsmos:.2f}"
        counts = [f"{source.lengths[length]}" for length in LENGTHS]
        numbers = [f"{source.weight:g}", f"{source.samples}", f"{source.minutes:.1f}", *counts]
        lines.append(
            _row([name, *numbers, f"{source.questions}", f"{len(source.speakers)}", score])
        )
    for what in ("styles", "emotions"):
        tags = {name: getattr(source, what) for name, source in card.items()}
        if any(set(counts) - {UNTAGGED} for counts in tags.values()):
            lines += ["", f"**{what.capitalize()}**: " + _counts(tags)]
    lines += ["", *(f"- ⚠ {warning}" for warning in warnings(card))]
    return "\n".join(lines) + "\n"


def _counts(tags: Mapping[str, Mapping[str, int]]) -> str:
    return "; ".join(
        f"{name}: " + ", ".join(f"{literal(tag)} {count}" for tag, count in counts.items())
        for name, counts in tags.items()
    )


def _row(cells: list[str]) -> str:
    return table_row(cells)


Fit = Literal[
    "learning", "settled", "over-fitted", "too few validations", "not validated", "not trained"
]
FEWEST = 4  # validations after the first step that an assessment needs
RISE = 0.02  # of the last two validations, relative to the lowest loss; a smaller rise is noise
# The trend is a straight line through the last quarter of the validations, at least three. Its fall
# must exceed this share of the loss, and twice its standard error.
TREND, FALL = 3, 0.02
WINDOW = 0.05  # share of all steps over which training losses before a validation are averaged
MEMORIZED = 1.0  # nats; with a larger gap the message says that the samples are memorized
SETTLED = "The validation loss has settled: more steps improve it little."
LEARNING = "The validation loss still falls: train longer."
LARGE_GAP = (
    "The training loss is {gap:.1f} nats lower: the samples are memorized, and more or other "
    "speech helps more than steps."
)


@dataclass(frozen=True)
class FitAssessment:
    """The fit of a training, with an explanation.

    ``gap`` is the last validation loss minus the training loss, ``rise`` the last validation loss
    minus the lowest; both in nats a token.
    """

    fit: Fit
    explanation: str
    gap: float | None = None
    rise: float | None = None


def assess_fit(
    records: Sequence[Mapping[str, float]], exported: Literal["best", "last"]
) -> FitAssessment:
    """The assessment from the lines of a ``metrics.jsonl``; ``exported``: the published weights."""
    every = [r for r in records if "val_loss" in r]
    trained = [(int(r["step"]), r["loss"]) for r in records if "loss" in r]
    validated = [(int(r["step"]), r["val_loss"]) for r in every if r["step"]]
    if not trained:
        return FitAssessment("not trained", "This is the base as it is: steps = 0.")
    if not validated:
        return FitAssessment("not validated", "There was no validation: set validation.fraction.")
    # The best validation is one that forgets no source; otherwise the one before the first step.
    good = [(int(r["step"]), r["val_loss"]) for r in every if not r.get(FORGOTTEN)]
    good = [at for at in good if at[0]] or good
    best_step, lowest = min(good, key=lambda at: at[1])
    last_step, last = validated[-1]
    gap = last - train_loss(trained, last_step)
    rise = last - lowest
    if len(validated) < FEWEST:
        few = (
            f"There were {len(validated)} validations, an assessment needs {FEWEST}: set "
            f"eval_every to {max(1, last_step // FEWEST)} or less."
        )
        return FitAssessment("too few validations", few, gap, rise)
    risen = min(loss for _, loss in validated[-2:]) - lowest > RISE * lowest
    if risen and train_loss(trained, last_step) < train_loss(trained, best_step):
        explanation = _over_fitted(best_step, last_step, rise, exported)
        return FitAssessment("over-fitted", explanation, gap, rise)
    fit: Fit = "learning" if still_falls([loss for _, loss in validated]) else "settled"
    sentences = [LEARNING if fit == "learning" else SETTLED]
    sentences += [LARGE_GAP.format(gap=gap)] if gap > MEMORIZED else []
    return FitAssessment(fit, " ".join(sentences), gap, rise)


def still_falls(losses: Sequence[float]) -> bool:
    """Whether the last validation losses, at equal distances, fall by more than noise."""
    from scipy.stats import linregress

    last = losses[-max(TREND, len(losses) // 4) :]
    line = linregress(range(len(last)), last)
    fall, error = (float(x) * (len(last) - 1) for x in (-line.slope, line.stderr))
    return fall > FALL * last[0] and fall > 2 * error


def train_loss(trained: Sequence[tuple[int, float]], step: int) -> float:
    """The mean training loss in the steps up to ``step``; ``trained``: pairs of step and loss."""
    window = max(1, round(WINDOW * trained[-1][0]))
    losses = [loss for at, loss in trained if step - window < at <= step]
    return sum(losses) / len(losses) if losses else trained[0][1]


def _over_fitted(
    best_step: int, last_step: int, rise: float, exported: Literal["best", "last"]
) -> str:
    published = (
        f"The weights of that step, of {last_step}, are published. If syntheses of later steps "
        "are better in listening.ipynb, as for a small model that knows few words, write "
        'export = "last".'
        if exported == "best"
        else 'The last weights are published, as export = "last" says: right if the validation '
        "sentences differ from what the model is for, and later syntheses in listening.ipynb are "
        'better. Otherwise write export = "best", or fewer steps.'
    )
    return (
        f"Over-fitted: the validation loss was lowest after step {best_step} and rose by "
        f"{rise:.3f} while the training loss still fell. {published}"
    )


def describe_fit(
    records: Sequence[Mapping[str, float]], exported: Literal["best", "last"]
) -> dict[str, float | str]:
    """The assessment of over-fitting, as text and as numbers."""
    found = assess_fit(records, exported)
    numbers = {"train_val_gap": found.gap, "val_loss_rise": found.rise}
    known = {name: value for name, value in numbers.items() if value is not None}
    return {"fit": f"{found.fit}: {found.explanation}", **known}


def last_diagnostics(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The :data:`DIAGNOSTICS` of the last validation; empty without a validation."""
    validated = [record for record in records if "val_accuracy" in record]
    names = [name for panel in DIAGNOSTICS for name in panel]
    return {name: validated[-1][name] for name in names} if validated else {}


def describe_data(recipe: SftRecipe, arrays: Mapping[str, CodeArrays]) -> Metadata:
    """Metadata of the data: minutes, samples, and the dataset card with its warnings."""
    card = read_card({name: handle.path for name, handle in arrays.items()}, recipe.corpora)
    return {
        "minutes": sum(source.minutes for source in card.values()),
        "samples": sum(source.samples for source in card.values()),
        "dataset_card": Markdown(markdown(card)),
    }


def describe_training(checkpoint: Checkpoint, recipe: SftRecipe) -> Metadata:
    """Metadata of the run: its length, loss curves, diagnostics, assessment and samples."""
    records = read_metrics(checkpoint.path / METRICS_FILE)
    trained = [record for record in records if "loss" in record]
    labels = {"loss": "training", "val_loss": "validation"}
    plots = {"loss_curve": curves(records, [labels], x_label="step", y_label="nats a token")}
    diagnostics = last_diagnostics(records)
    if diagnostics:
        validated = [record for record in records if "val_accuracy" in record]
        plots["diagnostics"] = curves(validated, DIAGNOSTICS, x_label="step")
    return {
        **({"audio_hours_seen": trained[-1]["audio_hours_seen"]} if trained else {}),
        **{name: image(name, plot) for name, plot in plots.items()},
        **describe_fit(records, recipe.export),
        **diagnostics,
        **existing("listening", checkpoint.path / NOTEBOOK_FILE),
    }
