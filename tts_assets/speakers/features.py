"""Recordings as mels on disk, made once a run: a block of recordings a file, a rank a block.

A block appears by one rename, so that a restart makes those that are missing; what training reads
are pages of these files, not memory of its own.

N x M batches: which voices and which of their recordings a step sees, from (seed, step) alone.

Every pass goes through all voices in a new order, N at a time, however few recordings a voice has;
a voice's own recordings come round in turn, all of them before any again.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from tts_assets.core.accounting import SetAside
from tts_assets.core.artifacts import written_aside
from tts_assets.core.audio import BrokenAudio, read_clip, resample
from tts_assets.core.config import ConfigError, digest_of
from tts_assets.core.program import Run
from tts_assets.speakers.audio import Mels, centred, fill, mels_of, preprocess
from tts_assets.speakers.config import AudioSettings, EncoderRecipe
from tts_assets.speakers.dataset import SpeakerRecording

BLOCK = 256  # recordings of one file
OPEN = 512  # files that are mapped at a time
SHORTEST_FRAMES = 30  # 0.3 s of speech


@dataclass(frozen=True)
class Item:
    """One recording at one speed: whose voice it is, and where its mels lie."""

    recording: SpeakerRecording
    voice: str
    block: int
    first: int
    frames: int


class MelStore:
    """The mels of recordings, [frames, bands] each."""

    def __init__(self, folder: Path, mels: int) -> None:
        self.folder = folder
        self.mels = mels
        self._open: OrderedDict[int, NDArray[np.float32]] = OrderedDict()

    def __call__(self, item: Item, first: int = 0, frames: int | None = None) -> Tensor:
        """All of an item's frames, or some."""
        if item.block not in self._open:
            path = self.folder / f"{item.block:06d}.npy"
            self._open[item.block] = np.load(path, mmap_mode="r")
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        start = item.first + first
        stop = item.first + item.frames if frames is None else start + frames
        return torch.from_numpy(np.array(self._open[item.block][start:stop]))


def prepare(
    run: Run,
    recordings: Sequence[SpeakerRecording],
    settings: AudioSettings,
    speeds: Sequence[float],
) -> tuple[MelStore, list[Item], list[SetAside]]:
    """Mels of all recordings; what holds no speech is set aside. The ranks share the work."""
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
    items: list[Item] = []
    set_aside: list[SetAside] = []
    for number, block in enumerate(blocks):
        found = json.loads((folder / f"{number:06d}.json").read_text())
        first = 0
        for (recording, speed), (frames, reason, detail) in zip(block, found, strict=True):
            if reason and speed == 1.0:
                where = f"{recording.corpus}/{recording.id}"
                set_aside.append(SetAside(where, reason, detail))
            elif not reason:
                items.append(Item(recording, voice_of(recording, speed), number, first, frames))
                first += frames
    return MelStore(folder, settings.mels), items, set_aside


def voice_of(recording: SpeakerRecording, speed: float) -> str:
    """Who seems to speak at a speed."""
    return recording.speaker if speed == 1.0 else f"{recording.speaker} x{speed:g}"


def write_block(
    folder: Path, number: int, jobs: Sequence[tuple[SpeakerRecording, float]], mels: Mels
) -> None:
    """The mels of some recordings one after another, and how many frames each has or why none."""
    parts, facts = [], []
    for recording, speed in jobs:
        made = mels_of_recording(recording, speed, mels)
        if isinstance(made, SetAside):
            facts.append((0, made.reason, made.detail))
        else:
            parts.append(made)
            facts.append((len(made), "", ""))
    whole = np.concatenate(parts) if parts else np.zeros((0, mels.settings.mels), np.float32)
    with written_aside(folder / f"{number:06d}.npy") as aside, aside.open("wb") as stream:
        np.save(stream, whole)
    with written_aside(folder / f"{number:06d}.json") as aside:
        aside.write_text(json.dumps(facts))


def mels_of_recording(
    recording: SpeakerRecording, speed: float, mels: Mels
) -> NDArray[np.float32] | SetAside:
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


EQUALIZER_POINTS = 5  # gains between which a channel's curve is straight, over the mel bands


@dataclass(frozen=True)
class Crop:
    item: Item
    first: int


class Batches:
    """Crops of training voices, [rows, frames, bands]; M rows of each voice one after another."""

    def __init__(
        self, items: Sequence[Item], store: MelStore, recipe: EncoderRecipe, audio: AudioSettings
    ) -> None:
        self.store, self.recipe, self.audio = store, recipe, audio
        self.voices: dict[str, list[Item]] = {}
        for item in sorted(items, key=lambda item: (item.voice, item.recording.id)):
            self.voices.setdefault(item.voice, []).append(item)
        self.names = sorted(self.voices)
        if len(self.names) < recipe.speakers:
            raise ConfigError(
                f"a batch has {recipe.speakers} speakers, but there are {len(self.names)} voices "
                f"to train on: set speakers = {len(self.names)} or less, or add speeds or corpora"
            )

    def rows(self, step: int) -> tuple[list[Item], int]:
        """The N x M recordings of a step, and how many frames their crops have."""
        a_pass = len(self.names) // self.recipe.speakers
        number, place = divmod(step, a_pass)
        order = self._rng("voices", number).permutation(len(self.names))
        chosen = order[place * self.recipe.speakers :][: self.recipe.speakers]
        items = [item for v in chosen for item in self._turn(self.names[v], number)]
        lengths = self.recipe.least_frames, self.recipe.most_frames
        return items, int(self._rng("frames", step).integers(*lengths, endpoint=True))

    def _turn(self, voice: str, number: int) -> list[Item]:
        """The M recordings that a voice gives in a pass."""
        mine, count = self.voices[voice], self.recipe.utterances
        places = range(number * count, (number + 1) * count)
        rounds = {p // len(mine) for p in places}
        orders = {r: self._rng(voice, r).permutation(len(mine)) for r in rounds}
        return [mine[orders[p // len(mine)][p % len(mine)]] for p in places]

    def crops(self, step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, list[Item]]:
        """A rank's rows of a step's batch, as the model takes them."""
        items, frames = self.rows(step)
        share = len(items) // ranks
        mine = range(rank * share, (rank + 1) * share)
        made = [self._crop(items[row], frames, step, row) for row in mine]
        return centred(torch.stack(made), self.audio), [items[row] for row in mine]

    def _crop(self, item: Item, frames: int, step: int, row: int) -> Tensor:
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
