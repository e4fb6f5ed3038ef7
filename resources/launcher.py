"""What every launcher does: run one program to its end and give back what it made."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import AssetExecutionContext, ConfigurableResource

from tts_assets.program import ProgramConfig


class LaunchError(RuntimeError):
    """A launched program failed: the message has the failing rank's last words and the log."""


@dataclass(frozen=True)
class Program:
    """A module, its typed configuration and its shape."""

    module: str
    config: ProgramConfig
    processes: int = 1

    @property
    def run_dir(self) -> Path:
        return self.config.run_dir

    def write_config(self) -> Path:
        """``run.json``: the program runs by hand from it, too."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / "run.json"
        path.write_text(self.config.to_json())
        return path

    def facts(self) -> dict[str, Any] | None:
        """What the program declared when it finished; None if it has not."""
        path = self.run_dir / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None


@dataclass(frozen=True)
class Outcome:
    """The facts of a finished program and what it cost."""

    facts: dict[str, Any]
    seconds: float
    gpu_hours: float
    peak_memory_gb: float


class Launcher(ConfigurableResource, ABC):
    """Runs programs; see ``TorchrunLauncher``."""

    @abstractmethod
    def run(self, context: AssetExecutionContext, program: Program) -> Outcome:
        """Run ``program`` to its end, resuming what its run folder holds; raise LaunchError."""
