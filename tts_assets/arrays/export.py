"""Arrays in the layout of the reference trainer: ``python -m tts_assets.arrays.export run.json``.

    {split}_codes.npy        int32, no header: ``np.memmap(path, dtype=np.int32)``
    {split}_codes_index.npy  a true .npy, int64: where each sample's codes start
    {split}_samples.jsonl    line i is sample i

Audio is named by absolute path. A split without samples has empty files, of which their trainer
maps none: it wants validation samples.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tts_assets.arrays.arrays import SPLITS, CodeTable
from tts_assets.arrays.config import ExportProgram
from tts_assets.artifacts import ArrayFacts, CodeArrays
from tts_assets.program import Run, load_config

PIECE = 1 << 20  # codes at once


def export_inworld(arrays: CodeArrays, target: Path) -> ArrayFacts:
    """Write the six files to the folder ``target``."""
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        with (target / f"{split}_codes.npy").open("wb") as stream:
            for start in range(0, len(table.codes), PIECE):
                table.codes[start : start + PIECE].astype(np.int32).tofile(stream)
        for name in (f"{split}_codes_index.npy", f"{split}_samples.jsonl"):
            shutil.copyfile(arrays.path / name, target / name)
    facts: ArrayFacts = arrays.facts
    return facts


def main(argv: list[str] | None = None) -> None:
    program = load_config(ExportProgram, argv)
    with Run(program.run_dir) as run:
        facts = export_inworld(CodeArrays.open(program.arrays), run.result_dir)
        run.finish(facts.model_dump())


if __name__ == "__main__":
    main()
