#!/usr/bin/env python3
"""Make .venv and install the locked packages into it; says what it does; a rerun takes a second.

    python3 scripts/install.py [--cuda VERSION] [--coqui]

Runs on the system's Python (3.11 or 3.12) with nothing but its standard library. PyTorch comes
first, in the build that fits the machine: the CPU build unless --cuda is given. Everything else
follows from locks/cpu.txt or locks/gpu.txt, exactly as pinned there (--no-deps). Without --cuda a
rerun keeps the choice of the first run; "--cuda cpu" changes it back.

--coqui makes .venv-coqui from locks/coqui.txt instead: the environment of the external models.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = "uv==0.13.8"
CUDA_OF_LOCK = "13.0"
CPU = "cpu"
MAIN, COQUI = ROOT / ".venv", ROOT / ".venv-coqui"
CHOICE = ".cuda"  # file of an environment: the CUDA version that it was made for, or CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cuda",
        default="",
        help=f"CUDA of the machine, {CUDA_OF_LOCK}, or {CPU}; default: as before, at first {CPU}",
    )
    parser.add_argument("--coqui", action="store_true", help="the environment of coqui-tts")
    options = parser.parse_args()
    check_request(options.cuda)
    venv = COQUI if options.coqui else MAIN
    cuda = choice(options.cuda, venv)
    lock = ROOT / "locks" / ("coqui.txt" if options.coqui else "gpu.txt" if cuda else "cpu.txt")
    stamp = venv / ".installed"
    wanted = stamp_of(lock, venv)
    found = stamp.read_text() if stamp.is_file() else ""
    if found == wanted:
        say(f"{venv.name} is up to date with {lock.relative_to(ROOT)}")
        return
    if was_moved(found, venv):
        say(f"{venv.name} was made at {found.partition(' ')[2]}, and its commands name that path")
        shutil.rmtree(venv)
    started = time.monotonic()
    make_environment(venv)
    (venv / CHOICE).write_text(cuda or CPU)
    install_torch(venv, lock, cuda)
    packages = sum(1 for line in lock.read_text().splitlines() if line)
    say(f"installing {packages} packages of {lock.relative_to(ROOT)}")
    # Where PYTHONDONTWRITEBYTECODE is set, as in many containers, every process would compile what
    # it imports: 2.4 s of CPU instead of 1.3 s for dagster.
    uv(venv, "install", "--compile-bytecode", "--no-deps", "--requirement", str(lock))
    if options.coqui:
        check_torchaudio(venv)
    else:
        say("installing this checkout in editable mode")
        uv(venv, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    check_torch(venv)
    stamp.write_text(wanted)
    say(f"done in {time.monotonic() - started:.0f} s; its interpreter: {venv / 'bin/python'}")


def choice(asked: str, venv: Path) -> str:
    """The CUDA version to install for; "" for CPUs.

    ``asked`` decides, else the environment remembers its choice: ``make ui`` after ``make install
    CUDA=13.0`` must not replace the packages by those for CPUs.
    """
    file = venv / CHOICE
    remembered = file.read_text() if file.is_file() else CPU
    return (asked or remembered).replace(CPU, "")


def stamp_of(lock: Path, venv: Path) -> str:
    """What an environment was made from, and where: its commands begin with an absolute path."""
    contents = lock.read_bytes()
    if venv == MAIN:
        contents += (ROOT / "pyproject.toml").read_bytes()
    return f"{hashlib.sha256(contents).hexdigest()} {venv}"


def was_moved(stamp: str, venv: Path) -> bool:
    """Whether the environment with this stamp was made at another path."""
    return stamp.partition(" ")[2] not in ("", str(venv))


def check_request(cuda: str) -> None:
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"Python 3.11 or 3.12 is needed, this is {version}; run: make install PYTHON=python3.11"
        )
    if cuda not in ("", CPU, CUDA_OF_LOCK):
        sys.exit(
            f"locks/gpu.txt is for CUDA {CUDA_OF_LOCK}: make install CUDA={CUDA_OF_LOCK}, or "
            f"CUDA={CPU} for a machine without GPUs"
        )


def make_environment(venv: Path) -> None:
    say(f"creating {venv.name} with Python {sys.version.split()[0]}")
    made = subprocess.run([sys.executable, "-m", "venv", str(venv)], check=False)
    if made.returncode:
        sys.exit("python3 cannot make environments; on Debian: apt-get install python3-venv")
    pip(venv, "install", "--quiet", "--disable-pip-version-check", UV)


def install_torch(venv: Path, lock: Path, cuda: str) -> None:
    """The build for this machine, from PyTorch's own index; else whatever pip is set up to find."""
    pins = [
        line for line in lock.read_text().splitlines() if re.match("torch(audio|codec)?==", line)
    ]
    backend = "cu" + cuda.replace(".", "") if cuda else "cpu"
    say(f"installing {' '.join(pins)} ({backend})")
    if uv(venv, "install", f"--torch-backend={backend}", "--no-deps", *pins, check=False) != 0:
        say("PyTorch's index is out of reach; taking torch from where pip is set up to look")
        pip(venv, "install", "--disable-pip-version-check", pins[0])
        if pins[1:]:
            pip(venv, "install", "--disable-pip-version-check", "--no-deps", *pins[1:])


def check_torchaudio(venv: Path) -> None:
    """Remove the extension of torchaudio if it needs a CUDA that torch lacks.

    PyPI has torchaudio for CUDA only. Coqui-tts uses its Python parts, which work without.
    """
    command = [str(venv / "bin/python"), "-c", "import torchaudio"]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        say("torchaudio is built for CUDA; removing its extension, which coqui-tts does not use")
        for path in venv.glob("lib/python*/site-packages/torchaudio/lib/*.so"):
            path.unlink()
        subprocess.run(command, check=True)


def check_torch(venv: Path) -> None:
    test = "import torch; print('torch', torch.__version__, 'CUDA:', torch.cuda.is_available())"
    if subprocess.run([str(venv / "bin/python"), "-c", test], check=False).returncode:
        sys.exit(
            "torch does not import; delete the environment and make it again with a network "
            "that reaches PyTorch's package index"
        )


def uv(venv: Path, *arguments: str, check: bool = True) -> int:
    environment = {**os.environ, "VIRTUAL_ENV": str(venv)}
    command = [str(venv / "bin/uv"), "pip", *arguments]
    return subprocess.run(command, env=environment, check=check).returncode


def pip(venv: Path, *arguments: str) -> None:
    subprocess.run([str(venv / "bin/python"), "-m", "pip", *arguments], check=True)


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


if __name__ == "__main__":
    main()
