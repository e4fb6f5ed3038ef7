"""The program of the coqui-tts environment: it trains a model, or synthesizes texts with one.

python -m tts_assets.external_models.coqui train job.json
python -m tts_assets.external_models.coqui synthesize job.json

How each model is trained, and how a published one synthesizes:

* VITS (https://arxiv.org/abs/2106.06103): one voice, from characters, trained from scratch.
* XTTS (https://arxiv.org/abs/2406.04904): its GPT is fine-tuned on texts and codes of clips.
  ``start`` is the folder of the published model: ``config.json``, ``vocab.json``, ``model.pth``,
  ``dvae.pth`` and ``mel_stats.pth``. Without it all weights are random and tokens are characters,
  which is useful for tests only.
* Tortoise (https://arxiv.org/abs/2305.07243) imitates the voice of clips; coqui cannot train it.
  The published weights, ``.pth`` files below ``start``, are converted to safetensors. Without
  ``start`` they are random, which is useful for tests only.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import nn
from TTS.config.shared_configs import BaseAudioConfig
from TTS.tts.configs.shared_configs import CharactersConfig
from TTS.tts.configs.tortoise_config import TortoiseConfig
from TTS.tts.configs.vits_config import VitsArgs, VitsConfig
from TTS.tts.configs.xtts_config import XttsArgs, XttsAudioConfig, XttsConfig
from TTS.tts.layers.xtts.dvae import DiscreteVAE
from TTS.tts.layers.xtts.tokenizer import VoiceBpeTokenizer
from TTS.tts.layers.xtts.trainer.gpt_trainer import GPTArgs, GPTTrainer, GPTTrainerConfig
from TTS.tts.models.tortoise import Tortoise, load_required_audio
from TTS.tts.models.vits import Vits
from TTS.tts.models.xtts import Xtts

from tts_assets.external_models.coqui import (
    CONFIG_FILE,
    MODEL_FILE,
    PROGRAM,
    STOPPED,
    VOCABULARY_FILE,
    VOICES_FOLDER,
    Events,
    Line,
    SynthesisJob,
    TrainJob,
    read_synthesis_job,
    read_train_job,
)
from tts_assets.external_models.coqui.training import (
    common_settings,
    fit,
    overlay,
    read_samples,
    write_config,
    write_weights,
)

PUNCTUATION = "!\"'(),-.:;?¡¿–—… "
DISCRIMINATOR = "disc."


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
    programs = {"vits": train_vits, "xtts": train_xtts, "tortoise": convert}
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
        "vits": VitsSynthesizer,
        "xtts": XttsSynthesizer,
        "tortoise": TortoiseSynthesizer,
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


def train_vits(job: TrainJob) -> None:
    """Train, and write ``config.json`` and ``model.safetensors`` (without the discriminator)."""
    if job.start is not None:
        Events(job.events).refuse("vits is trained from scratch: leave `model` out")
    torch.manual_seed(job.seed)  # for the initial weights
    config = vits_config(job)
    weights = fit(job, config, Vits(config))
    config.model_args.init_discriminator = False
    generator = {k: v for k, v in weights.items() if not k.startswith(DISCRIMINATOR)}
    write_config(job, config)
    write_weights(Path(job.result) / MODEL_FILE, generator)


def vits_config(job: TrainJob) -> VitsConfig:
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


NEEDED = (CONFIG_FILE, VOCABULARY_FILE, "model.pth", "dvae.pth", "mel_stats.pth")
DVAE = {  # the DVAE of the published models, as coqui's trainer builds it
    **{"channels": 80, "normalization": None, "positional_dims": 1, "codebook_dim": 512},
    **{"hidden_dim": 512, "num_resnet_blocks": 3, "kernel_size": 3, "num_layers": 2},
    "use_transposed_convs": False,
}
OPTIMIZER = {"betas": [0.9, 0.96], "eps": 1e-8, "weight_decay": 1e-2}
MODEL = "xtts."


def train_xtts(job: TrainJob) -> None:
    """Fine-tune, and write ``config.json``, ``vocab.json`` and ``model.safetensors``."""
    torch.manual_seed(job.seed)
    start = Path(job.work) / "start"
    if not (start / "ready").is_file():
        prepare(job, start)
    config = xtts_config(job, start)
    weights = fit(job, config, GPTTrainer(config))
    own = {k.removeprefix(MODEL): v for k, v in weights.items() if k.startswith(MODEL)}
    known = {field.name for field in fields(XttsArgs)}
    arguments = {k: v for k, v in config.model_args.to_dict().items() if k in known}
    published = XttsConfig(
        model_args=XttsArgs(**{**arguments, "tokenizer_file": ""}), audio=config.audio
    )
    write_config(job, published)
    shutil.copyfile(start / VOCABULARY_FILE, Path(job.result) / VOCABULARY_FILE)
    write_weights(Path(job.result) / MODEL_FILE, own)


def prepare(job: TrainJob, start: Path) -> None:
    """Copy coqui's files to ``start``, because the trainer rewrites old files in place."""
    start.mkdir(parents=True, exist_ok=True)
    if job.start is None:
        random_start(job, start)
    else:
        missing = [name for name in NEEDED if not (Path(job.start) / name).is_file()]
        if missing:
            Events(job.events).refuse(
                f"{job.start} lacks {missing}: it must hold XTTS v2 as published, with dvae.pth "
                "and mel_stats.pth, which are needed to train"
            )
        for name in NEEDED:
            shutil.copyfile(Path(job.start) / name, start / name)
    (start / "ready").touch()


