"""What each choice of the codec recipe is worth: short trainings that differ in one thing.

    OMP_NUM_THREADS=2 python benchmarks/codec_ablations.py --steps 1000

trains every row on the demo corpus and measures held-out clips. In the first table rows begin with
the same random weights, hear the same audio and train by spectra alone, unless they say otherwise.
In the second they go on with the vendored codec, with and without judges, for the same processor
time. Differences are paired over the clips; their intervals are bootstrapped. A step takes a core
of an Intel Xeon (AMX) about 0.2 s, with judges 0.3 s.
Rows are kept in ``--folder``: a restart makes those that are missing and goes on with the one that
was interrupted; ``--rows`` makes some of them alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from codec_training import ROOT, Listener, recorded_recipe, write_program
from torch import Tensor, nn

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.wer import difference_interval, match
from tts_assets.codec.assets import TRAINING_VERSION
from tts_assets.codec.backends import CompactBackend
from tts_assets.codec.config import CodecProgram, CodecRecipe
from tts_assets.codec.losses import RESOLUTIONS, SpectralLoss
from tts_assets.codec.model import Codec
from tts_assets.codec.quality import aligned, count_codes, mel_distance, pesq, stoi, usage
from tts_assets.codec.storage import WEIGHTS_FILE
from tts_assets.codec.train import CodecTrainer
from tts_assets.codec.xcodec2 import DIMENSION, SAMPLE_RATE, CompactXcodec2, calibrate
from tts_assets.core.artifacts import sha256_file, written_aside
from tts_assets.core.audio import Wave
from tts_assets.core.config import digest_of
from tts_assets.core.program import STOPPED, Run

ORIGINAL = "original"
VENDORED = ROOT / "examples/codecs/announcer-16khz"
SEEDS = (777, 778)
CHEAPER = 1.4  # steps without judges in the processor time of one with them
LONGER = 2  # rows that go on with a codec, than those that begin with random weights


class Timed(CodecTrainer):
    """Notes the processor time of each step: it is the row's own, whatever else runs."""

    def train_step(self, step: int) -> dict[str, float]:
        started = time.process_time()
        report = super().train_step(step)
        return report | {"cpu_seconds": round(time.process_time() - started, 3)}


