"""Configuration of preference pairs (``[preferences.<voice>]``) and of DPO (``[dpo.<name>]``).

Direct Preference Optimization: Rafailov et al. 2023, arXiv 2305.18290.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tts_assets.core.config import Config, ConfigError
from tts_assets.core.program import ProgramConfig
from tts_assets.rlhf.alarms import AlarmConfig
from tts_assets.rlhf.config import EngineProgram, RlhfProgram
from tts_assets.serving.config import Voice

if TYPE_CHECKING:
    from tts_assets.serving.served_model import SynthesisLine

PREFERENCES_FILE = "preferences.jsonl"


class PreferencesConfig(Config):
    """``[preferences.<voice>]``: pairs of syntheses of one text, of which one is preferred.

    The pairs are the votes of a blind test, or the best and the worst of the completions that a
    GRPO recipe would score: ``generations`` for each prompt of ``[rlhf.<rollouts>]``, by the
    serving model of its base, with its sampling and its rewards. The GRPO recipe itself need not be
    trained.
    """

    comparison: str = Field("", description="comparison whose blind test was voted on")
    votes: tuple[str, ...] = Field((), description="vote files of the listeners; may have * and ?")
    rollouts: str = Field("", description="rlhf recipe with the prompts and rewards, instead")
    pairs: int = Field(1000, gt=0, description="most prompts of the rollouts")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if bool(self.comparison) == bool(self.rollouts):
            raise ValueError(
                "set one source of the pairs: comparison and votes, for the votes of a blind test, "
                "or rollouts, for the rewards of an [rlhf] recipe"
            )
        if bool(self.votes) != bool(self.comparison):
            raise ValueError(
                "comparison needs votes, the files that listeners saved, and rollouts has none: "
                'write for example votes = ["votes/*.json"]'
            )
        return self

    def models(self, compared: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """The recipes whose syntheses or prompts the pairs have; ``compared``: by comparison."""
        return (self.rollouts,) if self.rollouts else compared[self.comparison]

    def vote_files(self, root: Path) -> list[Path]:
        """The vote files, sorted. Raises :class:`ConfigError` for a pattern without a file."""
        found: set[Path] = set()
        for pattern in self.votes:
            path = root / pattern
            files = sorted(path.parent.glob(path.name))
            if not files:
                raise ConfigError(f"{path}: there is no such vote file; save it from blind.html")
            found |= set(files)
        return sorted(found)


class DpoRecipe(Config):
    """DPO from the serving model of the SFT recipe ``base`` on the pairs ``preferences``.

    A hash of the text holds out a tenth of the pairs. The margin of the implicit rewards is
    measured on them before the first step and every ``save_every`` steps, when the policy also
    synthesizes some of their texts. With ``lora_rank`` low-rank adapters are trained and merged at
    the end; the reference is then the policy without adapters, not a second model in memory.
    """

    alarms: ClassVar[AlarmConfig] = AlarmConfig()
    iterations: ClassVar[int] = 1  # optimizer updates of a step

    base: str = Field(description="SFT recipe whose serving model is trained")
    preferences: str = Field(description="name of the pairs, a table [preferences.<name>]")
    steps: int = Field(200, gt=0, description="optimizer steps")
    pairs_per_step: int = Field(16, gt=0, description="pairs of a step, over all ranks")
    micro_batch: int = Field(4, gt=0, description="most pairs of a forward pass")
    learning_rate: float = Field(1e-6, gt=0, description="its largest value; with LoRA about 1e-5")
    beta: float = Field(0.1, gt=0, description="smaller: the policy may leave the base further")
    loss: Literal["sigmoid", "sigmoid_norm", "ipo"] = Field(
        "sigmoid", description="sigmoid_norm and ipo divide log-probabilities by the length"
    )
    lora_rank: int | None = Field(
        None, gt=0, description="rank of adapters (alpha: twice as much); unset: train all weights"
    )
    save_every: int = Field(50, gt=0, description="steps between checkpoints, evaluations, audio")
    stop_on_collapse: bool = Field(
        False, description="stop at the first alarm and publish the checkpoint before it"
    )
    seed: int = 777

    def identity(self) -> dict[str, Any]:
        """Returns the settings that determine the result, as JSON values."""
        return self.canonical(exclude={"preferences"})


class Answer(Config):
    """One synthesis of a pair: its codes, in whole frames, and whether the model ended it."""

    codes: tuple[int, ...]
    ended: bool
    model: str = Field("", description="serving model that synthesized it")


class PreferencePair(Config):
    """A text, its voice prompt, and two syntheses, of which ``chosen`` is preferred.

    ``margin``: the difference of their rewards, or the share of the votes for ``chosen``.
    """

    id: str
    text: str
    language: str
    description: str = ""
    voice: Voice | None = None
    chosen: Answer
    rejected: Answer
    margin: float = Field(ge=0)

    def line(self, seed: int = 0) -> SynthesisLine:
        """Returns the request for a synthesis of the text."""
        from tts_assets.serving.served_model import SynthesisLine  # with torch: 8 s of CPU

        return SynthesisLine(self.text, self.voice, seed, self.description, self.language)


def read_pairs(folder: Path) -> list[PreferencePair]:
    """Reads the pairs of an artifact. Raises :class:`ConfigError` for an invalid line."""
    path = folder / PREFERENCES_FILE
    with path.open(encoding="utf-8") as lines:  # str.splitlines would also split at U+2028
        return [PreferencePair.parse(json.loads(line), str(path)) for line in lines]


class VotedTrial(Config):
    """A trial of a blind test that listeners voted on.

    ``audio``: by model, the file that they heard, of ``chosen`` and of ``rejected``. ``reason``:
    why the trial gives no pair; empty if it may give one. ``margin``: the share of the listeners
    with a preference who chose ``chosen``.
    """

    id: str
    text: str
    language: str
    description: str = ""
    prompt_wav: Path | None = None
    prompt_text: str = ""
    seed: int
    chosen: str
    rejected: str
    audio: dict[str, Path]
    margin: float
    reason: str = ""


class PreferencesProgram(ProgramConfig):
    """Configuration of ``tts_assets.rlhf.preferences``.

    Either ``rollouts``, the program of the GRPO recipe, and ``pairs``, the most prompts; or
    ``trials`` with ``models``, the folders of the serving models.
    """

    rollouts: RlhfProgram | None = None
    pairs: int = 0
    trials: tuple[VotedTrial, ...] = ()
    models: dict[str, Path] = Field(default_factory=dict)

    def engine_program(self) -> EngineProgram | None:
        """Returns the vLLM program of the rollouts; None without one."""
        return self.rollouts.engine_program() if self.rollouts else None


@dataclass(frozen=True)
class PairSource:
    """Where the pairs of an asset come from.

    ``known`` and ``artifacts``, by name, determine them; ``program`` makes them in a work folder.
    """

    known: Mapping[str, Any]
    artifacts: Mapping[str, Any]
    program: Callable[[Path], PreferencesProgram]


class DpoProgram(ProgramConfig):
    """Configuration of ``tts_assets.rlhf.dpo``. ``preferences``: a folder of pairs."""

    name: str
    recipe: DpoRecipe
    serving_model: Path
    preferences: Path


def check_preferences(
    preferences: Mapping[str, PreferencesConfig],
    dpo: Mapping[str, DpoRecipe],
    rlhf: Set[str],
    compared: Mapping[str, tuple[str, ...]],
    external: Set[str],
) -> None:
    """Raise ValueError for preferences that cannot be made, and for unknown ones.

    ``rlhf`` and ``external``: the names of these recipes; ``compared``: models by comparison.
    """
    for name, recipe in dpo.items():
        if recipe.preferences not in preferences:
            raise ValueError(
                f"dpo.{name}.preferences is {recipe.preferences!r}, which are nowhere: add a table "
                f"[preferences.{recipe.preferences}]; known preferences: {sorted(preferences)}"
            )
    for name, config in preferences.items():
        for key, value, known in (
            ("rollouts", config.rollouts, rlhf),
            ("comparison", config.comparison, set(compared)),
        ):
            if value and value not in known:
                raise ValueError(
                    f"preferences.{name}.{key} is {value!r}, which is none; known: {sorted(known)}"
                )
    for name, config in preferences.items():
        if found := external & set(config.models(compared)):
            raise ValueError(
                f"preferences.{name}: comparison {config.comparison!r} has the external model "
                f"{min(found)!r}, whose speech has no codes: compare recipes of [sft], [rlhf] or "
                "[dpo]"
            )
        if name in used_by(name, preferences, dpo, compared):
            raise ValueError(
                f"preferences.{name} depend on themselves: {config.comparison!r} compares a dpo "
                "recipe that is trained on them; give that recipe other preferences"
            )


def used_by(
    name: str,
    preferences: Mapping[str, PreferencesConfig],
    dpo: Mapping[str, DpoRecipe],
    compared: Mapping[str, tuple[str, ...]],
) -> set[str]:
    """Returns the preferences that the models of ``preferences.<name>`` are trained on."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        models = preferences[waiting.pop()].models(compared)
        new = {dpo[model].preferences for model in models if model in dpo} - found
        found |= new
        waiting += new
    return found
