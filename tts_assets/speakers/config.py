"""Configuration of speaker encoders: audio, architecture, training, trials, purity.

The classes whose docstring names a table, for example ``[speakers.train]``, are tables of
``dagster_project.toml``. The classes ``*Program`` are the ``run.json`` of the launched programs.
:class:`AudioSettings` and :class:`CardArchitecture` are parts of the ``config.json`` of an encoder.
This module imports no torch, because Dagster's definitions import it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from tts_assets.core.accounting import HashSplit
from tts_assets.core.artifacts import (
    ArtifactStore,
    SpeakerEncoderCheckpoint,
    SpeakerPurity,
    sha256_file,
)
from tts_assets.core.config import Config, ConfigError, digest_of
from tts_assets.core.hub import HUB_NAME, snapshot
from tts_assets.core.metadata import CheckResult, Metadata, markdown_table
from tts_assets.core.program import ProgramConfig

FILES = (".onnx", ".pt")  # of encoders; others are folders
RESEMBLYZER = "resemblyzer"  # the public weights in the Python package of that name
PUBLISHED = "speaker_encoder"  # the asset: the encoder of [speakers]
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
PURITY_FILE = "purity.parquet"
SEED_OF_TRIALS = 1
OUTLIERS_SHOWN = 20
PAIRS_OF_A_SPEAKER, UTTERANCES_OF_A_SPEAKER = 200, 100  # most of them, in the trials of a report


def resolve(name: str, root: Path) -> Path:
    """The folder or file of an encoder: below ``root``, in the cache of the hub for a name on the
    hub, which is fetched, or in the package resemblyzer.

    Raises :class:`ConfigError` if the hub does not give the model.
    """
    if name != RESEMBLYZER:
        path = root / name
        local = path.exists() or path.suffix in FILES or not HUB_NAME.fullmatch(name)
        return path if local else fetched(name)
    found = importlib.util.find_spec(RESEMBLYZER)
    assert found is not None and found.origin is not None
    return Path(found.origin).with_name("pretrained.pt")


def fetched(name: str) -> Path:
    """The folder of an encoder of the hub. Raises :class:`ConfigError`."""
    folder = snapshot(name, [WEIGHTS_FILE, "*.json"])
    if not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(
            f"{name} has no {WEIGHTS_FILE} on the hub, or offline only a part of it is in the "
            "cache, and a pickle is not opened: save it to a folder as docs/leaderboards.md "
            "shows, and name the folder"
        )
    return folder


def encoder_path(name: str, published: SpeakerEncoderCheckpoint | None, root: Path) -> Path:
    """The path of the encoder that a configuration names: the published one if there is any."""
    return resolve(name, root) if published is None else published.path


def encoder_digest(path: Path) -> str:
    """The digest of an encoder's bytes. Raises :class:`ConfigError` if it is incomplete."""
    check_exists(path)
    files = [path] if path.is_file() else [path / WEIGHTS_FILE, path / CONFIG_FILE]
    return digest_of([sha256_file(file) for file in files])


def check_exists(path: Path) -> None:
    """Raise :class:`ConfigError` unless ``path`` is a file or an encoder folder."""
    complete = all((path / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE))
    if not path.is_file() and not complete:
        raise ConfigError(
            f"{path} is no speaker encoder: give a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, "
            f"a .pt of Resemblyzer or Real-Time-Voice-Cloning, an .onnx of WeSpeaker, or "
            f"{RESEMBLYZER!r}"
        )


