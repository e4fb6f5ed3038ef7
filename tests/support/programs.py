"""Small launched programs and an asset around them, for tests of launchers."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.program import ProgramConfig, Run, load_config

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # the environment of a rank


class CountConfig(ProgramConfig):
    """Counts to ``total``, saving every step; rank ``broken_rank`` fails at step 2."""

    total: int
    step_seconds: float = 0.0
    broken_rank: int = -1
    deaf: bool = False  # ignores the request to stop
    fail_once_at: int = -1
    wait_at: int = -1  # at this step, until there is a file ``go`` or a request to stop


def main() -> None:
    config = load_config(CountConfig)
    with Run(config.run_dir) as run:
        run.init_distributed()
        (config.run_dir / f"pid.{run.rank}").write_text(str(os.getpid()))
        saved = run.checkpoint_dir / "count.txt"
        start = int(saved.read_text()) if saved.is_file() else 0
        for step in run.progress(range(start, config.total), "counting", start=start):
            if run.rank == config.broken_rank and step == 2:
                raise ValueError(f"rank {run.rank} cannot count past two")
            if step == config.fail_once_at and start < step:
                raise OSError(f"the disk hiccups at {step}")
            time.sleep(config.step_seconds)
            if run.is_main:
                print(f"counted {step}", file=sys.stderr, flush=True)
            while step == config.wait_at and not (config.run_dir / "go").exists():
                if run.should_stop():
                    break
                time.sleep(0.05)
            stop = run.should_stop() and not config.deaf
            if run.is_main:
                run.metrics(step, {"count": step + 1})
                _save(saved, step + 1)
            if stop:
                run.stopped()
        if run.is_main:
            (run.result_dir / "count.txt").write_text(f"{config.total}\n")
        run.finish({"counted": config.total, "started_from": start})


def _save(path: Path, count: int) -> None:
    with atomic_write(path) as aside:
        aside.write_text(str(count))


if __name__ == "__main__":
    main()
