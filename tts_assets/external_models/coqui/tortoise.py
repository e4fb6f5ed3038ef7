"""Tortoise (https://arxiv.org/abs/2305.07243) imitates the voice of clips; coqui cannot train it.

The published weights, ``.pth`` files below ``start``, are converted to safetensors. Without
``start`` they are random, which is useful for tests only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from TTS.tts.configs.tortoise_config import TortoiseConfig
from TTS.tts.models.tortoise import Tortoise, load_required_audio

from tts_assets.external_models.coqui.job import CONFIG_FILE, VOICES_FOLDER, Events, Line, TrainJob
from tts_assets.external_models.coqui.training import overlay, write_config, write_weights

PARTS = {
    "autoregressive": "autoregressive.pth",
    "diffusion": "diffusion_decoder.pth",
    "clvp": "clvp2.pth",
    "vocoder": "vocoder.pth",
}
MEL_NORMS = "mel_norms"


def convert(job: TrainJob) -> None:
    """Write ``config.json`` and a safetensors file for each part of the model."""
    torch.manual_seed(job.seed)
    events = Events(job.events)
    config = TortoiseConfig()
    overlay(config, job.config, events)
    model = Tortoise(config)
    norms = torch.ones(80)
    if job.start is not None:
        missing = [
            name
            for name in (*PARTS.values(), f"{MEL_NORMS}.pth")
            if not next(Path(job.start).rglob(name), None)
        ]
        if missing:
            events.refuse(f"{job.start} lacks {missing}: it must hold Tortoise v2 as published")
        model.load_checkpoint(config, job.start)
        norms = torch.load(model.mel_norm_path, map_location="cpu", weights_only=True)
    write_config(job, config)
    for name in PARTS:
        write_weights(part_file(Path(job.result), name), part(model, name).state_dict())
    write_weights(part_file(Path(job.result), MEL_NORMS), {MEL_NORMS: norms})
    events.write(done=1, total=1)


def part(model: Tortoise, name: str) -> nn.Module:
    """A part of the model by its name in :data:`PARTS`."""
    found: nn.Module = getattr(model, name)
    return found


def part_file(folder: Path, name: str) -> Path:
    """The file of a part."""
    return folder / f"{name}.safetensors"


class TortoiseSynthesizer:
    """A published model for synthesis."""

    rate = 24000

    def __init__(self, folder: Path, device: torch.device) -> None:
        config = TortoiseConfig()
        config.load_json(str(folder / CONFIG_FILE))
        self.model = Tortoise(config)
        for name in PARTS:
            part(self.model, name).load_state_dict(load_file(part_file(folder, name)))
        self.model.autoregressive.post_init_gpt2_config(self.model.args.kv_cache)
        self.model.to(device).eval()
        self.half = device.type == "cuda"
        self.own = [str(path) for path in sorted((folder / VOICES_FOLDER).glob("*.wav"))]
        # Coqui reads the norms from a torch file at every synthesis.
        self._norms = tempfile.NamedTemporaryFile(suffix=".pth")  # noqa: SIM115
        torch.save(load_file(part_file(folder, MEL_NORMS))[MEL_NORMS], self._norms.name)
        self.model.mel_norm_path = self._norms.name

    def synthesize(self, line: Line) -> tuple[NDArray[np.float32], bool]:
        """A mono waveform (samples,); always True, as Tortoise does not tell whether it was cut."""
        clips = [load_required_audio(path) for path in line.voice or self.own]
        latents = self.model.get_conditioning_latents(clips)
        made = self.model.inference_with_config(
            line.text,
            conditioning_latents=latents,
            use_deterministic_seed=line.seed,
            half=self.half,
            verbose=False,
            num_autoregressive_samples=self.model.config.num_autoregressive_samples,
            diffusion_iterations=self.model.config.diffusion_iterations,
        )
        return np.asarray(made["wav"], dtype=np.float32).reshape(-1), True
