"""The script of ``make gpu-proof`` with tiny sizes on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def run(out: Path, *sections: str, limit: float = 540) -> dict[str, dict[str, Any]]:
    """The results by section; the script ends with 1 if one of them fails."""
    command = [sys.executable, "benchmarks/gpu_proof.py", "--tiny", "--device", "cpu"]
    options = ["--only", *sections, "--out", str(out), "--limit", str(limit)]
    done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True)
    found = {one["section"]: one for one in json.loads((out / "gpu_proof.json").read_text())}
    assert done.returncode == any(one["failure"] for one in found.values()), done.stderr
    return found


@pytest.mark.slow
def test_sections_on_a_cpu(tmp_path: Path) -> None:
    found = run(tmp_path, "environment", "sft", "exactness", "strategies", "codec")
    assert [one["failure"] for one in found.values()] == [""] * 5
    values = {row["what"]: row for one in found.values() for row in one["rows"]}
    assert values["loss in chunks of 1,024: speed"]["value"] > 0
    assert values["packed loss in float32, relative difference"]["note"] == "equal"
    assert values["packed loss in bfloat16, relative difference"]["note"] == "equal"
    for name in ("DDP", "FSDP2", "ZeRO-2", "ZeRO-3"):
        assert values[f"{name}: loss after 3 steps"]["note"].startswith("equal")
    assert values["decode"]["value"] > 0


@pytest.mark.slow
def test_a_section_that_takes_too_long_says_so(tmp_path: Path) -> None:
    found = run(tmp_path, "sft", "codec", limit=1)
    assert "the time is spent" in found["sft"]["failure"]
    assert found["codec"]["failure"] == "not run: the time is spent"
