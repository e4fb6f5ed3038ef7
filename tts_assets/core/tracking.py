"""Metrics of launched programs in Weights & Biases, in addition to ``metrics.jsonl``.

``[wandb]`` of dagster_project.toml is written to ``wandb.json`` in the run folder of a program;
the file may also be written by hand. W&B writes to ``wandb/`` beside it. The id of the W&B run
is stored there, so that a restart continues the same W&B run. The API key comes from ``wandb
login`` or ``WANDB_API_KEY``. In offline mode nothing is sent; ``wandb sync FOLDER`` uploads the
files later. An error of W&B is logged once, and the program continues without W&B.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import Config

CONFIG_FILE = "wandb.json"
FOLDER = "wandb"
ID_FILE = "run_id.txt"
SECONDS = 30.0  # timeout of W&B at start and end, because GPUs wait for it
# Only metrics are recorded, not the machine, processes, code or log. The inspection of the machine
# would send requests to the metadata service of a cloud.
QUIET = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "init_timeout": SECONDS,
    "finish_timeout": SECONDS,
}


class WandbConfig(Config):
    """``[wandb]``: metrics of launched programs also go to Weights & Biases.

    The API key is not configured here but stored by ``wandb login``. Entity and tags are those of
    W&B's own variables, ``WANDB_ENTITY`` and ``WANDB_TAGS``.
    """

    replaced_keys: ClassVar[Mapping[str, str]] = {
        name: f"write environment = {{ WANDB_{name.upper()} = '…' }} in [compute]"
        for name in ("entity", "tags")
    }

    project: str
    mode: Literal["offline", "online"] = "offline"


class RunCard(WandbConfig):
    """``wandb.json``: ``[wandb]`` and the name of the run."""

    name: str | None = None


def write_card(run_dir: Path, config: WandbConfig | None, name: str) -> None:
    """Turn W&B on for the programs of a run folder, or off if ``config`` is None."""
    if config is None:
        (run_dir / CONFIG_FILE).unlink(missing_ok=True)
        return
    with atomic_write(run_dir / CONFIG_FILE) as aside:
        aside.write_text(RunCard(name=name, **config.model_dump()).to_json())


def keep_files(run_dir: Path, folder: Path) -> None:
    """Move the files of W&B from ``run_dir``, which is deleted afterwards, to ``folder``.

    Offline runs are uploaded from there.
    """
    for run in (run_dir / FOLDER).glob("*run-*-*"):
        if run.is_dir() and not run.is_symlink():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(run, folder / run.name)


class Tracker:
    """The W&B run of a run folder, opened with the first metrics if there is a ``wandb.json``."""

    def __init__(self, run_dir: Path, warn: Callable[[str], None]) -> None:
        self.run_dir, self.warn = run_dir, warn
        self._opened = False
        self._run: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one step."""
        self._guarded(self._log, step, values)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows as a table of W&B. A missing key is an empty cell."""
        self._guarded(self._table, name, rows)

    def close(self, failed: bool) -> None:
        """Finish the W&B run: wait until all is written or, in online mode, uploaded."""
        if self._run is not None:
            self._guarded(self._run.finish, 1 if failed else 0)
            self._run = None

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        self._open_once()
        if self._run is not None:
            self._run.log({"step": step, **values})

    def _table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._open_once()
        if self._run is not None:
            import wandb

            columns: list[str | int] = list(dict.fromkeys(key for row in rows for key in row))
            data = [[row.get(str(column)) for column in columns] for row in rows]
            self._run.log({name: wandb.Table(columns=columns, data=data)})

    def _open_once(self) -> None:
        if not self._opened:
            self._opened = True
            if (self.run_dir / CONFIG_FILE).is_file():
                self._run = self._open(RunCard.from_json(self.run_dir / CONFIG_FILE))

    def _open(self, card: RunCard) -> Any:
        folder = self.run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # error reports to W&B itself
        import wandb

        run = wandb.init(
            **card.model_dump(),
            id=run_id(folder),
            resume="allow" if card.mode == "online" else None,
            dir=str(self.run_dir),
            config=program_config(self.run_dir),
            settings=wandb.Settings(**QUIET),
        )
        # After a restart, steps since the checkpoint are logged again with the same values. The
        # step of W&B must not decrease. Plotted over our metric `step`, the points coincide.
        run.define_metric("*", step_metric="step")
        return run

    def _guarded(self, call: Callable[..., object], *args: object) -> None:
        try:
            call(*args)
        # W&B's errors have no common base class (0.31: MailboxClosedError,
        # WandbServiceConnectionError and a dozen others), and must not end hours of training.
        except Exception as error:  # noqa: BLE001
            self._run = None
            self.warn(
                f"Weights & Biases gets no more metrics of this run: {error}. All of them are in "
                f"{self.run_dir / 'metrics.jsonl'}. Check `wandb login`, `pip show wandb` and "
                f"[wandb] of the project file, or write mode = 'offline' there. The next start of "
                "the program tries again"
            )


def run_id(folder: Path) -> str:
    """The id of the W&B run, created once: W&B rejects the id of a deleted run."""
    path = folder / ID_FILE
    if not path.is_file():
        with atomic_write(path) as aside:
            aside.write_text(uuid.uuid4().hex[:16])
    return path.read_text()


def program_config(run_dir: Path) -> dict[str, Any]:
    """``run.json`` of the program as the configuration of the W&B run; empty if there is none."""
    path = run_dir / "run.json"
    return json.loads(path.read_text()) if path.is_file() else {}
