"""VITS (https://arxiv.org/abs/2106.06103): one voice, from characters, trained from scratch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from TTS.config.shared_configs import BaseAudioConfig
from TTS.tts.configs.shared_configs import CharactersConfig
from TTS.tts.configs.vits_config import VitsArgs, VitsConfig
from TTS.tts.models.vits import Vits

from tts_assets.external_models.coqui.job import CONFIG_FILE, MODEL_FILE, Events, Line, TrainJob
from tts_assets.external_models.coqui.training import (
    common_settings,
    fit,
    read_samples,
    write_config,
    write_weights,
)

PUNCTUATION = "!\"'(),-.:;?¡¿–—… "
DISCRIMINATOR = "disc."


def train_vits(job: TrainJob) -> None:
    """Train, and write ``config.json`` and ``model.safetensors`` (without the discriminator)."""
    if job.start is not None:
        Events(job.events).refuse("vits is trained from scratch: leave `model` out")
    torch.manual_seed(job.seed)  # for the initial weights
    config = new_config(job)
    weights = fit(job, config, Vits(config))
    config.model_args.init_discriminator = False
    generator = {k: v for k, v in weights.items() if not k.startswith(DISCRIMINATOR)}
    write_config(job, config)
    write_weights(Path(job.result) / MODEL_FILE, generator)


def new_config(job: TrainJob) -> VitsConfig:
    """Coqui's default configuration with the characters of the training texts."""
    texts = "".join(sample["text"] for sample in read_samples(job, "train")).lower()
    letters = "".join(sorted(set(texts) - set(PUNCTUATION)))
    config = VitsConfig(
        model_args=VitsArgs(),
        audio=BaseAudioConfig(sample_rate=job.sample_rate),
        characters=CharactersConfig(
            characters_class="TTS.tts.models.vits.VitsCharacters",
            pad="_",
            characters=letters,
            punctuations=PUNCTUATION,
            phonemes="",
        ),
        use_phonemes=False,
        text_cleaner="basic_cleaners",
        add_blank=True,
        lr_gen=job.learning_rate,
        lr_disc=job.learning_rate,
        num_loader_workers=0,
        num_eval_loader_workers=0,
        batch_group_size=5,
        cudnn_benchmark=False,
    )
    common_settings(config, job)
    return config


class VitsSynthesizer:
    """A published model for synthesis."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        config = VitsConfig()
        config.load_json(str(folder / CONFIG_FILE))
        self.model = Vits(config)
        self.model.load_state_dict(load_file(folder / MODEL_FILE))
        self.model.to(device).eval()
        self.rate = int(config.audio.sample_rate)

    def synthesize(self, line: Line) -> tuple[NDArray[np.float32], bool]:
        """A mono waveform (samples,); always True, as VITS has no limit."""
        made = self.model.synthesize(line.text)["wav"]
        return np.asarray(made, dtype=np.float32).reshape(-1), True
