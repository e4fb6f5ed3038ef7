"""Checks of the machine and of installed packages. Each returns a :class:`Finding`; all of them.

The module imports the standard library only, so that ``make doctor`` runs before ``make install``.
"""

from __future__ import annotations

import errno
import json
import netrc
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tts_assets.settings import Settings

UI_PORT, SERVER_PORT = 3000, 8000


@dataclass(frozen=True)
class Finding:
    """The state of one part of the machine.

    ``cost`` is what does not work without it, ``remedy`` is a command or setting; both are empty if
    the part is ``fine``. ``needed``: the selected profile does not run without it.
    """

    name: str
    fine: bool
    found: str
    cost: str = ""
    remedy: str = ""
    needed: bool = False

    @property
    def state(self) -> str:
        """``fine``, ``missing``, or ``missing, and needed``."""
        if self.fine:
            return "fine"
        return "missing, and needed" if self.needed else "missing"


def fine(name: str, found: str) -> Finding:
    """A part that is present."""
    return Finding(name, True, found)


def missing(name: str, found: str, cost: str, remedy: str, needed: bool = False) -> Finding:
    """A part that is missing or unusable."""
    return Finding(name, False, found, cost, remedy, needed)


LEAST_MEMORY_GB = 4.0  # measured peak of the demo: 2.6 GB, plus the webserver
LEAST_CORES = 2
LEAST_DISK_GB = 5.0  # the demo writes 0.2 GB; a checkpoint of 10^9 parameters has 12 GB
COMMAND_SECONDS = 20.0
IMPORT_SECONDS = 180.0  # vLLM's first import compiles thousands of modules
WANTED_SNDFILE = ("WAV", "FLAC", "OGG", "MP3")
WANTED_FFMPEG = ("aac", "opus", "g722", "mp3")
WANDB_HOST = "api.wandb.ai"
TORCH = (
    "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, "
    "torch.cuda.device_count() if torch.cuda.is_available() else 0]))"
)
VLLM = "import vllm; print(vllm.__version__)"


def python() -> Finding:
    """The version of this interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return fine("Python", version)
    return missing(
        *("Python", version, "the locked packages do not install"),
        "make install PYTHON=python3.11",
        needed=True,
    )


def commands(folder: Path) -> Finding:
    """The commands of an environment: they name its Python by an absolute path."""
    script = folder / "dagster"
    if not script.is_file():
        return missing(
            *("commands", f"no {script}", "make ui and make demo do not start"), "make install"
        )
    with script.open("rb") as file:
        named = file.readline().removeprefix(b"#!").decode(errors="replace").strip()
    if Path(named).is_file():
        return fine("commands", str(folder))
    return missing(
        *("commands", f"they name {named}, which does not exist", "make ui does not start"),
        "the checkout was moved: make install makes .venv again",
        needed=True,
    )


def memory() -> Finding:
    """The physical memory."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = f"{gigabytes:.0f} GB"
    if gigabytes >= LEAST_MEMORY_GB:
        return fine("memory", found)
    return missing(
        *("memory", found, f"the demo needs {LEAST_MEMORY_GB:.0f} GB; programs may be killed"),
        "use a larger machine, or compute.processes = 1",
    )


