"""The strict model of ``dagster_project.toml``: all configuration of the project.

The file contains the profile ``embedded``. ``TTS_PROFILE`` selects a table
``[profiles.<name>]``, whose values replace those of the file. Its list ``drop`` names keys to
remove first, for keys that exclude each other. A variable ``TTS__SECTION__KEY=value`` overrides
one value, which is TOML or else a plain string. Relative paths start at the folder of the file.
``project_file.py`` combines these layers.

pydantic-settings is not used. It ignores variables of unknown tables (``TTS__SFTT__STEPS=20``), and
has neither profiles nor ``drop``. It would replace about 25 lines of ``project_file.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr, model_validator

from tts_assets.arrays.inworld import ArraysConfig
from tts_assets.audio_models.whisper import check_transcribes, spoken_language
from tts_assets.codec.config import CodecConfig
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts.pruning import Retention
from tts_assets.core.compute import Compute
from tts_assets.core.config import Config, ConfigError
from tts_assets.core.tracking import WandbConfig
from tts_assets.corpora.config import (
    CorpusConfig,
    DiscoveryConfig,
    FilterConfig,
    TextConfig,
    VoiceConsent,
)
from tts_assets.corpora.discovery import Corpora, check_name
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.suite import check_transcribed, suites_for
from tts_assets.external_models.config import ExternalModelsConfig
from tts_assets.normalization.front_end import warn_of_languages
from tts_assets.normalization.rules import with_files
from tts_assets.orchestration.config import Alerts, Budget, Owner, Schedules
from tts_assets.project_file import read_project, with_folders
from tts_assets.promotion.decision import PromotionConfig, sft_bases, training_steps
from tts_assets.provenance import check_starts, invalid, without_corpora
from tts_assets.rlhf.config import RlhfRecipe, VllmRollouts
from tts_assets.rlhf.dpo_config import DpoRecipe, PreferencesConfig, check_preferences
from tts_assets.serving.config import ServingConfig, VllmConfig
from tts_assets.sft.config import SftRecipe, check_phonemes
from tts_assets.speakers.config import PUBLISHED, RESEMBLYZER, SpeakersConfig
from tts_assets.speechlm.config import TokenizerConfig
from tts_assets.speechlm.formats import TextSource


class Project(Config):
    """``[project]``: the name of the project, the folder of artifacts, and the owners of assets."""

    name: str
    storage: Path = Path("storage")
    owners: tuple[Owner, ...] = Field(
        (), description="owners of all assets: addresses, or teams such as 'team:speech'"
    )


class Settings(Config):
    """One validated profile of the project."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"families": "external_models"}

    project: Project
    compute: Compute = Compute()
    wandb: WandbConfig | None = None
    validation: ValidationSplit = ValidationSplit()
    corpora: dict[str, CorpusConfig] = Field(default_factory=dict)
    discovery: DiscoveryConfig = DiscoveryConfig()
    filters: FilterConfig = FilterConfig()
    text: TextConfig = TextConfig()
    texts: dict[str, TextSource] = Field(default_factory=dict)
    codec: CodecConfig
    arrays: ArraysConfig = ArraysConfig()
    serving: ServingConfig = ServingConfig()
    vllm: VllmConfig = VllmConfig()
    sft: dict[str, SftRecipe] = Field(default_factory=dict)
    rlhf: dict[str, RlhfRecipe] = Field(default_factory=dict)
    preferences: dict[str, PreferencesConfig] = Field(default_factory=dict)
    dpo: dict[str, DpoRecipe] = Field(default_factory=dict)
    evaluation: EvaluationConfig
    promotion: dict[str, PromotionConfig] = Field(default_factory=dict)
    schedules: Schedules = Schedules()
    retention: Retention = Retention()
    budget: Budget = Budget()
    alerts: Alerts = Alerts()
    speakers: SpeakersConfig | None = None
    external_models: ExternalModelsConfig = ExternalModelsConfig()
    _root: Path = PrivateAttr(default=Path())

    @property
    def root(self) -> Path:
        """The folder of the project file, where relative paths start."""
        return self._root

    @property
    def storage(self) -> Path:
        """The absolute path of the artifact store."""
        return self.path(self.project.storage)

    def path(self, path: Path) -> Path:
        """The absolute path of a path in the project file."""
        return (self._root / path).resolve()

    @property
    def aligned(self) -> dict[str, RlhfRecipe | DpoRecipe]:
        """The recipes of GRPO and DPO, which train the serving model of an SFT recipe."""
        return {**self.rlhf, **self.dpo}

    @property
    def effects(self) -> dict[str, dict[str, str]]:
        """By promoted voice, its models with the recipe that each is trained from, or "".

        Without voices of which no model is trained from another recipe.
        """
        bases = sft_bases(self.sft) | {name: one.base for name, one in self.aligned.items()}
        found = {v: training_steps(one.candidates, bases) for v, one in self.promotion.items()}
        return {voice: steps for voice, steps in found.items() if any(steps.values())}

    @property
    def stage_of(self) -> dict[str, str]:
        """The stage of each recipe of a SpeechLM: sft, rlhf or dpo."""
        return {
            **dict.fromkeys(self.sft, "sft"),
            **dict.fromkeys(self.rlhf, "rlhf"),
            **dict.fromkeys(self.dpo, "dpo"),
        }

    @property
    def all_corpora(self) -> Corpora:
        """Declared and discovered corpora. The folder is read on each access."""
        return Corpora(self.corpora, self.discovery, self.root)

    def check_corpora(self) -> None:
        """Raise :class:`ConfigError` if a recipe, a report or a target names an unknown corpus."""
        for name, recipe in self.sft.items():
            for corpus in set(recipe.corpora) - set(self.arrays.imported):
                try:
                    self.all_corpora(corpus)
                except (ConfigError, OSError) as error:
                    raise ConfigError(
                        f"sft.{name} trains on corpus {corpus!r}: {error}; "
                        f"or use one of {sorted(self.all_corpora.find()[0])}"
                    ) from None
        named = [
            ("[speakers]", corpus) for corpus in (self.speakers.corpora if self.speakers else ())
        ]
        for key in ("train", "decoder", "report"):
            part = getattr(self.codec, key)
            named += [(f"[codec.{key}]", corpus) for corpus in (part.corpora if part else ())]
        for name, rlhf in self.rlhf.items():
            own = set(rlhf.prompts.corpora) - set(self.arrays.imported)
            named += [(f"rlhf.{name}.prompts", corpus) for corpus in sorted(own)]
        for name, external in self.external_models.recipes.items():
            where = f"external_models.recipes.{name}"
            named += [(where, corpus) for corpus in external.corpora]
        target = set(self.evaluation.reference_corpora) - set(self.arrays.imported)
        named += [("evaluation.reference_corpora", corpus) for corpus in sorted(target)]
        for where, corpus in named:
            try:
                self.all_corpora(corpus)
            except (ConfigError, OSError) as error:
                raise ConfigError(f"{where} has corpus {corpus!r}: {error}") from None

    def consents(self, recipe: str, used: Iterable[str] = ()) -> dict[str, VoiceConsent | None]:
        """The consent of each corpus that a recipe or one of its base recipes is trained on.

        ``used``: corpora that a model of the recipe was made from, maybe before the recipe changed.
        They and those of the codec are among them, except declared ones without a consent.
        """
        known, corpora = self.known_consents, self.training_corpora(recipe)
        own: set[str] = set() if recipe in self.external_models.recipes else self.codec.corpora
        corpora |= {name for name in {*own, *used} if known.get(name, True) is not None}
        return {name: known.get(name) for name in sorted(corpora)}

    @property
    def known_consents(self) -> dict[str, VoiceConsent | None]:
        """The consent of every corpus: declared, discovered, and imported."""
        found = {name: corpus.config.consent for name, corpus in self.all_corpora.find()[0].items()}
        return found | {name: one.consent for name, one in self.arrays.imported.items()}

    @property
    def ended_consents(self) -> dict[str, str]:
        """Why the consent is no longer valid, for each corpus of which nothing may be made."""
        return invalid(self.known_consents, self.storage)

    def training_corpora(self, recipe: str) -> set[str]:
        """The corpora of a recipe and of its base recipes."""
        if recipe in self.external_models.recipes:
            return set(self.external_models.recipes[recipe].corpora)
        corpora: set[str] = set()
        if recipe in self.dpo:
            for model in self.preferences[self.dpo[recipe].preferences].models(self.compared):
                corpora |= self.training_corpora(model)
        if recipe in self.rlhf:
            corpora |= set(self.rlhf[recipe].prompts.corpora)
        recipe = self.aligned[recipe].base if recipe in self.aligned else recipe
        for _ in self.sft:  # the longest possible chain of base recipes
            corpora |= set(self.sft[recipe].corpora)
            recipe = self.sft[recipe].base.recipe or recipe
        return corpora

    @property
    def compared(self) -> dict[str, tuple[str, ...]]:
        """The models of each comparison: an aligned recipe with its base, and those declared."""
        own = {name: (recipe.base, name) for name, recipe in self.aligned.items()}
        return own | {name: one.models for name, one in self.evaluation.comparisons.items()}

    def languages_of(self, recipe: str) -> set[str]:
        """The languages of a recipe's speech, as its corpora declare them; empty if one is unknown.

        Languages of imported arrays, and those that are detected in recordings, are unknown.
        """
        base = self.aligned[recipe].base if recipe in self.aligned else recipe
        found = set()
        for name in self.training_corpora(base):
            try:
                corpus = self.all_corpora(name).config
            except (ConfigError, OSError):  # imported, or reported by check_corpora
                return set()
            if corpus.segments is not None and corpus.segments.detect_language:
                return set()
            found.add(spoken_language(corpus.language))
        return found

    @property
    def suites(self) -> dict[str, list[str]]:
        """The suites of each recipe, its main suite first."""
        evaluation, root = self.evaluation, self.root
        recipes = (*self.sft, *self.aligned, *self.external_models.recipes)
        return {r: suites_for(evaluation, r, self.languages_of(r), root) for r in recipes}

    @property
    def decisive(self) -> dict[str, list[str]]:
        """By candidate of a promotion, the categories of the suite that decide on it."""
        found: dict[str, list[str]] = {}
        for promotion in self.promotion.values():
            for name in promotion.candidates if promotion.category else ():
                found.setdefault(name, []).append(promotion.category)
        return found

    def check_languages(self) -> None:
        """Raise ValueError where languages of speech, texts and ASR models differ."""
        check_transcribed(self.evaluation, self.root)
        _ = self.suites
        check_phonemes({name: (self.sft[name], self.languages_of(name)) for name in self.sft})
        for name, rlhf in self.rlhf.items():
            known = [name for name in rlhf.prompts.corpora if name not in self.arrays.imported]
            tags = [self.all_corpora(name).config.language for name in known]
            rlhf.check_languages(f"rlhf.{name}", self.languages_of(name), tags)
        if (report := self.codec.report) is not None:
            for name in report.corpora:
                tag = self.all_corpora(name).config.language
                check_transcribes(report.whisper, tag, "codec.report.whisper")

    @property
    def tokenizers(self) -> dict[str, list[TokenizerConfig]]:
        """The distinct tokenizers of the SFT recipes of each corpus."""
        found: dict[str, list[TokenizerConfig]] = {}
        for recipe in self.sft.values():
            first = recipe
            for _ in self.sft:  # a recipe keeps the tokenizer of its base
                first = self.sft.get(first.base.recipe or "", first)
            tokenizer = TokenizerConfig(
                hub=first.base.hub, vocabulary=first.vocabulary, lexicon=self.text.lexicon
            )
            for corpus in recipe.corpora:
                known = found.setdefault(corpus, [])
                if tokenizer not in known:
                    known.append(tokenizer)
        return found

    @property
    def pretrains(self) -> bool:
        """Whether a recipe pretrains, and so reads the token streams of ``token_arrays``."""
        return any(recipe.pretraining is not None for recipe in self.sft.values())

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        tables: dict[str, tuple[str, Iterable[str]]] = {
            "corpora": ("corpus", self.corpora),
            "arrays.imported": ("corpus", self.arrays.imported),
            "texts": ("text", self.texts),
            "sft": ("recipe", self.sft),
            "rlhf": ("recipe", self.rlhf),
            "preferences": ("voice", self.preferences),
            "dpo": ("recipe", self.dpo),
            "external_models.recipes": ("recipe", self.external_models.recipes),
            "evaluation.suites": ("suite", self.evaluation.suites),
            "evaluation.comparisons": ("comparison", self.evaluation.comparisons),
            "promotion": ("voice", self.promotion),
        }
        for table, (what, names) in tables.items():
            for name in names:
                try:
                    check_name(name, what)
                except ConfigError as error:
                    raise ValueError(f"[{table}]: {error}") from None
        _check_distinct(self._named_keys())
        return self

    def _named_keys(self) -> Iterable[str]:
        """Asset keys made of names of the project file: those that two names could share."""
        recipes = [*self.sft, *self.aligned, *self.external_models.recipes]
        suites = self.evaluation.suites
        yield from (f"report/{recipe}" for recipe in recipes)
        yield from (f"report/{recipe}/{suite}" for recipe in recipes for suite in suites)
        yield from (f"suite/{suite}" for suite in suites)
        yield from (f"comparison/{name}" for name in {*self.evaluation.comparisons, *self.aligned})
        yield from (f"promoted/{voice}" for voice in self.promotion)
        yield from (f"preferences/{name}" for name in self.preferences)
        yield from (f"texts/{name}" for name in self.texts)

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        for name, corpus_config in self.corpora.items():
            filters = self.filters.for_corpus(corpus_config.filters, name)
            if "wer" in filters.metrics:
                key = f"corpora.{name}.filters.whisper"
                check_transcribes(filters.whisper, corpus_config.language, key, "drop max_wer")
        for name in self.arrays.imported:
            if name in self.corpora:
                raise ValueError(
                    f"{name!r} is declared in [corpora] and in [arrays.imported]: its arrays can "
                    "come from one of the two; rename or drop the other"
                )
        for name, recipe in self.sft.items():
            for text in set(recipe.texts) - set(self.texts):
                raise ValueError(
                    f"sft.{name} trains on texts {text!r}, which are nowhere: add [texts.{text}] "
                    f"with the path of a JSONL file; known texts: {sorted(self.texts)}"
                )
            base = recipe.base.recipe
            if base is not None and (base not in self.sft or base == name):
                raise ValueError(
                    f"sft.{name} continues {base!r}, which is no other [sft] recipe; "
                    f"known recipes: {sorted(self.sft)}"
                )
        self._check_aligned()
        self.external_models.check_recipes({*self.sft, *self.aligned})
        for voice, promotion in self.promotion.items():
            promotion.check_candidates(voice, {*self.sft, *self.aligned})
        recipes = {*self.sft, *self.aligned, *self.external_models.recipes}
        self.evaluation.check_recipes(recipes, set(self.aligned))
        return self

    def _check_aligned(self) -> None:
        """Raise ValueError for recipes of GRPO and DPO that name unknown ones."""
        for stage, recipes, suffix in (("rlhf", self.rlhf, "grpo"), ("dpo", self.dpo, "dpo")):
            for name, recipe in recipes.items():
                if recipe.base not in self.sft:
                    raise ValueError(
                        f"{stage}.{name} starts from {recipe.base!r}, which is no [sft] recipe; "
                        f"known recipes: {sorted(self.sft)}"
                    )
                if name in self.sft or (stage == "dpo" and name in self.rlhf):
                    other = "sft" if name in self.sft else "rlhf"
                    raise ValueError(
                        f"{name!r} names recipes of [{other}] and [{stage}], and both would be "
                        f"serving/{name}; rename one, for example {stage}.{name}_{suffix}"
                    )
        external = set(self.external_models.recipes)
        check_preferences(self.preferences, self.dpo, set(self.rlhf), self.compared, external)

    @model_validator(mode="after")
    def _check_engines(self) -> Self:
        on_gpus = self.compute.launcher == "slurm" and self.compute.shape("rlhf").gpus
        for name, recipe in self.rlhf.items():
            engine = recipe.engine
            if on_gpus and isinstance(engine, VllmRollouts) and engine.shares_gpu:
                raise ValueError(
                    f"rlhf.{name}.engine: gpus = 0 uses the GPU of the trainer, and under Slurm "
                    "vLLM has a separate node: set gpus = 1 or more"
                )
        return self

    @model_validator(mode="after")
    def _check_speaker_encoder(self) -> Self:
        named = {f"rlhf.{name}.rewards": one.speaker_encoder for name, one in self.rlhf.items()}
        named["evaluation.speaker_encoder"] = self.evaluation.speaker_encoder
        for key, encoder in named.items():
            if encoder == PUBLISHED and self.speakers is None:
                raise ValueError(
                    f"{key} names {PUBLISHED!r}, the asset that a table [speakers] makes; add one "
                    f"with checkpoint or train, or name {RESEMBLYZER!r}"
                )
        return self


