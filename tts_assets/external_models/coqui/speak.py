"""Say texts with a trained model: ``python -m tts_assets.external_models.coqui.speak job.json``."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Protocol

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from tts_assets.external_models.coqui.fit import main_of
from tts_assets.external_models.coqui.job import STOPPED, Events, Line, SpeakJob, read_speak_job


class CoquiSynthesizer(Protocol):
    """What a family's module gives. ``rate``: of its waveforms, in Hz."""

    rate: int

    def say(self, line: Line) -> tuple[NDArray[np.float32], bool]: ...


def main() -> None:
    job = read_speak_job(main_of("speak"))
    signal.signal(signal.SIGTERM, leave)
    speaker: CoquiSynthesizer | None = None
    events = Events(job.events)
    for number, line in enumerate(job.lines, start=1):
        if not Path(line.file).is_file():
            speaker = speaker or open_speaker(job)
            say(speaker, line)
        events.tell(done=number, total=len(job.lines))


def leave(number: int, frame: FrameType | None) -> None:
    """Every file is whole or not there: nothing is to be saved."""
    sys.exit(STOPPED)


def open_speaker(job: SpeakJob) -> CoquiSynthesizer:
    folder, device = Path(job.model), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if job.family == "vits":
        from tts_assets.external_models.coqui.vits import VitsSynthesizer

        return VitsSynthesizer(folder, device)
    if job.family == "xtts":
        from tts_assets.external_models.coqui.xtts import XttsSynthesizer

        return XttsSynthesizer(folder, device)
    from tts_assets.external_models.coqui.tortoise import TortoiseSynthesizer

    return TortoiseSynthesizer(folder, device)


def say(speaker: CoquiSynthesizer, line: Line) -> None:
    """One file in 32-bit floats, after what is known of it: whoever finds the file finds both."""
    torch.manual_seed(line.seed)
    np.random.seed(line.seed)
    with torch.inference_mode():
        wave, ended = speaker.say(line)
    target = Path(line.file)
    target.parent.mkdir(parents=True, exist_ok=True)
    known = {"samples": len(wave), "ended": ended}
    target.with_suffix(".json").write_text(json.dumps(known))
    aside = target.with_suffix(".tmp")
    soundfile.write(aside, wave, speaker.rate, "FLOAT", format="WAV")
    aside.replace(target)


if __name__ == "__main__":
    main()