class AudioConfig(Config):
    """``[speakers.train.audio]``: the preprocessing that a new encoder is trained with.

    ``vad`` removes silence with WebRTC's detector, or with Silero's, which also removes loud
    non-speech. The loudness of every recording is normalized by its RMS, or with ``unit = "lufs"``
    by EBU R128. Each ``window_frames`` of 10 ms give one embedding, half a window apart; the mean
    of the windows is the embedding of the recording.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {
        "sample_rate": 16_000,
        "loudness": -27.0,
        "only_louder": False,
        "window_ms": 25.0,
        "hop_ms": 10.0,
        "n_fft": 512,
        "mels": 40,
        "low_hz": 0.0,
        "high_hz": 8000.0,
        "log": True,
        "centre": False,
        "short": "repeat",
    }
    replaced_keys: ClassVar[Mapping[str, str]] = {
        "step_frames": "windows are half of window_frames apart; delete it"
    }

    vad: Literal["webrtc", "silero", "none"] = "webrtc"
    unit: Literal["rms", "lufs"] = "rms"
    window_frames: int = Field(160, gt=1)

    def settings(self) -> AudioSettings:
        """The complete settings, as they are stored with the weights."""
        return AudioSettings(**self.model_dump(), step_frames=self.window_frames // 2)

    def in_former_shape(self, values: dict[str, Any]) -> dict[str, Any]:
        """With the steps between windows, which were a key."""
        return values | {"step_frames": self.settings().step_frames}


class AudioSettings(AudioConfig):
    """The complete preprocessing of an encoder, stored with its weights in ``config.json``.

    ``loudness`` is in dBFS (RMS) or LUFS; with ``only_louder`` recordings above it stay as they
    are. ``log`` selects log-mels instead of power mels. ``centre`` subtracts the mean of each band
    over the window, which removes the frequency response of the channel. ``short`` is how the
    window of a shorter recording is filled: the recording again, or zeros.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {}
    replaced_keys: ClassVar[Mapping[str, str]] = {}

    step_frames: int = Field(80, gt=0)
    sample_rate: Literal[16_000] = 16_000
    loudness: float = Field(-27.0, ge=-60, le=-10)
    only_louder: bool = False
    window_ms: float = Field(25.0, gt=0)
    hop_ms: float = Field(10.0, gt=0)
    n_fft: int = Field(512, gt=0)
    mels: int = Field(40, gt=0)
    low_hz: float = Field(0.0, ge=0)
    high_hz: float = Field(8000.0, gt=0, le=8000)
    log: bool = True
    centre: bool = False
    short: Literal["repeat", "zeros"] = "repeat"

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return round(self.hop_ms * self.sample_rate / 1000)

    @property
    def window(self) -> int:
        """Samples of one frame."""
        return round(self.window_ms * self.sample_rate / 1000)

    def in_former_shape(self, values: dict[str, Any]) -> dict[str, Any]:
        """As they are: these settings have all keys."""
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.step_frames > self.window_frames:
            raise ValueError(
                f"step_frames {self.step_frames} would leave gaps between windows of "
                f"{self.window_frames} frames; write step_frames = {self.window_frames // 2}"
            )
        if self.window > self.n_fft:
            raise ValueError(
                f"window_ms {self.window_ms} are {self.window} samples, more than n_fft "
                f"{self.n_fft}; write n_fft = {1 << (self.window - 1).bit_length()}"
            )
        if self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz {self.low_hz} is not below high_hz {self.high_hz}")
        if self.centre and not self.log:
            raise ValueError("centre applies to log-mels only; set log = true with it")
        return self


# The settings of Resemblyzer and Real-Time-Voice-Cloning: power mels, 1.3 windows per second.
PUBLIC_AUDIO = AudioSettings(
    loudness=-30.0, only_louder=True, n_fft=400, log=False, step_frames=77, short="zeros"
)


class EncoderArchitecture(Config):
    """``[speakers.train.architecture]``.

    ``lstm``: ``layers`` of ``hidden`` cells and a linear layer on the last state (Wan et al.,
    2018). ``resnet34``: convolutions of ``channels`` to 8 x ``channels``, then mean and standard
    deviation over time (Chung et al., 2020).
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"relu": False}

    kind: Literal["lstm", "resnet34"] = "lstm"
    hidden: int = Field(256, gt=0)
    layers: int = Field(3, gt=0)
    channels: int = Field(32, gt=0, multiple_of=4)
    embedding: int = Field(256, gt=0)


class CardArchitecture(EncoderArchitecture):
    """The architecture as it is stored with the weights.

    ``relu`` of the public weights makes embeddings non-negative.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {}

    relu: bool = False


PUBLIC_ARCHITECTURE = CardArchitecture(relu=True)


