"""Configurations of the speaker encoder: what it hears, its size, its training, its trials.

Where an encoder lies, and what it is: without torch, so that definitions load fast.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from tts_assets.core.artifacts import sha256_file
from tts_assets.core.config import Config, ConfigError, digest_of
from tts_assets.core.program import ProgramConfig
from tts_assets.core.split import ValidationSplit

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def resolve(name: str, root: Path) -> Path:
    """The folder or file that ``name`` means: below ``root``, or in the package resemblyzer."""
    if name != RESEMBLYZER:
        return root / name
    found = importlib.util.find_spec(RESEMBLYZER)
    assert found is not None and found.origin is not None
    return Path(found.origin).with_name("pretrained.pt")


def encoder_digest(path: Path) -> str:
    """What an encoder is, wherever it lies: the digest of its bytes."""
    files = [path] if path.is_file() else [path / WEIGHTS_FILE, path / CONFIG_FILE]
    check_exists(path)
    return digest_of([sha256_file(file) for file in files])


def check_exists(path: Path) -> None:
    complete = all((path / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE))
    if not path.is_file() and not complete:
        raise ConfigError(
            f"{path} is no speaker encoder: give a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, "
            f"a .pt of Resemblyzer or Real-Time-Voice-Cloning, or {RESEMBLYZER!r}"
        )


RESEMBLYZER = "resemblyzer"  # names the public weights that lie in the package of that name
PUBLISHED = "speaker_encoder"  # names the asset: the encoder of [speakers]
PURITY_FILE = "purity.parquet"


class AudioSettings(Config):
    """What an encoder hears of a recording. It is stored with the weights: an embedding means
    nothing without it.

    ``loudness`` is that of every recording: its RMS in dBFS, or with ``unit = "lufs"`` that of EBU
    R128; ``only_louder`` leaves loud recordings as they are. ``vad`` shortens silences by WebRTC's
    detector, or silero's, which also takes out what is loud but no speech. ``log``: log-mels
    instead of power. Each ``window_frames`` of 10 ms give an embedding, ``step_frames`` apart, and
    their mean is that of the recording; ``short`` says what fills the window of a shorter one.
    """

    sample_rate: Literal[16_000] = 16_000
    vad: Literal["webrtc", "silero", "none"] = "webrtc"
    loudness: float = Field(-27.0, ge=-60, le=-10)
    unit: Literal["rms", "lufs"] = "rms"
    only_louder: bool = False
    window_ms: float = Field(25.0, gt=0)
    hop_ms: float = Field(10.0, gt=0)
    n_fft: int = Field(512, gt=0)
    mels: int = Field(40, gt=0)
    low_hz: float = Field(0.0, ge=0)
    high_hz: float = Field(8000.0, gt=0, le=8000)
    log: bool = True
    centre: bool = Field(
        False, description="subtract each band's mean over the window: the channel's colour"
    )
    window_frames: int = Field(160, gt=0)
    step_frames: int = Field(80, gt=0)
    short: Literal["repeat", "zeros"] = "repeat"

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return round(self.hop_ms * self.sample_rate / 1000)

    @property
    def window(self) -> int:
        """Samples of one frame."""
        return round(self.window_ms * self.sample_rate / 1000)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.window > self.n_fft:
            raise ValueError(
                f"window_ms {self.window_ms} are {self.window} samples, more than n_fft "
                f"{self.n_fft}; write n_fft = {1 << (self.window - 1).bit_length()}"
            )
        if self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz {self.low_hz} is not below high_hz {self.high_hz}")
        if self.step_frames > self.window_frames:
            raise ValueError(
                f"step_frames {self.step_frames} would leave gaps between windows of "
                f"{self.window_frames} frames; write step_frames = {self.window_frames // 2}"
            )
        if self.centre and not self.log:
            raise ValueError("centre takes a channel out of log-mels; set log = true with it")
        return self


# Resemblyzer's and Real-Time-Voice-Cloning's: power mels, 1.3 windows a second.
PUBLIC_AUDIO = AudioSettings(
    loudness=-30.0, only_louder=True, n_fft=400, log=False, step_frames=77, short="zeros"
)


class EncoderArchitecture(Config):
    """``lstm``: ``layers`` of ``hidden`` cells, the last state through a linear layer (Wan et al.,
    2018). ``resnet34``: convolutions of ``channels`` to 8 x ``channels``, mean and deviation over
    time (Chung et al., 2020). ``relu`` as in the public weights: embeddings without negative
    numbers."""

    kind: Literal["lstm", "resnet34"] = "lstm"
    hidden: int = Field(256, gt=0)
    layers: int = Field(3, gt=0)
    channels: int = Field(32, gt=0, multiple_of=4)
    embedding: int = Field(256, gt=0)
    relu: bool = False


PUBLIC_ARCHITECTURE = EncoderArchitecture(relu=True)


class AdversaryConfig(Config):
    """``[speakers.train.adversary]``: embeddings must not tell ``what`` was spoken, or over which
    channel (a corpus counts as one): a classifier behind a gradient reversal (Ganin, 2015)."""

    what: Literal["language", "corpus"]
    weight: float = Field(0.1, gt=0)
    hidden: int = Field(128, gt=0)


class EncoderRecipe(Config):
    """``[speakers.train]``: one training run.

    ``base``: a folder of this project, a ``.pt`` of Resemblyzer or Real-Time-Voice-Cloning, or
    "resemblyzer" for the one in its package; ``architecture`` and ``audio`` are then the base's.
    A step has ``speakers`` x ``utterances`` crops of ``least_frames`` to ``most_frames``.
    ``speeds``: every recording also at these, each a voice of its own, as Kaldi's recipes do.
    ``equalize``: each crop through a channel of its own, a smooth random gain of this many dB.
    ``similarity_share``: of the learning rate, for the scale and offset of the loss.
    """

    architecture: EncoderArchitecture = EncoderArchitecture()
    audio: AudioSettings = AudioSettings()
    base: str | None = None
    loss: Literal["softmax", "contrast"] = "softmax"
    speakers: int = Field(64, ge=2)
    utterances: int = Field(10, ge=2)
    least_frames: int = Field(140, gt=0)
    most_frames: int = Field(180, gt=0)
    speeds: tuple[float, ...] = Field((1.0,), min_length=1)
    equalize: float = Field(0.0, ge=0, description="dB; for log-mels")
    steps: int = Field(20_000, gt=0)
    lr: float = Field(1e-3, gt=0)
    final_lr: float = Field(1e-4, gt=0)
    similarity_share: float = Field(1.0, gt=0)
    clip: float = Field(3.0, gt=0, description="norm of the gradients")
    adversary: AdversaryConfig | None = None
    eval_every: int = Field(500, gt=0)
    save_every: int = Field(500, gt=0)
    seed: int = Field(777, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.least_frames > self.most_frames:
            raise ValueError(
                f"least_frames {self.least_frames} is above most_frames {self.most_frames}"
            )
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr {self.final_lr} is above lr {self.lr}; it decays to it")
        own = (self.architecture, self.audio) != (EncoderArchitecture(), AudioSettings())
        if self.base is not None and own:
            raise ValueError(
                "architecture and audio are those of the base; leave them out, or leave out base"
            )
        if min(self.speeds) < 0.5 or max(self.speeds) > 2 or 1.0 not in self.speeds:
            raise ValueError(
                f"speeds {self.speeds} must have 1.0 and lie between 0.5 and 2; write for example "
                "[0.9, 1.0, 1.1]"
            )
        if self.equalize and self.base is None and not self.audio.log:
            raise ValueError("equalize adds to log-mels; set audio.log = true, or equalize = 0")
        return self


class PeopleConfig(Config):
    """Whose recordings are used. Speakers are tested with, never trained on, if they are named by
    ``test_speakers``; where that is empty, ``test`` draws them by the hash of their names.

    A speaker is ``<corpus>/<speaker>``. ``same`` names those who are one person:
    ``same = { allison = ["asterisk_en/allison_smith", "asterisk_es/allison"] }``.
    """

    corpora: tuple[str, ...] = Field(min_length=1)
    test: ValidationSplit = ValidationSplit(fraction=0.1)
    test_speakers: tuple[str, ...] = ()
    min_utterances: int = Field(4, ge=2)
    min_seconds: float = Field(1.0, ge=0)
    same: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_person_each(self) -> Self:
        names = [name for group in self.same.values() for name in group]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"same: {twice} belong to more than one person; name each once")
        return self


class TrialConfig(Config):
    """``[speakers.trials]``: pairs of test recordings, as many of one speaker as of two.

    ``p_target`` is the prior of the minimal detection cost. ``beside`` names the encoder on whose
    scores ours are seen; empty: none.
    """

    per_speaker: int = Field(200, ge=1, description="pairs of one speaker")
    max_utterances: int = Field(100, ge=2, description="of a speaker")
    p_target: float = Field(0.01, gt=0, lt=1)
    beside: str = RESEMBLYZER
    seed: int = Field(1, ge=0)


class PurityConfig(Config):
    """``[speakers.purity]``: does each speaker of a corpus sound like one? ``encoder`` is
    "resemblyzer", "speaker_encoder" (the trained one), or a folder. An utterance is an outlier
    below ``min_similarity`` to its speaker's other utterances, or if nearer to another speaker."""

    encoder: str = RESEMBLYZER
    min_similarity: float = Field(0.6, ge=-1, le=1)


