"""Trains several programs one after another in one process group: torchrun starts once for all.

``torchrun --nproc-per-node 2 -m tests.support.two_ranks runs.json``; the file is a list of
``{"program": …, "from": folder or null, "fails": rank or null}``: a run that goes on from the
first checkpoint of another run's folder, one in which a rank fails at the second step.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch.distributed as dist

from tts_assets.core.program import Run
from tts_assets.core.training import saved
from tts_assets.sft.config import SftProgram
from tts_assets.sft.train import build_trainer


def train(run: Run, program: SftProgram, before: str | None, fails: int | None) -> None:
    run.run_dir = program.run_dir
    if run.is_main:
        run.result_dir.mkdir(parents=True)
        run.checkpoint_dir.mkdir()
        if before is not None:
            first = saved(Path(before) / "checkpoints")[0]
            shutil.copytree(first, run.checkpoint_dir / first.name)
    dist.barrier()
    trainer = build_trainer(run, program)
    trainer.resume()
    if fails is not None:
        trainer.train_step(0)
        if fails == run.rank:
            raise ArithmeticError(f"rank {fails} was told to fail")
    trainer.train()
    trainer.finish()
    dist.barrier()


def main() -> None:
    path = Path(sys.argv[1])
    with Run(path.parent / "ranks") as run:
        run.init_distributed()
        for entry in json.loads(path.read_text()):
            program = SftProgram.parse(entry["program"], str(path))
            train(run, program, entry.get("from"), entry.get("fails"))


if __name__ == "__main__":
    main()
