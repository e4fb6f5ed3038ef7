"""The machine itself: interpreter, memory, cores, disk, ports, GPUs. The standard library only.

What a look at one part of the machine found.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """``cost``: what does not work without it; ``remedy``: what to type. Empty where it is fine.

    ``needed``: the chosen profile does not run without it.
    """

    name: str
    fine: bool
    found: str
    cost: str = ""
    remedy: str = ""
    needed: bool = False

    @property
    def state(self) -> str:
        if self.fine:
            return "fine"
        return "missing, and needed" if self.needed else "missing"


def fine(name: str, found: str) -> Finding:
    return Finding(name, True, found)


def missing(name: str, found: str, cost: str, remedy: str, needed: bool = False) -> Finding:
    return Finding(name, False, found, cost, remedy, needed)


LEAST_MEMORY_GB = 4.0  # the demo's largest moment, measured: 2.6 GB beside the webserver
LEAST_CORES = 2
LEAST_DISK_GB = 5.0  # the demo's storage is 0.2 GB; checkpoints of a billion parameters are 12 GB
COMMAND_SECONDS = 20.0


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return fine("Python", version)
    return missing(
        *("Python", version, "the locked packages do not install"),
        "make install PYTHON=python3.11",
        needed=True,
    )


def memory() -> Finding:
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = f"{gigabytes:.0f} GB"
    if gigabytes >= LEAST_MEMORY_GB:
        return fine("memory", found)
    return missing(
        *("memory", found, f"the demo needs {LEAST_MEMORY_GB:.0f} GB; programs may be killed"),
        "use a larger machine, or compute.processes = 1",
    )


def cores() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"{count} cores"
    if (count or 1) >= LEAST_CORES:
        return fine("cores", found)
    return missing(
        *("cores", found, "the two ranks of a program share one: about twice the time"),
        "set compute.processes = 1",
    )


def disk(storage: Path) -> Finding:
    """The disk on which ``storage`` lies or will lie."""
    existing = next(path for path in (storage, *storage.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return missing(
            *("storage", f"{existing} is not writable", "nothing can be published"),
            f"chmod u+w {existing}, or set project.storage to another folder",
            needed=True,
        )
    free = shutil.disk_usage(existing).free / 1e9
    found = f"{free:.0f} GB free at {storage}"
    if free >= LEAST_DISK_GB:
        return fine("storage", found)
    return missing(
        *("storage", found, "checkpoints may not fit; nothing half-written is published"),
        "free some, or set project.storage to a folder on another disk",
    )


def port(number: int, what: str, remedy: str) -> Finding:
    """Whether a server of ours can listen there; one that listens already may well be ours."""
    name = f"port {number}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            why = "in use" if error.errno == errno.EADDRINUSE else str(error)
            return missing(name, why, f"{what} cannot start there, or runs already", remedy)
    return fine(name, f"free for {what}")


def gpus(needed: bool) -> Finding:
    """What the driver tells; torch's view of it is :func:`tts_assets.doctor.libraries.torch`."""
    cost = "models of a billion parameters; the demo trains on CPUs"
    if shutil.which("nvidia-smi") is None:
        remedy = "install NVIDIA's driver, or use TTS_PROFILE=slurm where a cluster has them"
        return missing("GPUs", "no nvidia-smi", cost, remedy, needed)
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    done = run("nvidia-smi", *query)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        told = (done.stderr or done.stdout).strip() or "no GPU"
        remedy = "nvidia-smi must list them first: reboot after installing the driver"
        return missing("GPUs", told, cost, remedy, needed)
    return fine("GPUs", "; ".join(lines))


def run(*command: str, seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
    """The command's end; status 124 where it takes too long, 127 where there is none."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {seconds:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