class SpeakersConfig(PeopleConfig):
    """``[speakers]``: give ``checkpoint`` (a folder, a ``.pt``, or "resemblyzer") or ``train``."""

    checkpoint: str | None = None
    train: EncoderRecipe | None = None
    trials: TrialConfig = TrialConfig()
    purity: PurityConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.checkpoint is None) == (self.train is None):
            raise ValueError(
                "give exactly one of checkpoint and train; "
                'the public weights are checkpoint = "resemblyzer"'
            )
        return self

    @property
    def people(self) -> PeopleConfig:
        return PeopleConfig(**{name: getattr(self, name) for name in PeopleConfig.model_fields})


class CorporaProgram(ProgramConfig):
    """A program that reads people's recordings: folders of indexes by the corpus' name."""

    people: PeopleConfig
    corpora: dict[str, Path]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = sorted(set(self.people.corpora) - set(self.corpora))
        if missing:
            raise ValueError(f"no index given for corpora {missing}")
        return self


class EncoderProgram(CorporaProgram):
    """``tts_assets.speakers.train``: one recipe on the training speakers of the corpora."""

    recipe: EncoderRecipe


class ReportProgram(CorporaProgram):
    """``tts_assets.speakers.evaluate``: ``encoder`` on the test speakers of the corpora."""

    trials: TrialConfig
    encoder: str
    root: Path = Field(Path(), description="that trials.beside is relative to")


class PurityProgram(ProgramConfig):
    """``tts_assets.speakers.purity``: ``samples`` is a ``kept.jsonl``, ``cache`` of embeddings."""

    purity: PurityConfig
    encoder: str
    samples: Path
    cache: Path
