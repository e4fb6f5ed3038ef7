"""GPU leases between real processes. The GPUs are only names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from resources.leases import lease
folder, count = Path(sys.argv[1]), int(sys.argv[2])
with lease(count, [str(i) for i in range(8)], lambda text: print(text, flush=True), folder) as held:
    print("holds", ",".join(held.devices), flush=True)
    sys.stdin.read()
"""


def hold(folder: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(count)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_leases_of_four_gpus_and_a_third_that_waits(tmp_path: Path) -> None:
    first = hold(tmp_path, 4)
    assert said(first) == "holds 0,1,2,3"
    second = hold(tmp_path, 4)  # at the same instant it could say that it waits in line
    assert said(second) == "holds 4,5,6,7"
    third = hold(tmp_path, 4)
    assert said(third) == "waiting for 4 GPUs: 0 of 8 are free"
    first.kill()  # a killed process gives back what it held
    assert said(third) == "holds 0,1,2,3"
    for process in (first, second, third):
        process.communicate()


def test_a_lease_of_all_gpus_is_not_overtaken_by_a_smaller_one(tmp_path: Path) -> None:
    small = hold(tmp_path, 1)
    assert said(small) == "holds 0"
    large = hold(tmp_path, 8)
    assert said(large) == "waiting for 8 GPUs: 7 of 8 are free"
    late = hold(tmp_path, 1)
    assert said(late) == "waiting in line for 1 GPUs"
    small.communicate()
    assert said(large) == "holds 0,1,2,3,4,5,6,7"
    assert said(late) == "waiting for 1 GPUs: 0 of 8 are free"
    large.communicate()
    assert said(late) == "holds 0"
    late.communicate()
