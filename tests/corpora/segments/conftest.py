"""A corpus of one recording with known content, segmented once for all tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.recordings import SpokenClip, record
from tts_assets.audio_models.whisper import packaged_model
from tts_assets.core.artifacts import ArtifactStore, Build, RawCorpus, SegmentFacts, SpeechSegments
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.index import Utterance, index_corpus, utterances
from tts_assets.corpora.samples import AudioFolders
from tts_assets.corpora.segments import SegmentConfig, SegmentProgram
from tts_assets.corpora.segments.segment import main

KEYS = (
    "conf-locked",
    "conf-onlyperson",
    "digits/4",
    "digits/7",
    "followme/status",
    "invalid",
    "demo-moreinfo",
    "vm-savefolder",
    "auth-incorrect",
    "queue-thankyou",
)
PAUSES = (0.3, 0.9, 2.5, 2.5, 0.4, 1.5, 0.6, 0.3, 0.5, 1.2)


@dataclass(frozen=True)
class Segmented:
    """A segmented corpus: its handle, its clips, and where its audio lies."""

    handle: SpeechSegments
    store: ArtifactStore

    @property
    def rows(self) -> list[Utterance]:
        return list(utterances(self.handle))

    @property
    def spans(self) -> pl.DataFrame:
        return pl.read_parquet(self.handle.path / "spans.parquet")

    @property
    def audio(self) -> AudioFolders:
        return AudioFolders.of(self.handle.path)

    @property
    def facts(self) -> SegmentFacts:
        return self.handle.facts


def index_recordings(root: Path, store: ArtifactStore, language: str = "en") -> RawCorpus:
    """The published ``raw_corpus`` of a folder ``<speaker>/<recording>.wav``."""
    config = CorpusConfig(path=root, reader="speakers", language=language)
    files = sorted(map(str, root.rglob("*")))
    build = Build("raw_corpus", {}, {"files": files, "language": language}, "1")
    result = store.work_folder(build) / "result"
    result.mkdir(parents=True)
    facts = index_corpus("talks", root, config, store, result)
    return store.publish(RawCorpus, build, result, facts)  # type: ignore[return-value]


def write_program(corpus: RawCorpus, store: ArtifactStore, run_dir: Path, **segments: Any) -> Path:
    """``run.json`` of the program; the keywords are keys of ``[corpora.<name>.segments]``."""
    config = SegmentConfig.model_validate(segments)
    program = SegmentProgram(
        run_dir=run_dir,
        corpus=corpus.path,
        segments=config,
        model=packaged_model(),
        reference=config.speaker and config.speaker.reference,
        audio_pool=store.audio_pool,
        transcripts=store.cache("transcripts"),
        records=store.cache("segments"),
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "run.json"
    path.write_text(program.to_json())
    return path


def publish(corpus: RawCorpus, store: ArtifactStore, run_dir: Path) -> Segmented:
    """The artifact of a finished program."""
    build = Build("speech_segments", {"raw_corpus": corpus}, {"run": run_dir}, "1")
    facts = SegmentFacts.from_json(run_dir / "result.json")
    handle = store.publish(SpeechSegments, build, run_dir / "result", facts)
    assert isinstance(handle, SpeechSegments)
    return Segmented(handle, store)


def segment(corpus: RawCorpus, store: ArtifactStore, run_dir: Path, **segments: Any) -> Segmented:
    main([str(write_program(corpus, store, run_dir, **segments))])
    return publish(corpus, store, run_dir)


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SpokenClip]]:
    """A folder with one recording of 40 seconds, ``ann/talk.wav``, and its clips."""
    root = tmp_path_factory.mktemp("talks")
    return root, record(root / "ann" / "talk.wav", KEYS, PAUSES)


@pytest.fixture(scope="session")
def segmented(
    talk: tuple[Path, list[SpokenClip]], tmp_path_factory: pytest.TempPathFactory
) -> Segmented:
    """The talk with the default configuration."""
    folder = tmp_path_factory.mktemp("segmented")
    store = ArtifactStore(folder / "storage")
    corpus = index_recordings(talk[0], store)
    return segment(corpus, store, store.root / ".work" / "run")
