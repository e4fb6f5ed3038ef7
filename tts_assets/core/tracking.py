"""Weights & Biases: another view of a run's metrics, beside ``metrics.jsonl``.

``[wandb]`` of dagster_project.toml is written as ``wandb.json`` into the run folder of a launched
program; by hand the same file does the same. W&B's files lie in ``wandb/`` beside it, with the id
of the W&B run, so that a restart goes on in that run. The key for ``online`` comes from W&B's own
places, ``wandb login`` or ``WANDB_API_KEY``. Offline nothing is sent anywhere; ``wandb sync
FOLDER`` uploads it later. W&B helps to watch and is not needed to train: whatever fails in it is
told once, and the run goes on without.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tts_assets.core.artifacts import written_aside
from tts_assets.core.config import Config

CONFIG_FILE = "wandb.json"
FOLDER = "wandb"
ID_FILE = "run_id.txt"
SECONDS = 30.0  # that W&B may take to begin or to upload the rest: GPUs wait for it
# The values are the run's own. The machine, its processes, the code and the log are no part of it,
# and looking at the machine would ask a cloud's address for metadata.
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
    """``[wandb]``: metrics of launched programs also go to Weights & Biases. ``entity`` is a user
    or a team, None W&B's default. The API key does not belong here: ``wandb login`` keeps it."""

    project: str
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    tags: tuple[str, ...] = ()


class RunCard(WandbConfig):
    """``wandb.json``: how one program's run is called there."""

    name: str | None = None


def write_card(run_dir: Path, config: WandbConfig | None, name: str) -> None:
    """Turn W&B on for the programs of a run folder, or off with None."""
    if config is None:
        (run_dir / CONFIG_FILE).unlink(missing_ok=True)
        return
    with written_aside(run_dir / CONFIG_FILE) as aside:
        aside.write_text(RunCard(name=name, **config.model_dump()).to_json())


def keep_files(run_dir: Path, folder: Path) -> None:
    """Move what W&B wrote below ``run_dir``, which goes, into ``folder``: a run that was offline
    is uploaded from there."""
    for run in (run_dir / FOLDER).glob("*run-*-*"):
        if run.is_dir() and not run.is_symlink():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(run, folder / run.name)


class Tracker:
    """The W&B run of a run folder, opened by the first metrics; without ``wandb.json`` nothing."""

    def __init__(self, run_dir: Path, warn: Callable[[str], None]) -> None:
        self.run_dir, self.warn = run_dir, warn
        self._opened = False
        self._run: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._guarded(self._log, step, values)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows as a table of W&B; a row without a key has an empty cell."""
        self._guarded(self._table, name, rows)

    def close(self, failed: bool) -> None:
        """Until all is on disk or, online, uploaded."""
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
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's own, over the network
        import wandb

        run = wandb.init(
            **card.model_dump(),
            id=run_id(folder),
            resume="allow" if card.mode == "online" else None,
            dir=str(self.run_dir),
            config=program_config(self.run_dir),
            settings=wandb.Settings(**QUIET),
        )
        # After a restart the steps since its checkpoint come twice, with the same values. W&B's own
        # count may not go back; drawn over a metric of ours they lie on each other.
        run.define_metric("*", step_metric="step")
        return run

    def _guarded(self, call: Callable[..., object], *args: object) -> None:
        try:
            call(*args)
        # W&B's errors have no common base (0.31: MailboxClosedError, WandbServiceConnectionError
        # and a dozen others derive from Exception itself), and hours of training go on.
        except Exception as error:  # noqa: BLE001
            self._run = None
            self.warn(
                f"Weights & Biases gets no more metrics of this run: {error}. They are whole in "
                f"{self.run_dir / 'metrics.jsonl'}. Check `wandb login`, `pip show wandb` and "
                f"[wandb] of the project file, or write mode = 'offline' there; it is tried again "
                "when the program starts again"
            )


def run_id(folder: Path) -> str:
    """The id of the W&B run of this folder, drawn once: W&B never gives a deleted one again."""
    path = folder / ID_FILE
    if not path.is_file():
        with written_aside(path) as aside:
            aside.write_text(uuid.uuid4().hex[:16])
    return path.read_text()


def program_config(run_dir: Path) -> dict[str, Any]:
    """``run.json`` of the program, which W&B shows and compares; empty where it has none."""
    path = run_dir / "run.json"
    return json.loads(path.read_text()) if path.is_file() else {}