def random_start(job: TrainJob, start: Path) -> None:
    """Write a random DVAE, and a vocabulary with a token for each character."""
    arguments = GPTArgs(**job.config.get("model_args", {}))
    dvae = DiscreteVAE(num_tokens=arguments.gpt_num_audio_tokens - 2, **DVAE)
    torch.save(dvae.state_dict(), start / "dvae.pth")
    torch.save(torch.ones(80), start / "mel_stats.pth")
    samples = read_samples(job, "train")
    letters = sorted(set("".join(sample["text"].lower() for sample in samples)) - {" "})
    languages = sorted({f"[{sample['language']}]" for sample in samples})
    special = ["[STOP]", "[UNK]", "[SPACE]", "[START]", *languages]
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(start / VOCABULARY_FILE))


def xtts_config(job: TrainJob, start: Path) -> GPTTrainerConfig:
    """The trainer's configuration with the sizes of the published model."""
    arguments: dict[str, Any] = {
        "tokenizer_file": str(start / VOCABULARY_FILE),
        "mel_norm_file": str(start / "mel_stats.pth"),
        "dvae_checkpoint": str(start / "dvae.pth"),
        "gpt_use_perceiver_resampler": True,
        "gpt_use_masking_gt_prompt_approach": True,
    }
    if job.start is not None:
        sizes = json.loads((start / CONFIG_FILE).read_text())["model_args"]
        known = {field.name for field in fields(GPTArgs)}
        own = {k: v for k, v in sizes.items() if k in known and v is not None}
        arguments = {**own, **arguments, "xtts_checkpoint": str(start / "model.pth")}
    config = GPTTrainerConfig(
        model_args=GPTArgs(**arguments),
        audio=XttsAudioConfig(
            sample_rate=job.sample_rate, dvae_sample_rate=22050, output_sample_rate=24000
        ),
        lr=job.learning_rate,
        optimizer="AdamW",
        optimizer_params=OPTIMIZER,
        optimizer_wd_only_on_weights=True,
        num_loader_workers=0,
        num_eval_loader_workers=0,
    )
    common_settings(config, job)
    return config


class XttsSynthesizer:
    """A published model for synthesis."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        config = XttsConfig()
        config.load_json(str(folder / CONFIG_FILE))
        self.model = Xtts(config)
        self.model.tokenizer = VoiceBpeTokenizer(str(folder / VOCABULARY_FILE))
        self.model.init_models()
        self.model.load_state_dict(load_file(folder / MODEL_FILE))
        self.model.to(device).eval()
        self.rate = int(config.audio.output_sample_rate)
        self.own = [str(path) for path in sorted((folder / VOICES_FOLDER).glob("*.wav"))]

    def synthesize(self, line: Line) -> tuple[NDArray[np.float32], bool]:
        """A mono waveform (samples,), and whether the model ended it before its limit."""
        made = self.model.synthesize(
            line.text, speaker_wav=line.voice or self.own, language=line.language
        )
        longest = self.model.args.gpt_max_audio_tokens
        wave = np.asarray(made["wav"], dtype=np.float32).reshape(-1)
        return wave, made["gpt_latents"].shape[1] < longest - 1


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


if __name__ == "__main__":
    main()
