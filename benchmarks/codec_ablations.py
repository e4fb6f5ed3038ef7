"""The effect of each choice of the codec recipe: short trainings that differ in one setting.

    OMP_NUM_THREADS=2 python benchmarks/codec_ablations.py --steps 1000

trains every row on the demo corpus and measures held-out clips. The rows of the first table start
from the same random weights, train on the same audio, and use spectral losses only, unless they say
otherwise. The rows of the second table continue the vendored codec, with and without
discriminators, for the same processor time. Differences are paired over the clips; their intervals
are bootstrapped. A step takes about 0.2 s on a core of an Intel Xeon (AMX), 0.3 s with
discriminators. Rows are kept in ``--folder``. A restart makes the missing rows and resumes an
interrupted one; ``--rows`` selects some rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from codec_training import ROOT, AsrEvaluator, recorded_recipe, write_program
from torch import Tensor, nn

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.wer import difference_interval, match
from tts_assets.codec.assets import CODEC_VERSION
from tts_assets.codec.backends import WEIGHTS_FILE, CompactBackend
from tts_assets.codec.config import CodecProgram, CodecRecipe
from tts_assets.codec.losses import (
    RESOLUTIONS,
    SpectralLoss,
    aligned,
    count_codes,
    mel_distance,
    pesq,
    stoi,
    usage,
)
from tts_assets.codec.model import Codec
from tts_assets.codec.train import CodecTrainer, initial_codec, training_audio
from tts_assets.codec.windows import TrainingAudio
from tts_assets.codec.xcodec2 import DIMENSION, SAMPLE_RATE, CompactXcodec2, calibrate
from tts_assets.core.artifacts import atomic_write, sha256_file
from tts_assets.core.audio import Wave
from tts_assets.core.config import digest_of
from tts_assets.core.program import STOPPED, Run

ORIGINAL = "original"
VENDORED = ROOT / "examples/codecs/announcer-16khz"
SEEDS = (777, 778)
CHEAPER = 1.4  # steps without discriminators in the processor time of one step with them
LONGER = 2  # rows that continue a codec take so many times the steps


class Timed(CodecTrainer):
    """Reports the processor time of each step, which other programs do not change."""

    def train_step(self, step: int) -> dict[str, float]:
        started = time.process_time()
        report = super().train_step(step)
        return report | {"cpu_seconds": round(time.process_time() - started, 3)}


class BoundedFirst(nn.Module):
    """The quantizer's projection followed by its bound, as in the published X-Codec-2."""

    def __init__(self, project: nn.Module, bound: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.project, self.bound = project, bound

    def forward(self, hidden: Tensor) -> Tensor:
        return self.bound(self.project(hidden))


def double_bound(recipe: CodecRecipe, audio: TrainingAudio) -> CompactXcodec2:
    """An initial codec whose quantizer bounds its input twice."""
    model = initial_codec(recipe, audio)
    quantizer: Any = model.quantizer
    quantizer.project_in = BoundedFirst(quantizer.project_in, quantizer.quantizer.bound)
    return model


def frame_normalized(recipe: CodecRecipe, audio: TrainingAudio) -> CompactXcodec2:
    """An initial codec with a layer norm before the whitening.

    It removes the level of each frame, which the waveform branch must then transmit.
    """
    model: Any = initial_codec(recipe, audio)
    norm = nn.LayerNorm(DIMENSION, elementwise_affine=False)
    model.filterbank = nn.Sequential(model.filterbank, norm)
    calibrate(model, audio.calibration())
    return model  # type: ignore[no-any-return]


class MelLossOnly(SpectralLoss):
    """The log-mel loss without bins and spectral convergence."""

    def forward(self, waves: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self._at(size, waves, targets)[0] for size, _ in RESOLUTIONS]
        loss = torch.stack(parts).mean()
        return loss, loss.detach()


class MelOnly(Timed):
    """Trains with the log-mel loss only."""

    def __init__(
        self, run: Run, recipe: CodecRecipe, audio: TrainingAudio, codec: CompactXcodec2
    ) -> None:
        super().__init__(run, recipe, audio, codec)
        self.spectral = MelLossOnly().to(run.device)


@dataclass(frozen=True)
class Row:
    """A recipe that differs from the recorded one in ``changes`` (dots for inner tables).

    It is compared with the row ``baseline``.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    trainer: type[Timed] = Timed
    model: Callable[[CodecRecipe, TrainingAudio], CompactXcodec2] = initial_codec
    baseline: str = ""
    steps: float = 1.0  # of --steps
    dnsmos: bool = False  # it costs three times as much as all other metrics


def from_random_weights() -> dict[str, Row]:
    first = {"adversarial": None}
    differing: dict[str, Row] = {
        "quantizer: no covariance loss": Row({"covariance_weight": 0.0}),
        "quantizer: double bound": Row(model=double_bound),
        "quantizer: double bound, no covariance loss": Row(
            {"covariance_weight": 0.0}, model=double_bound
        ),
        "codebook: 8, 8, 6, 5": Row({"architecture.levels": (8, 8, 6, 5)}),
        "codebook: 8, 8, 8, 8": Row({"architecture.levels": (8, 8, 8, 8)}),
        "codebook: 7, 5, 5, 5, 5": Row({"architecture.levels": (7, 5, 5, 5, 5)}),
        "codebook: 5, 5, 5, 4, 4": Row({"architecture.levels": (5, 5, 5, 4, 4)}),
        "codebook: 4, 4, 4, 3, 3, 3, 3": Row({"architecture.levels": (4, 4, 4, 3, 3, 3, 3)}),
        "codebook: 5, 5, 5, 4, 4, 4": Row({"architecture.levels": (5, 5, 5, 4, 4, 4)}),
        "encoder: 384 channels": Row({"architecture.semantic_hidden": 384}),
        "encoder: level by the waveform branch": Row(
            {"architecture.acoustic_hidden": 1}, model=frame_normalized
        ),
        "encoder: waveform branch, too": Row({"architecture.acoustic_hidden": 1}),
        "losses: log-mel only": Row(trainer=MelOnly),
        "windows: 1 s": Row({"window_seconds": (1,)}),
        "windows: 4 s": Row({"window_seconds": (4,)}),
        "windows: at one level": Row({"gains": (0.0,)}),
        "windows: at six speeds": Row({"speeds": (0.9, 0.95, 1.0, 1.0, 1.05, 1.1)}),
        "learning rate: 3e-4": Row({"lr": 3e-4}),
        "learning rate: 2e-3": Row({"lr": 2e-3}),
        "learning rate: 3e-3": Row({"lr": 3e-3}),
    }
    return {
        "recipe": Row(first),
        **{
            name: replace(row, changes=first | row.changes, baseline="recipe")
            for name, row in differing.items()
        },
        "losses: discriminators from the start": Row(
            {"adversarial.start": 0.0, "adversarial.freeze_encoder": False}, baseline="recipe"
        ),
    }


def from_vendored_codec() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for seed in SEEDS:
        start = {"base": VENDORED, "architecture": {}, "lr": 3e-4, "seed": seed}
        alone = f"spectral losses only, seed {seed}"
        rows[alone] = Row(start | {"adversarial": None}, steps=CHEAPER * LONGER, dnsmos=True)
        trained_parts = {"decoder only": True, "encoder too": False}
        for parts, freeze in trained_parts.items():
            rows[f"adversarial, {parts}, seed {seed}"] = Row(
                start | {"adversarial.start": 0.0, "adversarial.freeze_encoder": freeze},
                baseline=alone,
                steps=LONGER,
                dnsmos=True,
            )
    return rows


TABLES = {
    "From random weights": from_random_weights(),
    "From the vendored codec": from_vendored_codec(),
}
ROWS = {name: row for table in TABLES.values() for name, row in table.items()}
METRICS = {  # of a clip: heading, digits
    "mel": ("log-mel L1", 3),
    "stoi": ("STOI", 3),
    "pesq": ("PESQ", 3),
    "p808": ("DNSMOS P.808", 3),
}

Clip = dict[str, float | None]
"""The metrics of a clip: ``errors`` of the transcript against ``words`` of the text, METRICS."""


def changed(recipe: CodecRecipe, changes: Mapping[str, Any]) -> CodecRecipe:
    values = recipe.model_dump()
    for dotted, value in changes.items():
        *tables, key = dotted.split(".")
        node = values
        for table in tables:
            node = node[table]
        node[key] = value
    return CodecRecipe.model_validate(values)


def recipe_of(row: Row, steps: int) -> CodecRecipe:
    """The recorded recipe, shorter, with the row's changes."""
    steps = round(steps * row.steps)
    warmup = max(1, steps // 20)
    base = changed(recorded_recipe(), {"steps": steps, "warmup": warmup, "save_every": 50})
    adversarial = {"adversarial.warmup": warmup, "adversarial.generator_lr": None}  # the row's lr
    return changed(changed(base, {"eval_every": steps} | adversarial), row.changes)


def identity(evaluator: ClipEvaluator, row: Row, steps: int) -> str:
    """The digest of everything that determines the metrics of a row."""
    recipe = recipe_of(row, steps)
    base = recipe.base and sha256_file(recipe.base / WEIGHTS_FILE)
    clips = [sample.id for sample in evaluator.samples]
    code = [row.trainer.__name__, row.model.__name__]
    return digest_of([recipe, base, code, clips, CODEC_VERSION])


def trained(folder: Path, row: Row, steps: int) -> Codec:
    """The row's codec with the averaged weights; resumes an interrupted training."""
    program: CodecProgram = write_program(folder, recipe_of(row, steps))
    with Run(program.run_dir) as run:
        audio = training_audio(program)
        trainer = row.trainer(run, program.recipe, audio, row.model(program.recipe, audio))
        trainer.train()
    return Codec(CompactBackend(trainer.average), "cpu")


class ClipEvaluator(AsrEvaluator):
    """Computes all metrics of held-out clips."""

    def __init__(self, clips: int) -> None:
        super().__init__(clips)
        self.dnsmos = DnsmosScorer()

    @property
    def seconds(self) -> float:
        return sum(map(len, self.waves)) / SAMPLE_RATE

    def clips(self, waves: Sequence[Wave], dnsmos: bool) -> list[Clip]:
        """The metrics of waves at 16 kHz, in the order of the samples."""
        texts = self.transcriber([(wave, SAMPLE_RATE) for wave in waves])
        found: list[Clip] = []
        for sample, true, made, text in zip(self.samples, self.waves, waves, texts, strict=True):
            pair = aligned(true, made, SAMPLE_RATE)
            words = match(sample.transcript, text)
            mos = self.dnsmos(made, SAMPLE_RATE) if dnsmos else None
            found.append(
                {
                    "errors": words.word_errors,
                    "words": words.words,
                    "mel": mel_distance(*pair),
                    "stoi": stoi(*pair),
                    "pesq": pesq(*pair),
                    "p808": mos.p808 if mos else None,
                }
            )
        return found


def measured(evaluator: ClipEvaluator, name: str, folder: Path, steps: int) -> dict[str, Any]:
    """The metrics of a row, kept in its folder."""
    kept = folder / "figures.json"
    row = ROWS[name]
    known = identity(evaluator, row, steps)
    if not kept.is_file() or json.loads(kept.read_text())["identity"] != known:
        codec = trained(folder, row, steps)
        codes = codec.encode(evaluator.waves)
        used = usage(count_codes(codes, codec.codebook_size))
        clips = evaluator.clips(codec.decode(codes), row.dnsmos)
        figures = {"clips": clips, "used": used, "of": codec.codebook_size}
        keep(kept, {"identity": known, **figures})
    return json.loads(kept.read_text())


def originals(evaluator: ClipEvaluator, folder: Path) -> dict[str, Any]:
    """The metrics of the recordings."""
    kept = folder / "figures.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        keep(kept, {"clips": evaluator.clips(evaluator.waves, dnsmos=True)})
    return json.loads(kept.read_text())


def keep(path: Path, figures: Mapping[str, Any]) -> None:
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(figures))


def line(name: str, found: Mapping[str, Any], folder: Path) -> str:
    """A row of the table: cost, metrics, and the usage of the codes."""
    clips: list[Clip] = found["clips"]
    shown = []
    for figure, (_, digits) in METRICS.items():
        values = [value for clip in clips if (value := clip[figure]) is not None]
        shown.append(f"{fmean(values):.{digits}f}" if values else "–")
    wer = sum(clip["errors"] or 0 for clip in clips) / sum(clip["words"] or 0 for clip in clips)
    cost, used = "– | –", "– | –"
    if "used" in found:
        records = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
        cost = f"{len(records)} | {sum(row['cpu_seconds'] for row in records) / 60:.1f}"
        use = found["used"]
        used = f"{use['perplexity']:.0f} | {found['of'] - use['codes_used']:.0f}"
    return f"| {name} | {cost} | {wer:.1%} | {' | '.join(shown)} | {used} |"


def gap(figure: str, old: list[Clip], new: list[Clip]) -> str:
    """The mean of ``new`` minus that of ``old`` over the clips that have both, with its interval.

    For "wer" it is in errors per hundred words.
    """
    digits = 1 if figure == "wer" else METRICS[figure][1]
    pairs = [
        (*part(figure, a), *part(figure, b))
        for a, b in zip(old, new, strict=True)
        if figure == "wer" or None not in (a[figure], b[figure])
    ]
    if not pairs:
        return "–"
    values_a, weights_a, values_b, weights_b = zip(*pairs, strict=True)
    interval = difference_interval(values_a, weights_a, values_b, weights_b)
    mean = sum(values_b) / sum(weights_b) - sum(values_a) / sum(weights_a)
    text = f"{mean:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"
    return f"**{text}**" if interval.low > 0 or interval.high < 0 else text


def part(figure: str, clip: Clip) -> tuple[float, float]:
    """A clip's value and its weight in a mean."""
    if figure == "wer":
        return 100 * (clip["errors"] or 0), clip["words"] or 0
    value = clip[figure]
    assert value is not None
    return value, 1.0


def tables(found: Mapping[str, Mapping[str, Any]], folder: Path, evaluator: ClipEvaluator) -> str:
    """The tables of all available rows, in Markdown."""
    headings = [heading for heading, _ in METRICS.values()]
    words = sum(clip["words"] for clip in found[ORIGINAL]["clips"])
    lines = [
        f"# Ablations of the codec recipe, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{len(evaluator.samples)} held-out clips ({evaluator.seconds:.0f} s, {words} words); "
        f"WER of Whisper tiny.en; torch {torch.__version__}, {torch.get_num_threads()} threads.",
    ]
    columns = ["row", "steps", "CPU minutes", "WER", *headings, "perplexity", "unused codes"]
    differences = ["row minus its baseline", "baseline", "WER, points", *headings]
    for title, rows in TABLES.items():
        there = [name for name in rows if name in found]
        lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [line(name, found[name], folder_of(folder, name)) for name in [ORIGINAL, *there]]
        lines += ["", f"| {' | '.join(differences)} |", "|---" * len(differences) + "|"]
        for name in there:
            if (baseline := rows[name].baseline) in found:
                pair = found[baseline]["clips"], found[name]["clips"]
                gaps = [gap(figure, *pair) for figure in ("wer", *METRICS)]
                lines.append(f"| {name} | {baseline} | {' | '.join(gaps)} |")
    lines += ["", "In bold: the 95 % interval (bootstrap over the clips, paired) excludes 0."]
    return "\n".join(lines) + "\n"


def folder_of(folder: Path, name: str) -> Path:
    return folder / name.replace(": ", "-").replace(", ", "-").replace(" ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--folder", type=Path, default=ROOT / "storage/benchmarks/codec_ablations")
    parser.add_argument("--out", type=Path, help="a file for the tables of all rows there are")
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.steps}-steps"
    evaluator = ClipEvaluator(arguments.clips)
    done = [name for name in ROWS if (folder_of(folder, name) / "figures.json").is_file()]
    found: dict[str, dict[str, Any]] = {}
    for name in [*done, *(name for name in arguments.rows if name not in done)]:
        try:
            found[name] = measured(evaluator, name, folder_of(folder, name), arguments.steps)
        except SystemExit as left:
            if left.code == STOPPED:
                raise SystemExit("stopped; run the same command to resume") from None
            raise
        print(line(name, found[name], folder_of(folder, name)), flush=True)
    found[ORIGINAL] = originals(evaluator, folder / ORIGINAL)
    text = tables(found, folder, evaluator)
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
