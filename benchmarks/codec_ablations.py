"""What each choice of the codec recipe is worth: short trainings that differ in one thing.

    OMP_NUM_THREADS=2 python benchmarks/codec_ablations.py --steps 1500

trains every row from the same random weights on the demo corpus, for as many steps and so on the
same audio, and measures held-out clips. Rows are kept in ``--folder``: a restart makes those that
are missing and goes on with the one that was interrupted; ``--rows`` makes some of them alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codec_training import ROOT, SPLIT, recorded_recipe, write_program
from torch import Tensor, nn

from tts_assets.artifacts import written_aside
from tts_assets.codec.backends import CompactBackend
from tts_assets.codec.config import CodecProgram, CodecRecipe, CodecReportConfig
from tts_assets.codec.model import Codec
from tts_assets.codec.train import Trainer
from tts_assets.codec.xcodec2 import CompactXcodec2
from tts_assets.codec_report.config import CodecReportProgram
from tts_assets.codec_report.measure import Measurer, SystemFigures
from tts_assets.program import STOPPED, Run


class BoundedFirst(nn.Module):
    """The quantizer's projection with its bound behind, so that it bounds twice, as the published
    X-Codec-2 does."""

    def __init__(self, project: nn.Module, bound: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.project, self.bound = project, bound

    def forward(self, hidden: Tensor) -> Tensor:
        return self.bound(self.project(hidden))


class DoubleBound(Trainer):
    def _new_model(self) -> CompactXcodec2:
        model = super()._new_model()
        quantizer: Any = model.quantizer
        quantizer.project_in = BoundedFirst(quantizer.project_in, quantizer.quantizer.bound)
        return model


@dataclass(frozen=True)
class Row:
    """A recipe that differs from the recorded one in ``changes``, dots for inner tables."""

    changes: dict[str, Any] = field(default_factory=dict)
    trainer: type[Trainer] = Trainer


REFERENCE_JUDGES = {
    "adversarial.objective": "least_squares",
    "adversarial.sizes": (78, 126, 206, 334, 542, 876, 1418, 2296),
    "adversarial.periods": (2, 3, 5, 7, 11),
}
ROWS = {
    "recipe": Row(),
    "quantizer: no spread loss": Row({"spread_weight": 0.0}),
    "quantizer: double bound, no spread loss": Row({"spread_weight": 0.0}, DoubleBound),
    "losses: spectra alone": Row({"adversarial": None}),
    "losses: judges from the start": Row({"adversarial.start": 0.0}),
    "losses: judges of the reference trainer": Row(REFERENCE_JUDGES),
    "windows: 1 s": Row({"window_seconds": (1,)}),
    "windows: 4 s": Row({"window_seconds": (4,)}),
    "learning rate: 3e-4": Row({"lr": 3e-4}),
    "learning rate: 3e-3": Row({"lr": 3e-3}),
}


def changed(recipe: CodecRecipe, changes: dict[str, Any]) -> CodecRecipe:
    values = recipe.model_dump()
    for dotted, value in changes.items():
        *tables, key = dotted.split(".")
        node = values
        for table in tables:
            node = node[table]
        node[key] = value
    return CodecRecipe.model_validate(values)


def trained(folder: Path, row: Row, steps: int) -> Codec:
    """The row's codec, with the averaged weights; goes on where it was stopped."""
    warmup = max(1, steps // 50)
    base = changed(recorded_recipe(), {"steps": steps, "warmup": warmup, "save_every": 100})
    base = changed(base, {"eval_every": steps, "adversarial.warmup": warmup})
    program: CodecProgram = write_program(folder, changed(base, row.changes))
    with Run(program.run_dir) as run:
        trainer = row.trainer(run, program)
        trainer.train()
    return Codec(CompactBackend(trainer.average), "cpu")


def measured(measurer: Measurer, name: str, folder: Path, row: Row, steps: int) -> SystemFigures:
    kept = folder / "figures.json"
    if not kept.is_file():
        codes, speed, clips = measurer.through("codec", trained(folder, row, steps))
        found = SystemFigures(name=name, clips=tuple(clips), codes=codes, speed=speed)
        with written_aside(kept) as aside:
            aside.write_text(found.to_json())
    return SystemFigures.from_json(kept)


def line(system: SystemFigures) -> str:
    codes = system.codes
    assert codes is not None
    figures = [system.mean(name) for name in ("mel", "stoi", "pesq", "p808", "cents")]
    shown = ["–" if value is None else f"{value:.3f}" for value in figures]
    used = f"{codes.perplexity:.0f} | {codes.codebook_size - codes.codes_used}"
    return f"| {system.name} | {system.wer:.1%} | " + " | ".join(shown) + f" | {used} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--folder", type=Path, default=ROOT / "storage/benchmarks/codec_ablations")
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.steps}-steps"
    listening = write_program(folder / "listening", recorded_recipe())
    report = CodecReportProgram(
        run_dir=folder / "listening",
        report=CodecReportConfig(corpora=("asterisk_en",), clips=arguments.clips),
        versions=(),
        samples=listening.samples,
        validation=SPLIT,
    )
    measurer = Measurer(report, folder / "listening")
    print(f"{arguments.steps} steps; {len(measurer.samples)} held-out clips\n")
    print("| row | WER | log-mel L1 | STOI | PESQ | P.808 | pitch, cents | perplexity | unheard |")
    print("|---" * 9 + "|")
    for name in arguments.rows:
        place = folder / name.replace(": ", "-").replace(", ", "-").replace(" ", "_")
        try:
            print(line(measured(measurer, name, place, ROWS[name], arguments.steps)), flush=True)
        except SystemExit as left:
            if left.code == STOPPED:
                raise SystemExit("stopped; the same command goes on") from None
            raise


if __name__ == "__main__":
    main()
