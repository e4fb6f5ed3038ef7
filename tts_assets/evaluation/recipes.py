"""What reports evaluate: recipes with their training data, and the programs of their reports.

The reference recordings of a report, for speaker similarity and the speaker's pace, come from the
sample lists of the code arrays of the reference corpora.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from tts_assets.core.config import ConfigError, digest_of
from tts_assets.corpora.samples import AudioFolders
from tts_assets.evaluation.config import MAIN, EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.history import earlier_reports, lineage, path_to_storage
from tts_assets.evaluation.metrics.metric import metrics_of
from tts_assets.evaluation.metrics.prosody import spoken_characters
from tts_assets.evaluation.suite import SUITE_FILE, SuiteText, read_suite
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.dpo_config import DpoRecipe
from tts_assets.sft.config import SftRecipe
from tts_assets.speakers.config import RESEMBLYZER, encoder_digest, resolve

Sample = dict[str, Any]
Clip = tuple[AudioFolders, Sample]


@dataclass(frozen=True)
class TrainingData:
    """The data that a recipe and its base recipes were trained on.

    ``corpora``: of SFT. The prompts of RLHF are the lines of the files ``prompts``, the transcripts
    of ``prompt_corpora``, and as voice prompts the clips of ``voice_corpora``. DPO is trained on
    the texts of ``preferences``.
    """

    corpora: Collection[str]
    prompts: Collection[Path] = ()
    prompt_corpora: Collection[str] = ()
    voice_corpora: Collection[str] = ()
    preferences: Collection[str] = ()

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
            data = TrainingData(trained_on(aligned.base), preferences=(aligned.preferences,))
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
