"""The program of the coqui-tts environment: it trains a model, or synthesizes texts with one.

python -m tts_assets.external_models.coqui train job.json
python -m tts_assets.external_models.coqui synthesize job.json
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Protocol

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray

from tts_assets.external_models.coqui import models
from tts_assets.external_models.coqui.job import (
    PROGRAM,
    STOPPED,
    Events,
    Line,
    SynthesisJob,
    read_synthesis_job,
    read_train_job,
)


class CoquiSynthesizer(Protocol):
    """The interface of a model's module. ``rate``: of its waveforms in Hz."""

    rate: int

    def synthesize(self, line: Line) -> tuple[NDArray[np.float32], bool]:
        """A mono waveform (samples,), and whether the model ended it before its limit."""
        ...


def main() -> None:
    """Run the command with its job."""
    commands = {"train": train, "synthesize": synthesize}
    if len(sys.argv) != 3 or sys.argv[1] not in commands:
        sys.exit(f"usage: python -m {PROGRAM} {{{'|'.join(commands)}}} job.json")
    torchaudio.load = load_wav
    commands[sys.argv[1]](sys.argv[2])


def load_wav(path: str) -> tuple[torch.Tensor, int]:
    """A WAV file: waves (channels, samples), and the rate in Hz.

    It replaces ``torchaudio.load``, which decodes with torchcodec since torchaudio 2.9: PyPI has
    that for CUDA only, and it needs FFmpeg. All clips of jobs are WAV files.
    """
    waves, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(waves.T.copy()), rate


def train(path: str) -> None:
    """Train the model of the job with coqui's trainer, or convert one that it cannot train."""
    job = read_train_job(path)
    programs = {"vits": models.train_vits, "xtts": models.train_xtts, "tortoise": models.convert}
    if job.family not in programs:
        Events(job.events).refuse(f"no family {job.family!r}")
    programs[job.family](job)


def synthesize(path: str) -> None:
    """Synthesize all lines whose file does not exist; the model is loaded for the first one."""
    job = read_synthesis_job(path)
    signal.signal(signal.SIGTERM, leave)
    model: CoquiSynthesizer | None = None
    events = Events(job.events)
    for number, line in enumerate(job.lines, start=1):
        if not Path(line.file).is_file():
            model = model or open_model(job)
            write_line(model, line)
        events.write(done=number, total=len(job.lines))


def leave(number: int, frame: FrameType | None) -> None:
    """Exit at once: every file is complete or does not exist."""
    sys.exit(STOPPED)


def open_model(job: SynthesisJob) -> CoquiSynthesizer:
    """The model of the job, on a GPU if there is one."""
    folder, device = Path(job.model), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    synthesizers: dict[str, Callable[[Path, torch.device], CoquiSynthesizer]] = {
        "vits": models.VitsSynthesizer,
        "xtts": models.XttsSynthesizer,
        "tortoise": models.TortoiseSynthesizer,
    }
    return synthesizers[job.family](folder, device)


def write_line(model: CoquiSynthesizer, line: Line) -> None:
    """Synthesize one line as 32-bit float WAV.

    The ``.json`` beside it is written first: whenever the WAV file exists, both do.
    """
    torch.manual_seed(line.seed)
    np.random.seed(line.seed)
    with torch.inference_mode():
        wave, ended = model.synthesize(line)
    target = Path(line.file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps({"samples": len(wave), "ended": ended}))
    temporary = target.with_suffix(".tmp")
    soundfile.write(temporary, wave, model.rate, "FLOAT", format="WAV")
    temporary.replace(target)


if __name__ == "__main__":
    main()