class BoundedFirst(nn.Module):
    """The quantizer's projection with its bound behind, so that it bounds twice, as the published
    X-Codec-2 does."""

    def __init__(self, project: nn.Module, bound: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.project, self.bound = project, bound

    def forward(self, hidden: Tensor) -> Tensor:
        return self.bound(self.project(hidden))


class DoubleBound(Timed):
    def _new_model(self) -> CompactXcodec2:
        model = super()._new_model()
        quantizer: Any = model.quantizer
        quantizer.project_in = BoundedFirst(quantizer.project_in, quantizer.quantizer.bound)
        return model


class FrameNormalized(Timed):
    """A layer norm before the whitening takes each frame's level, which is left to the waveform
    branch: the published class, whose semantic encoder has other ways to it."""

    def _new_model(self) -> CompactXcodec2:
        model: Any = super()._new_model()
        norm = nn.LayerNorm(DIMENSION, elementwise_affine=False)
        model.filterbank = nn.Sequential(model.filterbank, norm)
        calibrate(model, self.audio.calibration())
        return model  # type: ignore[no-any-return]


class MelLossAlone(SpectralLoss):
    """Neither bins nor spectral convergence."""

    def forward(self, waves: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self._at(size, waves, targets)[0] for size, _ in RESOLUTIONS]
        loss = torch.stack(parts).mean()
        return loss, loss.detach()


class MelAlone(Timed):
    def __init__(self, run: Run, program: CodecProgram) -> None:
        super().__init__(run, program)
        self.spectral = MelLossAlone().to(run.device)


@dataclass(frozen=True)
class Row:
    """A recipe that differs from the recorded one in ``changes``, dots for inner tables; it is
    compared with the row ``baseline``."""

    changes: dict[str, Any] = field(default_factory=dict)
    trainer: type[Timed] = Timed
    baseline: str = ""
    steps: float = 1.0  # of --steps
    naturalness: bool = False  # DNSMOS costs three times what all other figures do


def from_random_weights() -> dict[str, Row]:
    first = {"adversarial": None}
    differing: dict[str, tuple[dict[str, Any], type[Timed]]] = {
        "quantizer: no spread loss": ({"spread_weight": 0.0}, Timed),
        "quantizer: double bound": ({}, DoubleBound),
        "quantizer: double bound, no spread loss": ({"spread_weight": 0.0}, DoubleBound),
        "codebook: 8, 8, 6, 5": ({"architecture.levels": (8, 8, 6, 5)}, Timed),
        "codebook: 8, 8, 8, 8": ({"architecture.levels": (8, 8, 8, 8)}, Timed),
        "codebook: 7, 5, 5, 5, 5": ({"architecture.levels": (7, 5, 5, 5, 5)}, Timed),
        "codebook: 5, 5, 5, 4, 4": ({"architecture.levels": (5, 5, 5, 4, 4)}, Timed),
        "codebook: 4, 4, 4, 3, 3, 3, 3": ({"architecture.levels": (4, 4, 4, 3, 3, 3, 3)}, Timed),
        "codebook: 5, 5, 5, 4, 4, 4": ({"architecture.levels": (5, 5, 5, 4, 4, 4)}, Timed),
        "encoder: 384 channels": ({"architecture.semantic_hidden": 384}, Timed),
        "encoder: level by the waveform branch": (
            {"architecture.acoustic_hidden": 1},
            FrameNormalized,
        ),
        "encoder: waveform branch, too": ({"architecture.acoustic_hidden": 1}, Timed),
        "losses: log-mel alone": ({}, MelAlone),
        "windows: 1 s": ({"window_seconds": (1,)}, Timed),
        "windows: 4 s": ({"window_seconds": (4,)}, Timed),
        "windows: at one level": ({"gains": (0.0,)}, Timed),
        "windows: at six speeds": ({"speeds": (0.9, 0.95, 1.0, 1.0, 1.05, 1.1)}, Timed),
        "learning rate: 3e-4": ({"lr": 3e-4}, Timed),
        "learning rate: 2e-3": ({"lr": 2e-3}, Timed),
        "learning rate: 3e-3": ({"lr": 3e-3}, Timed),
    }
    return {
        "recipe": Row(first),
        **{
            name: Row(first | change, trainer, "recipe")
            for name, (change, trainer) in differing.items()
        },
        "losses: judges from the start": Row(
            {"adversarial.start": 0.0, "adversarial.freeze_encoder": False}, baseline="recipe"
        ),
    }


def from_vendored_codec() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for seed in SEEDS:
        start = {"base": VENDORED, "architecture": {}, "lr": 3e-4, "seed": seed}
        alone = f"spectra alone, seed {seed}"
        rows[alone] = Row(start | {"adversarial": None}, steps=CHEAPER * LONGER, naturalness=True)
        judged = {"decoder alone": True, "encoder too": False}
        for learns, freeze in judged.items():
            rows[f"adversarial, {learns}, seed {seed}"] = Row(
                start | {"adversarial.start": 0.0, "adversarial.freeze_encoder": freeze},
                baseline=alone,
                steps=LONGER,
                naturalness=True,
            )
    return rows


TABLES = {
    "From random weights": from_random_weights(),
    "From the vendored codec": from_vendored_codec(),
}
ROWS = {name: row for table in TABLES.values() for name, row in table.items()}
FIGURES = {  # of a clip: heading, digits
    "mel": ("log-mel L1", 3),
    "stoi": ("STOI", 3),
    "pesq": ("PESQ", 3),
    "p808": ("DNSMOS P.808", 3),
}

Clip = dict[str, float | None]
"""Its figures; ``errors`` of ``words`` words were not heard as they are written."""


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
    """The recorded one, shorter, with the row's changes."""
    steps = round(steps * row.steps)
    warmup = max(1, steps // 20)
    base = changed(recorded_recipe(), {"steps": steps, "warmup": warmup, "save_every": 50})
    judged = {"adversarial.warmup": warmup, "adversarial.generator_lr": None}  # the row's own lr
    return changed(changed(base, {"eval_every": steps} | judged), row.changes)


def identity(ears: Ears, row: Row, steps: int) -> str:
    """Of all that decides a row's figures."""
    recipe = recipe_of(row, steps)
    base = recipe.base and sha256_file(recipe.base / WEIGHTS_FILE)
    clips = [sample.id for sample in ears.samples]
    return digest_of([recipe, base, row.trainer.__name__, clips, TRAINING_VERSION])


def trained(folder: Path, row: Row, steps: int) -> Codec:
    """The row's codec, with the averaged weights; goes on where it was stopped."""
    program: CodecProgram = write_program(folder, recipe_of(row, steps))
    with Run(program.run_dir) as run:
        trainer = row.trainer(run, program)
        trainer.train()
    return Codec(CompactBackend(trainer.average), "cpu")


class Ears(Listener):
    """Everything that is measured of held-out clips."""

    def __init__(self, clips: int) -> None:
        super().__init__(clips)
        self.naturalness = DnsmosScorer()

    @property
    def seconds(self) -> float:
        return sum(map(len, self.waves)) / SAMPLE_RATE

    def clips(self, waves: Sequence[Wave], naturalness: bool) -> list[Clip]:
        """At 16 kHz, in the order of the samples."""
        heard = self.transcriber([(wave, SAMPLE_RATE) for wave in waves])
        found: list[Clip] = []
        for sample, true, made, text in zip(self.samples, self.waves, waves, heard, strict=True):
            pair = aligned(true, made, SAMPLE_RATE)
            words = match(sample.transcript, text)
            mos = self.naturalness(made, SAMPLE_RATE) if naturalness else None
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


def measured(ears: Ears, name: str, place: Path, steps: int) -> dict[str, Any]:
    """Figures of a row, kept in its folder."""
    kept = place / "figures.json"
    row = ROWS[name]
    known = identity(ears, row, steps)
    if not kept.is_file() or json.loads(kept.read_text())["identity"] != known:
        codec = trained(place, row, steps)
        codes = codec.encode(ears.waves)
        used = usage(count_codes(codes, codec.codebook_size))
        clips = ears.clips(codec.decode(codes), row.naturalness)
        figures = {"clips": clips, "used": used, "of": codec.codebook_size}
        keep(kept, {"identity": known, **figures})
    return json.loads(kept.read_text())


def originals(ears: Ears, place: Path) -> dict[str, Any]:
    """What is to be reached."""
    kept = place / "figures.json"
    if not kept.is_file():
        place.mkdir(parents=True, exist_ok=True)
        keep(kept, {"clips": ears.clips(ears.waves, naturalness=True)})
    return json.loads(kept.read_text())


def keep(path: Path, figures: Mapping[str, Any]) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(figures))


def line(name: str, found: Mapping[str, Any], place: Path) -> str:
    """A row of the table: what it cost, its figures, how its codes are used."""
    clips: list[Clip] = found["clips"]
    shown = []
    for figure, (_, digits) in FIGURES.items():
        values = [value for clip in clips if (value := clip[figure]) is not None]
        shown.append(f"{fmean(values):.{digits}f}" if values else "–")
    wer = sum(clip["errors"] or 0 for clip in clips) / sum(clip["words"] or 0 for clip in clips)
    cost, used = "– | –", "– | –"
    if "used" in found:
        records = [json.loads(row) for row in (place / "metrics.jsonl").read_text().splitlines()]
        cost = f"{len(records)} | {sum(row['cpu_seconds'] for row in records) / 60:.1f}"
        use = found["used"]
        used = f"{use['perplexity']:.0f} | {found['of'] - use['codes_used']:.0f}"
    return f"| {name} | {cost} | {wer:.1%} | {' | '.join(shown)} | {used} |"


def gap(figure: str, old: list[Clip], new: list[Clip]) -> str:
    """Mean of ``new`` less that of ``old`` over the clips that have both, with its 95 % interval;
    of "wer", errors a hundred words."""
    digits = 1 if figure == "wer" else FIGURES[figure][1]
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
    """A clip's share of a mean, and its weight."""
    if figure == "wer":
        return 100 * (clip["errors"] or 0), clip["words"] or 0
    value = clip[figure]
    assert value is not None
    return value, 1.0


def tables(found: Mapping[str, Mapping[str, Any]], folder: Path, ears: Ears) -> str:
    """All that is there, in Markdown."""
    headings = [heading for heading, _ in FIGURES.values()]
    words = sum(clip["words"] for clip in found[ORIGINAL]["clips"])
    lines = [
        f"# Codec recipe, choice by choice, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{len(ears.samples)} held-out clips ({ears.seconds:.0f} s, {words} words); WER of Whisper "
        f"tiny.en; torch {torch.__version__}, {torch.get_num_threads()} threads.",
    ]
    columns = ["row", "steps", "CPU minutes", "WER", *headings, "perplexity", "codes unheard"]
    differences = ["row, less its baseline", "baseline", "WER, points", *headings]
    for title, rows in TABLES.items():
        there = [name for name in rows if name in found]
        lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [line(name, found[name], place_of(folder, name)) for name in [ORIGINAL, *there]]
        lines += ["", f"| {' | '.join(differences)} |", "|---" * len(differences) + "|"]
        for name in there:
            if (baseline := rows[name].baseline) in found:
                pair = found[baseline]["clips"], found[name]["clips"]
                gaps = [gap(figure, *pair) for figure in ("wer", *FIGURES)]
                lines.append(f"| {name} | {baseline} | {' | '.join(gaps)} |")
    lines += ["", "In bold: the 95 % interval (bootstrap over the clips, paired) leaves out 0."]
    return "\n".join(lines) + "\n"


def place_of(folder: Path, name: str) -> Path:
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
    ears = Ears(arguments.clips)
    done = [name for name in ROWS if (place_of(folder, name) / "figures.json").is_file()]
    found: dict[str, dict[str, Any]] = {}
    for name in [*done, *(name for name in arguments.rows if name not in done)]:
        try:
            found[name] = measured(ears, name, place_of(folder, name), arguments.steps)
        except SystemExit as left:
            if left.code == STOPPED:
                raise SystemExit("stopped; the same command goes on") from None
            raise
        print(line(name, found[name], place_of(folder, name)), flush=True)
    found[ORIGINAL] = originals(ears, folder / ORIGINAL)
    text = tables(found, folder, ears)
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