def cores() -> Finding:
    """The number of CPU cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"{count} cores"
    if (count or 1) >= LEAST_CORES:
        return fine("cores", found)
    return missing(
        *("cores", found, "the two ranks of a program share one core: about twice the time"),
        "set compute.processes = 1",
    )


def disk(storage: Path) -> Finding:
    """Free space and write permission of the disk of ``storage``, which need not exist yet."""
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
        *("storage", found, "checkpoints may not fit; no partial result is published"),
        "free some space, or set project.storage to a folder on another disk",
    )


def corpora(folders: Mapping[str, Path]) -> list[Finding]:
    """The declared corpora whose ``path`` does not exist, or one finding that all do."""
    absent = {name: path for name, path in folders.items() if not path.exists()}
    found = [
        missing(
            *(f"corpus {name}", f"no {path}", f"raw_corpus of {name}, and all that needs it"),
            f"correct path under [corpora.{name}], mount the disk, or remove the table",
            needed=True,
        )
        for name, path in absent.items()
    ]
    return found or [fine("corpora", ", ".join(folders) or "none declared")]


def port(number: int, what: str, remedy: str) -> Finding:
    """Whether a server can listen on a port. It may be in use by a running server of this
    project."""
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
    """The GPUs that nvidia-smi lists; :func:`torch` reports those that torch can use."""
    cost = "models of a billion parameters; the demo trains on CPUs"
    if shutil.which("nvidia-smi") is None:
        remedy = "install NVIDIA's driver, or use TTS_PROFILE=slurm where a cluster has them"
        return missing("GPUs", "no nvidia-smi", cost, remedy, needed)
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    done = run("nvidia-smi", *query)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        message = (done.stderr or done.stdout).strip() or "no GPU"
        remedy = "nvidia-smi must list them first: reboot after installing the driver"
        return missing("GPUs", message, cost, remedy, needed)
    return fine("GPUs", "; ".join(lines))


def torch(has_gpus: bool) -> Finding:
    """Import torch in a subprocess, because a build for another CPU may crash."""
    done = run(sys.executable, "-c", TORCH, seconds=IMPORT_SECONDS)
    if done.returncode:
        return missing(
            "torch", last_line(done.stderr), "nothing can be trained", "make install", needed=True
        )
    version, cuda, devices = json.loads(done.stdout)
    if not has_gpus:
        return fine("torch", version)
    if devices:
        return fine("torch", f"{version}, CUDA {cuda}, sees {devices} GPUs")
    if cuda is None:
        return missing(
            *("torch", f"{version}, a build for CPUs", "the GPUs of this machine are not used"),
            "make install CUDA=13.0",
        )
    return missing(
        *("torch", f"{version}, built for CUDA {cuda}, sees no GPU", "the GPUs are not used"),
        "update NVIDIA's driver to one for that CUDA version, and check CUDA_VISIBLE_DEVICES",
    )


def vllm(python: Path | None = None, checked: bool = False) -> Finding:
    """Import vLLM in a subprocess of ``python`` (None: this interpreter).

    ``checked``: serving models are compared with vLLM, so that the profile needs it.
    """
    cost = "the server (tts_assets.serving.server); training does not use it"
    off = ""
    if checked:
        cost = "serving/<recipe>, which serving.check_vllm compares with it, and the server"
        off = ", or check_vllm = false under [serving]"
    interpreter = str(python or sys.executable)
    done = run(interpreter, "-c", VLLM, seconds=IMPORT_SECONDS)
    if not done.returncode:
        return fine("vLLM", done.stdout.split()[-1] + (f", of {python}" if python else ""))
    found = f"{interpreter}: {last_line(done.stderr)}"
    if python:
        remedy = f"install vLLM there, or set [vllm] python to where it is{off}"
    else:
        remedy = f"make install (CUDA=13.0 on a GPU machine){off}"
    return missing("vLLM", found, cost, remedy, needed=checked)


def compiler() -> Finding:
    """The C++ compiler that torch.compile and the kernels of DeepSpeed use."""
    name = os.environ.get("CXX", "g++")
    cost = "compile = true, and the CPU Adam of DeepSpeed; ddp and fsdp do not need it"
    remedy = "apt-get install g++ (or set CXX to a C++ compiler)"
    done = run(name, "--version")
    if done.returncode:
        return missing("C++ compiler", f"no {name}", cost, remedy)
    return fine("C++ compiler", done.stdout.splitlines()[0])


def audio() -> Finding:
    """Decoders of libsndfile and of the FFmpeg inside PyAV (not of the command ffmpeg)."""
    cost = "corpora in these formats cannot be read"
    if find_spec("soundfile") is None or find_spec("av") is None:
        return missing("audio codecs", "no soundfile or PyAV", cost, "make install", needed=True)
    import av
    import soundfile

    lacking = [name for name in WANTED_SNDFILE if name not in soundfile.available_formats()]
    for name in WANTED_FFMPEG:
        try:
            av.codec.Codec(name, "r")
        except ValueError:  # av.codec.codec.UnknownCodecError
            lacking.append(name)
    found = f"libsndfile {soundfile.__libsndfile_version__}, PyAV {av.__version__}"
    if lacking:
        return missing(
            *("audio codecs", f"{found}, without {', '.join(lacking)}", cost),
            "pip install --force-reinstall av soundfile (their wheels bring the codecs)",
        )
    return fine("audio codecs", found)


def wandb(mode: str | None) -> Finding:
    """The API key of W&B. ``mode`` is that of ``[wandb]``, None without this table."""
    if os.environ.get("WANDB_API_KEY") or in_netrc(WANDB_HOST):
        return fine("W&B login", "an API key is stored")
    return missing(
        "W&B login",
        "no API key",
        "[wandb] mode = 'online'; offline, metrics are kept and can be uploaded later",
        "wandb login",
        needed=mode == "online",
    )


def in_netrc(host: str) -> bool:
    """Whether ``~/.netrc`` has credentials of ``host``."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def alerts(variables: tuple[str, ...]) -> list[Finding]:
    """Environment variables with the secrets that ``[alerts]`` needs."""
    return [
        fine(name, "is set")
        if os.environ.get(name)
        else missing(
            name, "is not set", "[alerts] sends nothing by this channel", f"export {name}=…"
        )
        for name in variables
    ]


