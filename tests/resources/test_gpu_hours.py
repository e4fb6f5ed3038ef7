"""What programs cost is counted whole: every program, every start, whoever looked on."""

from __future__ import annotations

from pathlib import Path

import pytest

from resources.torchrun import TorchrunLauncher
from tests.launched import count
from tts_assets.compute import Shape
from tts_assets.ledger import Ledger


def test_programs_of_one_dagster_run_have_accounts_of_their_own(tmp_path: Path) -> None:
    launcher = TorchrunLauncher(ledger=str(tmp_path / "ledger"))
    shape = Shape(processes=1, gpus=1)
    for asset, folder in [("serving/a", "a.x"), ("serving/b", "b.x"), ("serving/b", "b.y")]:
        program = count(tmp_path / folder / "verify", shape, total=1)
        launcher.record(program, asset, "run.0", 60.0, 1)
    attempts = Ledger(tmp_path / "ledger").attempts()
    assert sorted(a.asset for a in attempts) == ["serving/a", "serving/b", "serving/b"]
    assert sum(attempt.seconds for attempt in attempts) == pytest.approx(180.0)