class AdversaryConfig(Config):
    """``[speakers.train.adversary]``: embeddings must not predict ``attribute``.

    ``attribute`` is the language, or the corpus as a proxy of the channel. A classifier behind a
    gradient reversal layer (Ganin and Lempitsky, 2015) is trained on the embeddings.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"what": "attribute"}
    removed_keys: ClassVar[Mapping[str, Any]] = {"hidden": 128}

    attribute: Literal["language", "corpus"]
    weight: float = Field(0.1, gt=0, description="of the reversed gradient")


class EncoderRecipe(Config):
    """``[speakers.train]``: one training run with the GE2E loss.

    ``base`` initializes the weights: a folder of this project, a ``.pt`` of Resemblyzer or
    Real-Time-Voice-Cloning, or "resemblyzer" for that of its package. The base determines
    architecture and audio. A step has ``speakers`` x ``utterances`` crops, of a random number of
    frames within ``crop_frames`` (shortest, longest). ``speeds``: every recording is also played at
    these speeds, and each speed counts as another speaker, as in Kaldi's recipes. ``equalize``:
    each crop gets a smooth random frequency response of at most so many dB.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"similarity_share": 1.0, "clip": 3.0}
    replaced_keys: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("min_frames", "max_frames", "least_frames", "most_frames"),
        "write crop_frames = [140, 180]",
    )

    architecture: EncoderArchitecture = EncoderArchitecture()
    audio: AudioConfig = AudioConfig()
    base: str | None = None
    loss: Literal["softmax", "contrast"] = "softmax"
    speakers: int = Field(64, ge=2)
    utterances: int = Field(10, ge=2)
    crop_frames: tuple[int, int] = (140, 180)
    speeds: tuple[float, ...] = Field((1.0,), min_length=1)
    equalize: float = Field(0.0, ge=0, description="dB; for log-mels")
    steps: int = Field(20_000, gt=0)
    lr: float = Field(1e-3, gt=0)
    final_lr: float = Field(1e-4, gt=0)
    adversary: AdversaryConfig | None = None
    eval_every: int = Field(500, gt=0)
    save_every: int = Field(500, gt=0)
    seed: int = Field(777, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        shortest, longest = self.crop_frames
        if not 0 < shortest <= longest:
            raise ValueError(
                f"crop_frames {list(self.crop_frames)} must be the shortest and the longest crop, "
                "for example [140, 180]"
            )
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr {self.final_lr} is above lr {self.lr}; it decays to it")
        own = (self.architecture, self.audio) != (EncoderArchitecture(), AudioConfig())
        if self.base is not None and own:
            raise ValueError(
                "architecture and audio are those of the base; leave them out, or leave out base"
            )
        if min(self.speeds) < 0.5 or max(self.speeds) > 2 or 1.0 not in self.speeds:
            raise ValueError(
                f"speeds {self.speeds} must have 1.0 and lie between 0.5 and 2; write for example "
                "[0.9, 1.0, 1.1]"
            )
        return self

    def in_former_shape(self, values: dict[str, Any]) -> dict[str, Any]:
        """A key for the shortest and one for the longest crop."""
        shortest, longest = values.pop("crop_frames")
        return values | {"least_frames": shortest, "most_frames": longest}


class SpeakerSelection(Config):
    """The recordings that are used, and the split into training and test speakers.

    Speakers in ``test_speakers`` are used for tests only. If it is empty, they are the part
    ``test_fraction`` of all speakers, drawn by the hash of their names. The name of a speaker is
    ``<corpus>/<speaker>``. ``aliases`` lists names that belong to one person:
    ``aliases = { allison = ["asterisk_en/allison_smith", "asterisk_es/allison"] }``.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"same": "aliases"}
    removed_keys: ClassVar[Mapping[str, Any]] = {"min_utterances": 4}
    replaced_keys: ClassVar[Mapping[str, str]] = {"test": "write test_fraction = 0.1"}

    corpora: tuple[str, ...] = Field(min_length=1)
    test_fraction: float = Field(0.1, ge=0, lt=1)
    test_speakers: tuple[str, ...] = ()
    min_seconds: float = Field(1.0, ge=0)
    aliases: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @property
    def test(self) -> HashSplit:
        """How test speakers are drawn."""
        return HashSplit(fraction=self.test_fraction)

    def in_former_shape(self, values: dict[str, Any]) -> dict[str, Any]:
        """A table for the split."""
        values.pop("test_fraction", None)
        return values | {"test": self.test.canonical()}

    @model_validator(mode="after")
    def _check_aliases(self) -> Self:
        names = [name for group in self.aliases.values() for name in group]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"aliases: {twice} belong to more than one person; name each once")
        return self


class TrialConfig(Config):
    """``[speakers.trials]``: pairs of test recordings, half of them of the same speaker.

    ``baseline`` is an encoder that is evaluated on the same trials for comparison; empty: none.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"beside": "baseline"}
    removed_keys: ClassVar[Mapping[str, Any]] = {
        "p_target": 0.01,
        "seed": SEED_OF_TRIALS,
        "per_speaker": PAIRS_OF_A_SPEAKER,
        "max_utterances": UTTERANCES_OF_A_SPEAKER,
    }

    seed: ClassVar[int] = SEED_OF_TRIALS
    baseline: str = RESEMBLYZER