def _check_distinct(keys: Iterable[str]) -> None:
    """Raise ValueError for two asset keys with the same name of a Dagster op."""
    found: dict[str, str] = {}
    for key in keys:
        other = found.setdefault(re.sub("[.-]", "_", key.replace("/", "__")), key)
        if other != key:
            raise ValueError(
                f"the assets {other} and {key} have the same name in Dagster, where '-', '.' and "
                "'_' are equal and '/' is '__': rename the recipe, suite, text or voice of one"
            )


def load_settings(
    path: Path | None = None,
    profile: str | None = None,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
    every_corpus: bool = False,
) -> Settings:
    """Read the project file and apply the profile, ``overrides`` and environment variables.

    Corpora whose consent has ended or was withdrawn are left out of recipes, targets and the codec,
    except with ``every_corpus``. Raises :class:`ConfigError` with the file, the key, and how to fix
    it.
    """
    project = read_project(path, profile, environment, overrides)
    path, values = project.path, project.values()
    values["text"] = with_files(values.get("text", {}), path.parent)
    values["sft"] = with_folders(values.get("sft", {}), path.parent)
    settings = _parsed(values, path)
    if not every_corpus:
        ended = settings.ended_consents
        check_starts(values, path.parent, settings.storage, ended)
        try:
            settings = _parsed(without_corpora(values, ended), path) if ended else settings
        except ConfigError as error:
            raise ConfigError(f"{error}\n(without corpora.{', corpora.'.join(ended)})") from None
    if settings.text.normalizer == "rules":
        tags = (corpus.language for corpus in settings.corpora.values())
        warn_of_languages(tags, settings.text.rules)
    return settings


def _parsed(values: Mapping[str, Any], path: Path) -> Settings:
    """The settings of a project file at ``path``. Raises :class:`ConfigError`."""
    settings = Settings.parse(values, str(path))
    settings._root = path.parent
    try:
        settings.check_corpora()
        settings.check_languages()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return settings
