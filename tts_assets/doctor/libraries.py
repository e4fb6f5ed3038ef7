"""What is installed: torch's build, vLLM, a compiler, audio codecs, the login of W&B."""

from __future__ import annotations

import json
import netrc
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from tts_assets.doctor.machine import Finding, fine, missing, run

IMPORT_SECONDS = 180.0  # vLLM's first import compiles thousands of modules
WANTED_SNDFILE = ("WAV", "FLAC", "OGG", "MP3")
WANTED_FFMPEG = ("aac", "opus", "g722", "mp3")
WANDB_HOST = "api.wandb.ai"
TORCH = (
    "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, "
    "torch.cuda.device_count() if torch.cuda.is_available() else 0]))"
)
VLLM = "import vllm; print(vllm.__version__)"


def torch(has_gpus: bool) -> Finding:
    """Imported in a process of its own: a build that does not fit the machine may kill it."""
    done = run(sys.executable, "-c", TORCH, seconds=IMPORT_SECONDS)
    if done.returncode:
        told = last_line(done.stderr)
        return missing("torch", told, "nothing can be trained", "make install", needed=True)
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
        "update NVIDIA's driver to one for that CUDA, and look at CUDA_VISIBLE_DEVICES",
    )


def vllm(python: Path | None = None, checked: bool = False) -> Finding:
    """``python`` of ``[vllm]``, None: this one; ``checked``: whether serving models are compared
    with it, so that nothing is served without it."""
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
    """As torch.compile and DeepSpeed's kernels look for one."""
    name = os.environ.get("CXX", "g++")
    cost = "compile = true, and the CPU Adam of DeepSpeed; ddp and fsdp do not need it"
    remedy = "apt-get install g++ (or set CXX to a C++ compiler)"
    done = run(name, "--version")
    if done.returncode:
        return missing("C++ compiler", f"no {name}", cost, remedy)
    return fine("C++ compiler", done.stdout.splitlines()[0])


def audio() -> Finding:
    """Real decoders of libsndfile and of the FFmpeg that PyAV brings, not the ffmpeg command."""
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
    """``mode`` of ``[wandb]``, None where there is no such table."""
    if os.environ.get("WANDB_API_KEY") or in_netrc(WANDB_HOST):
        return fine("W&B login", "a key is there")
    return missing(
        "W&B login",
        "no key",
        "[wandb] mode = 'online'; offline, metrics are kept and can be uploaded later",
        "wandb login",
        needed=mode == "online",
    )


def in_netrc(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def alerts(variables: tuple[str, ...]) -> list[Finding]:
    """Secrets that ``[alerts]`` asks for."""
    return [
        fine(name, "is set")
        if os.environ.get(name)
        else missing(name, "is not set", "[alerts] tells nobody by that way", f"export {name}=…")
        for name in variables
    ]


def slurm(login: tuple[str, ...], needed: bool) -> Finding:
    """The client commands, run through ``compute.slurm.login``, and whether a cluster answers."""
    cost = "TTS_PROFILE=slurm; this machine's own cores and GPUs do not need it"
    if not login and shutil.which("sbatch") is None:
        remedy = "apt-get install slurm-client, or set compute.slurm.login to reach a login node"
        return missing("Slurm", "no sbatch", cost, remedy, needed)
    done = run(*login, "sinfo", "--noheader", "--format=%P %D nodes %a")
    if done.returncode:
        remedy = "ask for the cluster's slurm.conf (SLURM_CONF), or try: sinfo"
        return missing("Slurm", last_line(done.stderr), cost, remedy, needed)
    return fine("Slurm", "; ".join(" ".join(line.split()) for line in done.stdout.splitlines()))


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no word why"
