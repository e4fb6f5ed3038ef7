"""Programs of codec training on one sample list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tts_assets.codec.config import CodecProgram, CodecRecipe
from tts_assets.codec.train import CodecTrainer, codec_trainer
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.program import Run

SPLIT = ValidationSplit(fraction=0.2)


def write(folder: Path, recipe: CodecRecipe, samples: Path) -> CodecProgram:
    """Write the ``run.json`` of a training; every corpus has the list ``samples``."""
    folder.mkdir(exist_ok=True)
    every = dict.fromkeys(recipe.corpora, samples)
    program = CodecProgram(run_dir=folder, recipe=recipe, samples=every, validation=SPLIT)
    (folder / "run.json").write_text(program.to_json())
    return program


@contextmanager
def opened(folder: Path, recipe: CodecRecipe, samples: Path) -> Iterator[CodecTrainer]:
    """The trainer of such a program, before its first step."""
    program = write(folder, recipe, samples)
    with Run(program.run_dir) as run:
        yield codec_trainer(run, program)