class PurityConfig(Config):
    """``[speakers.purity]``: whether the utterances of each speaker sound like one person.

    ``encoder`` is "resemblyzer", "speaker_encoder" (the asset), or a folder. An utterance is an
    outlier if its similarity to the speaker's other utterances is below ``min_similarity``, or
    below its similarity to another speaker.
    """

    encoder: str = RESEMBLYZER
    min_similarity: float = Field(0.6, ge=-1, le=1)


class SpeakersConfig(SpeakerSelection):
    """``[speakers]``: give either ``checkpoint`` or ``train``.

    ``checkpoint`` is a folder, a ``.pt``, or "resemblyzer".
    """

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
    def selection(self) -> SpeakerSelection:
        """The part that selects recordings and speakers."""
        fields = SpeakerSelection.model_fields
        return SpeakerSelection(**{name: getattr(self, name) for name in fields})


class CorporaProgram(ProgramConfig):
    """A program that reads recordings of speakers; ``corpora``: folders of indexes by name."""

    selection: SpeakerSelection
    corpora: dict[str, Path]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = sorted(set(self.selection.corpora) - set(self.corpora))
        if missing:
            raise ValueError(f"no index given for corpora {missing}")
        return self


class EncoderProgram(CorporaProgram):
    """``run.json`` of ``tts_assets.speakers.train``."""

    recipe: EncoderRecipe


class ReportProgram(CorporaProgram):
    """``run.json`` of ``tts_assets.speakers.evaluate``: ``encoder`` on the test speakers."""

    trials: TrialConfig
    encoder: str
    root: Path = Field(Path(), description="the folder that trials.baseline is relative to")


class PurityProgram(ProgramConfig):
    """``run.json`` of ``tts_assets.speakers.purity``.

    ``samples`` is a ``kept.jsonl``, ``cache`` the file that keeps embeddings.
    """

    purity: PurityConfig
    encoder: str
    samples: Path
    cache: Path


def outliers(purity: SpeakerPurity) -> pl.DataFrame:
    """The outliers with the lowest similarity, the lowest first."""
    rows = pl.read_parquet(purity.path / PURITY_FILE).filter("outlier").sort("similarity", "id")
    return rows.head(OUTLIERS_SHOWN)


def check_purity(_: ArtifactStore, purity: SpeakerPurity) -> CheckResult:
    """Whether there are outliers, with their ids."""
    found = purity.facts.outliers
    return CheckResult(found == 0, {"outliers": found, "ids": outliers(purity)["id"].to_list()})


def describe_purity(purity: SpeakerPurity) -> Metadata:
    """Metadata: a table of the outliers."""
    columns = ("wav_path", "speaker", "similarity", "nearest", "similarity_nearest")
    return {"outliers_first": markdown_table(outliers(purity).select(columns), longest=1000)}
