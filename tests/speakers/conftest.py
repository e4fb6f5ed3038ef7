"""Voices for the tests of speaker encoders: the announcer's real clips at several speeds.

The repository has one real speaker. Each speed counts as another speaker, as in Kaldi's recipes.
The tests therefore show that training works, not how accurate it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from tts_assets.core.artifacts import ArtifactStore, Build, RawCorpus
from tts_assets.core.audio import read_clip, resample
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.index import index_corpus
from tts_assets.speakers import train
from tts_assets.speakers.config import (
    EncoderArchitecture,
    EncoderProgram,
    EncoderRecipe,
    SpeakerSelection,
)

SPEEDS = {"slow": 0.8, "calm": 0.9, "plain": 1.0, "brisk": 1.12, "fast": 1.25, "deep": 0.7}
TESTED = ("voices/deep", "voices/calm")


@pytest.fixture(autouse=True, scope="session")
def one_thread_a_rank() -> None:
    """As the launcher sets it for as many ranks as cores; the clips are short."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def voices(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<speaker>/<session>/<clip>.wav``: six voices of 13 clips, in two sessions each."""
    root = tmp_path_factory.mktemp("voices")
    for number, path in enumerate(sorted((clips / "audio").rglob("*.g722"))):
        clip = read_clip(path)
        for name, speed in SPEEDS.items():
            target = root / name / f"day{number % 2}" / f"{path.stem}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            wave = resample(clip.wave, round(clip.rate * speed), clip.rate)
            soundfile.write(target, wave, clip.rate)
    return root


@pytest.fixture(scope="session")
def index(voices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published index of the corpus ``voices``."""
    store = ArtifactStore(tmp_path_factory.mktemp("storage"))
    config = CorpusConfig(path=voices, reader="speakers", language="en", licence="CC-BY-SA-3.0")
    build = Build("raw_corpus", {}, {}, "1", partition="voices")
    result = store.work_folder(build) / "result"
    result.mkdir()
    facts = index_corpus("voices", voices, config, store, result)
    return store.publish(RawCorpus, build, result, facts).path


@pytest.fixture(scope="session")
def selection() -> SpeakerSelection:
    return SpeakerSelection(corpora=("voices",), test_speakers=TESTED, min_seconds=0.5)


def recipe(**changes: Any) -> EncoderRecipe:
    """A recipe that trains for seconds."""
    values: dict[str, Any] = {
        "speakers": 4,
        "utterances": 4,
        "steps": 6,
        "crop_frames": (60, 80),
        "eval_every": 100,
        "save_every": 100,
    }
    if "base" not in changes:
        values["architecture"] = EncoderArchitecture(hidden=32, layers=1, embedding=16)
    return EncoderRecipe(**values | changes)


def write(
    folder: Path, recipe: EncoderRecipe, selection: SpeakerSelection, index: Path
) -> EncoderProgram:
    folder.mkdir(exist_ok=True)
    program = EncoderProgram(
        run_dir=folder, recipe=recipe, selection=selection, corpora={"voices": index}
    )
    (folder / "run.json").write_text(program.to_json())
    return program


@pytest.fixture(scope="session")
def trained(
    selection: SpeakerSelection, index: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an encoder that was trained for six steps."""
    folder = tmp_path_factory.mktemp("trained")
    write(folder, recipe(), selection, index)
    train.main([str(folder / "run.json")])
    return folder / "result"