def slurm(login: tuple[str, ...], needed: bool) -> Finding:
    """The answer of ``sinfo``, run through ``compute.slurm.login``."""
    cost = "TTS_PROFILE=slurm; programs on this machine do not need it"
    if not login and shutil.which("sbatch") is None:
        remedy = "apt-get install slurm-client, or set compute.slurm.login to reach a login node"
        return missing("Slurm", "no sbatch", cost, remedy, needed)
    done = run(*login, "sinfo", "--noheader", "--format=%P %D nodes %a")
    if done.returncode:
        remedy = "ask for the cluster's slurm.conf (SLURM_CONF), or try: sinfo"
        return missing("Slurm", last_line(done.stderr), cost, remedy, needed)
    return fine("Slurm", "; ".join(" ".join(line.split()) for line in done.stdout.splitlines()))


def last_line(text: str) -> str:
    """The last line that is not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no error message"


def run(*command: str, seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a command. The exit status is 124 after a timeout, and 127 if there is no such
    command."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {seconds:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def check_machine(as_json: bool) -> int:
    """Print all findings. The exit status is 1 if a part is missing that the profile needs."""
    found = examine()
    if as_json:
        rows = [{**asdict(finding), "state": finding.state} for finding in found]
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(describe(finding) for finding in found))
        print(f"\n{summary(found)}")
    return int(any(finding.needed for finding in found))


def examine() -> list[Finding]:
    """All findings. The checks are independent and change nothing."""
    project, settings = read_project()
    compute = settings.compute if settings else None
    asked = compute is not None and compute.launcher == "torchrun" and bool(compute.gpus)
    graphics = gpus(needed=asked)
    batch = compute is not None and compute.launcher == "slurm"
    return [
        python(),
        commands(Path(sys.executable).parent),
        project,
        torch(has_gpus=graphics.fine),
        graphics,
        vllm(
            settings.vllm.python if settings else None,
            checked=bool(settings and settings.sft and settings.serving.check_vllm),
        ),
        compiler(),
        audio(),
        memory(),
        cores(),
        disk(settings.storage if settings else Path("storage").resolve()),
        *(corpora(read_corpora(settings)) if settings else ()),
        port(UI_PORT, "the UI", "tts-assets ui --port 3100"),
        port(SERVER_PORT, "the server", "tts-assets serve --port 8001"),
        slurm(compute.slurm.login if compute and batch else (), needed=batch),
        wandb(settings.wandb.mode if settings and settings.wandb else None),
        *alerts(settings.alerts.variables() if settings else ()),
    ]


def read_project() -> tuple[Finding, Settings | None]:
    """The finding of the project file, and its settings if they are valid."""
    try:
        from tts_assets.core.config import ConfigError
        from tts_assets.project_file import project_file
        from tts_assets.settings import load_settings
    except ModuleNotFoundError as error:
        found = f"no module {error.name!r}"
        return missing("project", found, "nothing runs", "make install", needed=True), None
    try:
        settings = load_settings()
    except (ConfigError, OSError) as error:
        return missing(
            *("project", str(error), "Dagster does not load"),
            f"correct {project_file()}, or set TTS_PROJECT or TTS_PROFILE to another one",
            needed=True,
        ), None
    return fine("project", f"{settings.project.name}, {project_file()}"), settings


def read_corpora(settings: Settings) -> dict[str, Path]:
    """The folders of the declared corpora that are read, not made from texts."""
    corpora = settings.all_corpora
    return {
        name: corpora(name).path
        for name, config in corpora.declared.items()
        if config.synthesis is None
    }


def describe(finding: Finding) -> str:
    """One line, and for a missing part two more: its consequence and the remedy."""
    mark = "ok " if finding.fine else ("!! " if finding.needed else "-- ")
    line = f"{mark}{finding.name:13} {finding.found}"
    if finding.fine:
        return line
    more = [f"affects: {finding.cost}", f"remedy:  {finding.remedy}"]
    return "\n".join([line, *(textwrap.indent(text, " " * 17) for text in more)])


def summary(found: list[Finding]) -> str:
    """One line: whether the selected profile runs."""
    needed = [finding.name for finding in found if finding.needed]
    lacking = sum(not finding.fine for finding in found)
    if needed:
        return f"this profile does not run yet: {', '.join(needed)}"
    return f"this profile runs; {lacking} of {len(found)} parts are missing, none is needed"
