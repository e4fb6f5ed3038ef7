"""What reports evaluate: recipes with their training data, and the programs of their reports.

The reference recordings of a report, for speaker similarity and the speaker's pace, come from the
sample lists of the code arrays of the reference corpora.

A report shows the training utterances that are most similar to a synthesis. By text, all training
utterances are compared. By voice, at most :data:`MOST_CLIPS` of them are, and their embeddings are
cached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rapidfuzz import fuzz
from rapidfuzz.process import cdist
from rapidfuzz.utils import default_process

from tts_assets.audio_models.speaker_similarity import Embedding, SpeakerEmbedder
from tts_assets.audio_models.whisper import pinned_whisper, whisper_identity
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    CodeArrays,
    EvaluationSuite,
    Handle,
    ServingModel,
    SpeakerEncoderCheckpoint,
    SynthesizedSuite,
    sha256_file,
)
from tts_assets.core.audio import BrokenAudio, read_clip
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import Config, ConfigError, digest_of
from tts_assets.corpora.samples import AudioFolders
from tts_assets.evaluation.config import MAIN, EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.history import earlier_reports, lineage, path_to_storage
from tts_assets.evaluation.metrics import metrics_of
from tts_assets.evaluation.metrics.quality import spoken_characters
from tts_assets.evaluation.suite import SUITE_FILE, SuiteText, read_suite
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.dpo_config import DpoRecipe
from tts_assets.sft.config import SftRecipe
from tts_assets.speakers.config import RESEMBLYZER, encoder_digest, resolve

Sample = dict[str, Any]
Clip = tuple[AudioFolders, Sample]
BATCH = 50_000  # training utterances that are compared at once; 20 MB for 100 texts
MOST_CLIPS = 200  # that are compared by voice; about 6 s of one core with the default encoder
DIGITS = 4  # of an embedding in the cache
SCHEMA = {"id": pl.String, "transcript": pl.String, "wav_path": pl.String}


@dataclass(frozen=True)
class TrainingData:
    """The data that a recipe and its base recipes were trained on.

    ``corpora``: of SFT. The prompts of RLHF are the lines of the files ``prompts``, the transcripts
    of ``prompt_corpora``, and as voice prompts the clips of ``voice_corpora``. DPO is trained on
    the texts of ``preferences``, and on their voice prompts, which are clips of ``pair_corpora`` or
    of a suite.
    """

    corpora: Collection[str]
    prompts: Collection[Path] = ()
    prompt_corpora: Collection[str] = ()
    voice_corpora: Collection[str] = ()
    preferences: Collection[str] = ()
    pair_corpora: Collection[str] = ()

    def for_suite(self, suite: str) -> TrainingData:
        """The data that ``suite`` must be held out from.

        RLHF excludes the texts of the main suite from its prompt corpora itself, and trains again
        when that suite changes. Its prompt corpora therefore count for the other suites only.
        """
        return replace(self, prompt_corpora=()) if suite == MAIN else self


@dataclass(frozen=True)
class EvaluatedRecipe:
    """A recipe with reports.

    ``corpora``: of the reference speaker; ``training_data``: what suites must be held out from;
    ``external``: an external model, whose speech is the asset ``spoken/<recipe>``.
    """

    name: str
    corpora: tuple[str, ...]
    training_data: TrainingData
    external: bool = False


@dataclass(frozen=True)
class ReportInputs:
    """The input artifacts of a report. ``encoder``: the published speaker encoder, if used."""

    serving: ServingModel | SynthesizedSuite
    suite: EvaluationSuite
    arrays: Mapping[str, CodeArrays]
    encoder: SpeakerEncoderCheckpoint | None = None

    def by_name(self) -> dict[str, Any]:
        """The inputs in the fingerprint."""
        named = {"serving": self.serving, "suite": self.suite, "arrays": self.arrays}
        return named if self.encoder is None else {**named, "encoder": self.encoder}


def evaluated_recipes(
    sft: Mapping[str, SftRecipe],
    rlhf: Mapping[str, RlhfRecipe | DpoRecipe],
    root: Path,
    trained_on: Callable[[str], Collection[str]],
    external: Mapping[str, Sequence[str]],
) -> list[EvaluatedRecipe]:
    """All recipes with the data that they are trained on.

    Relative paths start at ``root``. ``trained_on``: the corpora of a recipe and of its base
    recipes. ``external``: the corpora of external models by recipe.
    """
    recipes = [
        EvaluatedRecipe(name, tuple(recipe.corpora), TrainingData(trained_on(name)))
        for name, recipe in sft.items()
    ]
    for name, aligned in rlhf.items():
        if isinstance(aligned, DpoRecipe):
            pairs = (aligned.preferences,)
            data = TrainingData(
                trained_on(aligned.base), preferences=pairs, pair_corpora=trained_on(name)
            )
        else:
            prompts = aligned.prompts
            data = TrainingData(
                trained_on(aligned.base),
                (root / prompts.texts,) if prompts.texts else (),
                prompts.corpora,
                prompts.corpora if prompts.voice_prompts else (),
            )
        recipes.append(EvaluatedRecipe(name, tuple(sft[aligned.base].corpora), data))
    for name, corpora in external.items():
        recipes.append(EvaluatedRecipe(name, tuple(corpora), TrainingData(corpora), external=True))
    return recipes


def determined(
    evaluation: EvaluationConfig, encoder: Path | None, root: Path
) -> tuple[EvaluationConfig, dict[str, Any]]:
    """The configuration with absolute paths, and what of it determines a report's bytes.

    The latter has digests of models instead of paths. ``encoder``: folder of the published speaker
    encoder, if the configuration names it.
    """
    config, digests = evaluation, {}
    if evaluation.speaker_encoder != RESEMBLYZER:
        path = encoder or resolve(evaluation.speaker_encoder, root)
        config = config.model_copy(update={"speaker_encoder": str(path)})
        digests["speaker_encoder"] = encoder_digest(path)
    if evaluation.utmos is not None:
        utmos = root / evaluation.utmos
        config = config.model_copy(update={"utmos": utmos})
        if utmos.is_file():
            digests["utmos"] = sha256_file(utmos)
    digests["whisper"] = whisper_identity(evaluation.whisper)
    config = config.model_copy(update={"whisper": pinned_whisper(config.whisper)})
    versions = {metric.name: metric.version for metric in metrics_of(config)}
    return config, config.determining() | {"versions": versions} | digests


def report_program(
    work: Path,
    recipe: EvaluatedRecipe,
    suite_name: str,
    config: EvaluationConfig,
    inputs: ReportInputs,
    build: Build,
    store: ArtifactStore,
) -> EvaluationProgram:
    """The program that makes the report ``build`` in the folder ``work``.

    Raises :class:`ConfigError` for a suite that names an unknown speaker.
    """
    suite, arrays = inputs.suite.path / SUITE_FILE, inputs.arrays
    texts = read_suite(suite, config.language)
    encoders = [] if inputs.encoder is None else [inputs.encoder]
    source = inputs.serving.path
    return EvaluationProgram(
        run_dir=work,
        name=recipe.name,
        suite_name=suite_name,
        evaluation=config,
        serving_model=None if recipe.external else source,
        synthesized=source if recipe.external else None,
        suite=suite,
        references=reference_clips(arrays, config.reference_clips),
        speakers=named_speakers(arrays, texts, config.reference_clips),
        characters_per_second=expected_rate(arrays, config.language),
        cache=store.cache("evaluation"),
        lineage=lineage(store, [inputs.suite, *arrays.values(), *encoders, inputs.serving]),
        earlier=earlier_reports(store, build),
        # With reference corpora, the arrays are not what the model was trained on.
        training=()
        if config.reference_corpora
        else tuple(handle.path / "train_samples.jsonl" for handle in arrays.values()),
        storage=path_to_storage(build.asset),
    )


def samples_of(arrays: Mapping[str, Handle], split: str) -> list[Sample]:
    """The samples of a split ("train" or "val") of all corpora."""
    return [
        json.loads(line)
        for handle in arrays.values()
        for line in (handle.path / f"{split}_samples.jsonl").read_text().split("\n")
        if line.strip()
    ]


def clips_of(arrays: Mapping[str, Handle], split: str) -> list[Clip]:
    """The samples of a split of all corpora, with the folders of their audio."""
    return [
        (audio, sample)
        for name, handle in arrays.items()
        for audio in [AudioFolders.of(handle.path)]
        for sample in samples_of({name: handle}, split)
    ]


def reference_clips(arrays: Mapping[str, CodeArrays], count: int) -> tuple[Path, ...]:
    """The ``count`` longest validation clips; training clips if there are none.

    Raises FileNotFoundError if a clip is gone.
    """
    return longest(clips_of(arrays, "val") or clips_of(arrays, "train"), count)


def named_speakers(
    arrays: Mapping[str, CodeArrays], texts: Iterable[SuiteText], count: int
) -> dict[str, tuple[Path, ...]]:
    """The longest clips of each speaker that a text names; validation clips if there are any.

    Raises :class:`ConfigError` for a speaker that no corpus has.
    """
    names = sorted({text.speaker for text in texts if text.speaker})
    if not names:
        return {}
    val, train = clips_of(arrays, "val"), clips_of(arrays, "train")
    found = {}
    for name in names:
        own = [[clip for clip in clips if speaker_of(clip) == name] for clips in (val, train)]
        if not any(own):
            known = sorted({speaker_of(clip) for clip in [*val, *train]})
            raise ConfigError(
                f"the suite names speaker {name!r}, but the corpora {sorted(arrays)} have no such "
                f"speaker; speakers there: {known[:20]}"
            )
        found[name] = longest(own[0] or own[1], count)
    return found


def speaker_of(clip: Clip) -> str:
    """The speaker of a clip; empty if unknown."""
    return str(clip[1].get("speaker_id", ""))


def longest(clips: Iterable[Clip], count: int) -> tuple[Path, ...]:
    """The audio files of the longest clips. Raises FileNotFoundError if one is gone."""
    chosen = sorted(clips, key=lambda clip: (-clip[1]["duration"], clip[1]["id"]))[:count]
    return tuple(audio.existing(sample["wav_path"]) for audio, sample in chosen)


def references_digest(
    references: Iterable[Path], speakers: Mapping[str, Iterable[Path]], rate: float
) -> str:
    """The digest of reference clips and pace.

    Speaker similarity and duration ratio of two reports are comparable only if it is the same.
    """
    clips_of = {name: [sha256_file(clip) for clip in clips] for name, clips in speakers.items()}
    return digest_of([[sha256_file(clip) for clip in references], clips_of, rate])


def expected_rate(arrays: Mapping[str, CodeArrays], language: str) -> float:
    """Characters per second of the recordings with their pauses; 0 if durations are unknown.

    Validation clips are enough where there are any.
    """
    samples = samples_of(arrays, "val") or samples_of(arrays, "train")
    timed = [sample for sample in samples if sample["duration"] > 0]
    seconds = sum(sample["duration"] for sample in timed)
    characters = sum(spoken_characters(sample["transcript"], language) for sample in timed)
    return round(characters / seconds, 3) if seconds else 0.0


class Nearest(Config):
    """The training utterance that is most similar to a text or to a synthesis.

    ``similarity``: 1 for equal texts, or the cosine of two speaker embeddings. ``samples``: the
    list that has the utterance, in the storage.
    """

    id: str
    transcript: str
    similarity: float
    samples: str


@dataclass(frozen=True)
class Candidate:
    """A training utterance that is compared by voice."""

    id: str
    transcript: str
    samples: str
    audio: Path


def nearest_texts(texts: Mapping[str, str], training: Iterable[Path]) -> dict[str, Nearest]:
    """By id, the training utterance with the most similar text; empty without ``training``.

    The similarity is rapidfuzz's ratio of letters, without case and punctuation. The lists are read
    in batches of :data:`BATCH` utterances.
    """
    found: dict[str, Nearest] = {}
    for path in training:
        rows = pl.read_ndjson(path, schema={"id": pl.String, "transcript": pl.String})
        for batch in rows.iter_slices(BATCH):
            scores = cdist(
                list(texts.values()),
                batch["transcript"].to_list(),
                scorer=fuzz.ratio,
                processor=default_process,
            )
            for key, row in zip(texts, scores, strict=True):
                best = int(row.argmax())
                score = round(float(row[best]) / 100, 3)
                if key not in found or score > found[key].similarity:
                    own = batch.row(best, named=True)
                    found[key] = Nearest(**own, similarity=score, samples=in_storage(path))
    return found


def nearest_voices(
    syntheses: Mapping[str, Path], training: Sequence[Path], encoder: str, cache: Path
) -> dict[str, Nearest]:
    """By key, the training utterance whose voice is most similar; empty without ``training``.

    ``syntheses``: audio files by key. ``encoder``: ``[evaluation] speaker_encoder``. Files without
    enough speech, and training clips that no longer exist, are left out.
    """
    clips = candidates(training)
    embedder = CachedEmbedder(encoder, RecordCache(cache))
    known = embedder([clip.audio for clip in clips])
    usable = [(clip, known[clip.audio]) for clip in clips if clip.audio in known]
    if not usable:
        return {}
    voices = np.stack([vector for _, vector in usable])
    found = {}
    of_syntheses = embedder(list(syntheses.values()))
    for key, path in syntheses.items():
        if path in of_syntheses:
            cosines = voices @ of_syntheses[path]
            best = int(cosines.argmax())
            clip, cosine = usable[best][0], round(float(cosines[best]), 3)
            found[key] = Nearest(
                id=clip.id, transcript=clip.transcript, similarity=cosine, samples=clip.samples
            )
    return found


def candidates(training: Sequence[Path]) -> list[Candidate]:
    """The utterances that are compared by voice: the same number of each list, evenly spaced.

    Utterances whose audio is gone are left out.
    """
    found = []
    for path in training:
        rows = pl.read_ndjson(path, schema=SCHEMA)
        every = max(1, -(-rows.height * len(training) // MOST_CLIPS))
        audio = AudioFolders.of(path.parent)
        for row in rows.gather_every(every).iter_rows(named=True):
            try:
                file = audio.existing(row["wav_path"])
            except FileNotFoundError:
                continue
            found.append(Candidate(row["id"], row["transcript"], in_storage(path), file))
    return found


class CachedEmbedder:
    """Speaker embeddings of audio files, cached by digest. The encoder is loaded on first use."""

    def __init__(self, name: str, cache: RecordCache) -> None:
        self.name = name
        self.cache = cache
        self.digest = encoder_digest(resolve(name, Path()))
        self._encoder: SpeakerEmbedder | None = None

    def __call__(self, files: Sequence[Path]) -> dict[Path, Embedding]:
        """Unit vectors by file; an unreadable file, or one without enough speech, has none."""
        keys = {path: digest_of(["voice 1", self.digest, sha256_file(path)]) for path in files}
        known = self.cache.get(keys.values())
        new = {key: self._embed(path) for path, key in keys.items() if key not in known}
        self.cache.put(new)
        known |= new
        return {
            path: np.asarray(known[key], np.float32) for path, key in keys.items() if known[key]
        }

    def _embed(self, path: Path) -> list[float]:
        if self._encoder is None:
            from tts_assets.speakers.encoder import open_voices  # imports torch

            self._encoder = open_voices(self.name)
        try:
            clip = read_clip(path)
        except BrokenAudio:
            return []
        vector = self._encoder.embed(clip.wave, clip.rate)
        return [] if vector is None else [round(float(x), DIGITS) for x in vector]


def in_storage(path: Path) -> str:
    """The path of a file of an artifact relative to the storage."""
    return "/".join(path.parts[-4:])  # asset, partition, fingerprint, file
