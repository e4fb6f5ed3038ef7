"""Preprocessing of a speaker encoder: 16 kHz, loudness normalization, VAD, mels every 10 ms.

With :data:`~tts_assets.speakers.config.PUBLIC_AUDIO` it equals Resemblyzer's up to rounding.

For a training, :func:`prepare` computes the mels of all recordings once per run. A file has the
mels of a block of recordings; each rank writes its blocks atomically, and a restart makes the
missing ones. Training maps the files into memory instead of reading them whole.

:class:`Batches` draws N speakers x M recordings per step from (seed, step) only. Every pass goes
through all voices in a new order, N at a time, independent of their numbers of recordings. Each
voice uses all of its recordings before any is repeated.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import webrtcvad
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from tts_assets.core.accounting import SetAside
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.audio import BrokenAudio, Wave, read_clip, resample
from tts_assets.core.config import ConfigError, digest_of
from tts_assets.core.program import Run
from tts_assets.corpora.segments.speech import measure
from tts_assets.speakers.config import PUBLIC_AUDIO, AudioSettings, EncoderRecipe
from tts_assets.speakers.dataset import SpeakerRecording

INT16 = 2**15 - 1
VAD_MS = 30  # audio of one decision
VAD_MODE = 3  # the most aggressive of 0 to 3
VAD_AVERAGE = 8  # decisions in the moving average
VAD_SILENCE = 6  # decisions of silence that are kept
SILERO_THRESHOLD = 0.5  # probability of speech, silero's own default
SILERO_PAUSE = 0.2  # s; shorter pauses are kept
SILERO_MARGIN = 0.1  # s kept around speech
COVERED = 0.75  # fraction of the last window that audio must cover
LOG_FLOOR = 1e-6  # of the power; digital silence is -13.8
BLOCK = 256  # recordings in one file
OPEN = 512  # files that are mapped at the same time
SHORTEST_FRAMES = 30  # 0.3 s of speech
EQUALIZER_POINTS = 5  # random gains; the curve is linear between them, over the mel bands


Recording = str | Path | Wave
"""A path, or a mono wave (samples,) at 16 kHz."""


def preprocess_wav(path: Recording, settings: AudioSettings = PUBLIC_AUDIO) -> Wave:
    """The speech of a recording, float32 (samples,) at 16 kHz; empty if there is none.

    ``path`` may also be a wave. Raises :class:`~tts_assets.core.audio.BrokenAudio`, and ValueError
    for an array that is no mono wave.
    """
    if isinstance(path, np.ndarray):
        if path.ndim != 1:
            raise ValueError(f"expected a mono wave at 16 kHz, got an array of shape {path.shape}")
        return preprocess(path.astype(np.float32), settings.sample_rate, settings)
    clip = read_clip(Path(path))
    return preprocess(clip.wave, clip.rate, settings)


def preprocess(wave: Wave, rate: int, settings: AudioSettings) -> Wave:
    """The speech of a mono wave at ``rate`` Hz, float32 (samples,) at 16 kHz; may be empty."""
    if rate != settings.sample_rate and len(wave):
        wave = resample(wave, rate, settings.sample_rate)
    if not np.any(wave):
        return np.zeros(0, dtype=np.float32)
    wave = normalize_loudness(wave, settings)
    if settings.vad == "none":
        return wave
    shorten = shorten_silences if settings.vad == "webrtc" else only_speech
    return shorten(wave, settings.sample_rate)


def normalize_loudness(wave: Wave, settings: AudioSettings) -> Wave:
    """The wave (not all zeros), amplified to ``settings.loudness``."""
    gain = 10 ** ((settings.loudness - loudness_of(wave, settings)) / 20)
    if settings.only_louder and gain < 1:
        return wave
    return (wave * gain).astype(np.float32)


def loudness_of(wave: Wave, settings: AudioSettings) -> float:
    """The loudness in the unit of the settings; RMS if EBU R128 has none (below 0.4 s)."""
    if settings.unit == "lufs":
        measured = measure(wave, settings.sample_rate)
        if measured is not None:
            return measured.integrated
    return 10 * math.log10(float(np.mean(np.square(wave, dtype=np.float64))))


def only_speech(wave: Wave, rate: int) -> Wave:
    """The parts of the wave that Silero VAD detects as speech, and 0.1 s around them."""
    from tts_assets.corpora.segments.speech import find_speech  # the import takes a second

    kept = np.zeros(len(wave), dtype=np.bool_)
    for part in find_speech(wave, SILERO_THRESHOLD, SILERO_PAUSE):
        first = max(0.0, part.start - SILERO_MARGIN)
        kept[round(first * rate) : round((part.end + SILERO_MARGIN) * rate)] = True
    return wave[kept]


def shorten_silences(wave: Wave, rate: int) -> Wave:
    """The wave without parts farther than about 0.1 s from speech, by WebRTC's VAD."""
    size = VAD_MS * rate // 1000
    wave = wave[: len(wave) // size * size]
    if not len(wave):
        return wave
    pcm = np.round(np.clip(wave, -1, 1) * INT16).astype(np.int16).reshape(-1, size)
    vad = webrtcvad.Vad(VAD_MODE)
    speech = np.array([vad.is_speech(part.tobytes(), rate) for part in pcm], dtype=np.float64)
    averaged = np.convolve(speech, np.full(VAD_AVERAGE, 1 / VAD_AVERAGE))
    start = VAD_AVERAGE // 2
    kept = np.round(averaged[start : start + len(pcm)])
    near = np.convolve(kept, np.ones(VAD_SILENCE + 1))[VAD_SILENCE // 2 :][: len(pcm)] > 0.5
    return wave[np.repeat(near, size)]


class Mels(nn.Module):
    """A mel spectrogram as librosa computes it, centred and zero-padded."""

    bank: Tensor
    taper: Tensor

    def __init__(self, settings: AudioSettings) -> None:
        super().__init__()
        self.settings = settings
        bank = mel_filter_bank(
            num_frequency_bins=settings.n_fft // 2 + 1,
            num_mel_filters=settings.mels,
            min_frequency=settings.low_hz,
            max_frequency=settings.high_hz,
            sampling_rate=settings.sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("bank", torch.tensor(bank, dtype=torch.float32), persistent=False)
        self.register_buffer("taper", torch.hann_window(settings.window), persistent=False)

    @torch.no_grad()
    def forward(self, waves: Tensor) -> Tensor:
        """Waves (batch, samples) to mels or log-mels (batch, frames, bands)."""
        settings = self.settings
        spectrum = torch.stft(
            waves,
            settings.n_fft,
            settings.hop,
            settings.window,
            self.taper,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.abs().square().transpose(1, 2)
        mels = power @ self.bank
        return mels.clamp_min(LOG_FLOOR).log() if settings.log else mels


def windows(wave: Wave, mels: Mels) -> Tensor:
    """The model's input for a preprocessed wave that is not empty: (n, window_frames, bands).

    Audio must cover three quarters of the last window, unless it is the only one.
    """
    settings = mels.settings
    size, step, hop = settings.window_frames, settings.step_frames, settings.hop
    frames = -(-(len(wave) + 1) // hop)
    starts = list(range(0, max(1, frames - size + step + 1), step))
    if len(starts) > 1 and len(wave) / hop - starts[-1] < COVERED * size:
        starts.pop()
    needed = starts[-1] + size
    if settings.short == "zeros":
        wave = np.pad(wave, (0, max(0, needed * hop - len(wave))))
    filled = fill(mels_of(wave, mels), needed, settings)
    return centred(torch.stack([filled[start : start + size] for start in starts]), settings)


def mels_of(wave: Wave, mels: Mels) -> Tensor:
    """Mels (frames, bands) of one preprocessed wave."""
    return mels(torch.from_numpy(wave)[None])[0]


def fill(mels: Tensor, frames: int, settings: AudioSettings) -> Tensor:
    """Mels (frames, bands), extended to ``frames`` with silence or with the recording again."""
    missing = frames - len(mels)
    if missing <= 0:
        return mels
    if settings.short == "repeat":
        return mels.repeat(-(-frames // len(mels)), 1)[:frames]
    silence = math.log(LOG_FLOOR) if settings.log else 0.0
    return nn.functional.pad(mels, (0, 0, 0, missing), value=silence)


def centred(crops: Tensor, settings: AudioSettings) -> Tensor:
    """Crops (batch, frames, bands), minus the mean of each band if the settings say so."""
    return crops - crops.mean(dim=1, keepdim=True) if settings.centre else crops


@dataclass(frozen=True)
class MelRecording:
    """One recording at one speed, its voice (the class), and the position of its mels."""

    recording: SpeakerRecording
    voice: str
    block: int
    first: int
    frames: int


class MelStore:
    """Reads the mels of items, (frames, bands) each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[int, NDArray[np.float32]] = OrderedDict()

    def __call__(self, item: MelRecording, first: int = 0, frames: int | None = None) -> Tensor:
        """The frames of an item, or ``frames`` of them from ``first`` on."""
        if item.block not in self._open:
            path = self.folder / f"{item.block:06d}.npy"
            self._open[item.block] = np.load(path, mmap_mode="r")
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        start = item.first + first
        stop = item.first + item.frames if frames is None else start + frames
        return torch.from_numpy(np.array(self._open[item.block][start:stop]))


@dataclass(frozen=True)
class PreparedRecordings:
    """The mels of recordings, and the recordings that have none."""

    store: MelStore
    items: list[MelRecording]
    set_aside: list[SetAside]

    @property
    def recordings(self) -> set[SpeakerRecording]:
        """The recordings that have mels, each once."""
        return {item.recording for item in self.items}


def prepare(
    run: Run,
    recordings: Sequence[SpeakerRecording],
    settings: AudioSettings,
    speeds: Sequence[float],
) -> PreparedRecordings:
    """Compute the mels of all recordings at all speeds; the ranks divide the work.

    Recordings without speech are set aside.
    """
    jobs = [(recording, speed) for recording in recordings for speed in speeds]
    names = [[r.id, str(r.path), speed] for r, speed in jobs]
    folder = run.run_dir / "mels" / digest_of([settings, names])[:20]
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [jobs[start : start + BLOCK] for start in range(0, len(jobs), BLOCK)]
    mels = Mels(settings)
    mine = range(run.rank, len(blocks), run.world_size)
    for number in run.progress(mine, f"mels of {BLOCK} recordings"):
        if not (folder / f"{number:06d}.json").exists():
            write_block(folder, number, blocks[number], mels)
        if run.stop_requested:
            break
    if run.should_stop():
        run.stopped()
    if dist.is_initialized():
        dist.barrier()
    items: list[MelRecording] = []
    set_aside: list[SetAside] = []
    for number, block in enumerate(blocks):
        found = json.loads((folder / f"{number:06d}.json").read_text())
        first = 0
        for (recording, speed), (frames, reason, detail) in zip(block, found, strict=True):
            if reason and speed == 1.0:
                where = f"{recording.corpus}/{recording.id}"
                set_aside.append(SetAside(where, reason, detail))
            elif not reason:
                voice = voice_of(recording, speed)
                items.append(MelRecording(recording, voice, number, first, frames))
                first += frames
    return PreparedRecordings(MelStore(folder), items, set_aside)


def voice_of(recording: SpeakerRecording, speed: float) -> str:
    """The voice (the class) of a recording at a speed."""
    return recording.speaker if speed == 1.0 else f"{recording.speaker} x{speed:g}"


def write_block(
    folder: Path, number: int, jobs: Sequence[tuple[SpeakerRecording, float]], mels: Mels
) -> None:
    """Write the concatenated mels of some recordings, and the frames or the reason of each."""
    parts, facts = [], []
    for recording, speed in jobs:
        made = mels_of_recording(recording, speed, mels)
        if isinstance(made, SetAside):
            facts.append((0, made.reason, made.detail))
        else:
            parts.append(made)
            facts.append((len(made), "", ""))
    whole = np.concatenate(parts) if parts else np.zeros((0, mels.settings.mels), np.float32)
    with atomic_write(folder / f"{number:06d}.npy") as aside, aside.open("wb") as stream:
        np.save(stream, whole)
    with atomic_write(folder / f"{number:06d}.json") as aside:
        aside.write_text(json.dumps(facts))


def mels_of_recording(
    recording: SpeakerRecording, speed: float, mels: Mels
) -> NDArray[np.float32] | SetAside:
    """Mels (frames, bands) of a recording at a speed, or why it has none."""
    where = f"{recording.corpus}/{recording.id}"
    try:
        clip = read_clip(recording.path)
    except BrokenAudio as error:
        return SetAside(where, error.reason, error.detail)
    wave = clip.wave if speed == 1.0 else resample(clip.wave, round(clip.rate * speed), clip.rate)
    speech = preprocess(wave, clip.rate, mels.settings)
    if len(speech) < SHORTEST_FRAMES * mels.settings.hop:
        detail = f"less than {SHORTEST_FRAMES / 100} s are left where silences are cut"
        return SetAside(where, "no speech", detail)
    return mels_of(speech, mels).numpy()


class Batches:
    """Draws crops of the training voices, with the M rows of each voice one after another."""

    def __init__(
        self,
        items: Sequence[MelRecording],
        store: MelStore,
        recipe: EncoderRecipe,
        audio: AudioSettings,
    ) -> None:
        """Raises ConfigError if there are fewer voices than a batch needs."""
        self.store, self.recipe, self.audio = store, recipe, audio
        self.voices: dict[str, list[MelRecording]] = {}
        for item in sorted(items, key=lambda item: (item.voice, item.recording.id)):
            self.voices.setdefault(item.voice, []).append(item)
        self.names = sorted(self.voices)
        if len(self.names) < recipe.speakers:
            raise ConfigError(
                f"a batch has {recipe.speakers} speakers, but there are {len(self.names)} voices "
                f"to train on: set speakers = {len(self.names)} or less, or add speeds or corpora"
            )

    def rows(self, step: int) -> tuple[list[MelRecording], int]:
        """The N x M items of a step, and the number of frames of their crops."""
        a_pass = len(self.names) // self.recipe.speakers
        number, index = divmod(step, a_pass)
        order = self._rng("voices", number).permutation(len(self.names))
        chosen = order[index * self.recipe.speakers :][: self.recipe.speakers]
        items = [item for v in chosen for item in self._turn(self.names[v], number)]
        lengths = self.recipe.crop_frames
        return items, int(self._rng("frames", step).integers(*lengths, endpoint=True))

    def _turn(self, voice: str, number: int) -> list[MelRecording]:
        """The M items of a voice in pass ``number``."""
        mine, count = self.voices[voice], self.recipe.utterances
        positions = range(number * count, (number + 1) * count)
        rounds = {p // len(mine) for p in positions}
        orders = {r: self._rng(voice, r).permutation(len(mine)) for r in rounds}
        return [mine[orders[p // len(mine)][p % len(mine)]] for p in positions]

    def crops(self, step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, list[MelRecording]]:
        """A rank's rows of a step's batch, crops (rows, frames, bands) and their items."""
        items, frames = self.rows(step)
        count = len(items) // ranks
        mine = range(rank * count, (rank + 1) * count)
        made = [self._crop(items[row], frames, step, row) for row in mine]
        return centred(torch.stack(made), self.audio), [items[row] for row in mine]

    def _crop(self, item: MelRecording, frames: int, step: int, row: int) -> Tensor:
        rng = self._rng("crop", step, row)
        first = int(rng.integers(max(0, item.frames - frames), endpoint=True))
        crop = fill(self.store(item, first, min(frames, item.frames)), frames, self.audio)
        if not self.recipe.equalize:
            return crop
        gains = rng.uniform(-1, 1, EQUALIZER_POINTS) * self.recipe.equalize
        bands = np.linspace(0, EQUALIZER_POINTS - 1, self.audio.mels)
        curve = np.interp(bands, np.arange(EQUALIZER_POINTS), gains)
        return crop + torch.from_numpy(curve * np.log(10) / 10).float()

    def _rng(self, *what: str | int) -> np.random.Generator:
        return np.random.default_rng(int(digest_of([self.recipe.seed, *what])[:16], 16))
