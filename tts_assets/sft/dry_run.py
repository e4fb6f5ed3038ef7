"""A look before training: ``torchrun --nproc-per-node N -m tts_assets.sft.dry_run run.json``.

Builds everything, composes the first batch, runs it forward and backward, writes
``dry_run.json`` into the run folder and prints it. Trains nothing and saves nothing.

``run.json`` is what the asset writes into its run folder,
``storage/.work/sft.<recipe>.all.<fingerprint>/``, when it is first launched; a copy of it with
another ``run_dir`` and recipe tells what that would need.
"""

from __future__ import annotations

import json

from tts_assets.core.artifacts import written_aside
from tts_assets.core.program import Run, load_config
from tts_assets.sft import machine
from tts_assets.sft.config import SftProgram
from tts_assets.sft.train import SftTrainer


def report(trainer: SftTrainer) -> dict[str, float]:
    """Numbers of one batch, as of the first step."""
    batch = trainer.stream.batch()
    rows = list(trainer.share.rows(trainer.train_pool, batch, trainer.recipe.code_dropout))
    meter = trainer.meter(trainer.train_pool, rows)
    losses = trainer.backward(rows, meter)
    trainer.check_sane("loss", losses["loss"], batch)
    lengths = [trainer.train_pool.length(sample.items) for sample in batch]
    return {
        "parameters": trainer.parameters,
        "ranks": trainer.run.world_size,
        "steps": trainer.steps,
        "tokens_per_step": meter.tokens,
        "samples_per_step": len(batch),
        "rows_of_rank_0": len(rows),
        "train_samples": len(trainer.train_pool),
        "train_samples_dropped": len(trainer.train_pool.dropped),
        "val_samples": len(trainer.val_pool),
        "val_samples_dropped": len(trainer.val_pool.dropped),
        **losses,
        **meter.speed(trainer.flops, lengths),
    }


def main(argv: list[str] | None = None) -> None:
    program = load_config(SftProgram, argv)
    with Run(program.run_dir) as run:
        machine.check(program.recipe, run.local_world_size)
        run.init_distributed()
        text = json.dumps(report(SftTrainer(run, program)), indent=2) + "\n"
        if run.is_main:
            with written_aside(run.run_dir / "dry_run.json") as aside:
                aside.write_text(text)
            print(text, end="", flush=True)


if __name__ == "__main__":
    main()
