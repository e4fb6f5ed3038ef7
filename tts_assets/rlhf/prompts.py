"""Prompts of the rollouts: lines of a text file, and transcripts of code arrays.

No prompt may be in the evaluation suite: a report on training texts means nothing. A text file with
such a line is rejected. Such transcripts are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tts_assets.arrays.arrays import CodeTable
from tts_assets.audio_models.wer import normalize_for_match
from tts_assets.audio_models.whisper import known_to_whisper, spoken_language
from tts_assets.core.config import Config, ConfigError
from tts_assets.corpora.text import Normalizer
from tts_assets.normalization.front_end import normalize as numbers_to_words
from tts_assets.normalization.front_end import unread
from tts_assets.rlhf.config import LONGEST_PROMPT, PromptsConfig, RlhfRecipe
from tts_assets.rlhf.reward_config import RewardConfig, WerReward
from tts_assets.serving.config import Voice
from tts_assets.serving.served_model import read_card

MAX_SPECIAL_TOKENS = 40  # tokens of a prompt that are neither text nor codes


class PromptError(ConfigError):
    """Prompt texts cannot be used. The message names them."""


class RolloutPrompt(Config):
    """A text to synthesize, normalized as in training, its language, and its voice prompt."""

    text: str
    language: str = "en"
    voice: Voice | None = None


@dataclass(frozen=True)
class Limits:
    """Limits of the base model.

    ``tokens``: the longest prompt that leaves enough positions for the longest completion.
    ``token_rate``: codes a second.
    """

    tokens: int
    token_rate: float


@dataclass
class PromptSet:
    """The prompts, and the number of texts that were left out for each reason."""

    prompts: list[RolloutPrompt] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, prompt: RolloutPrompt, reason: str) -> None:
        """Adds the prompt; with a ``reason`` the prompt is left out and counted instead."""
        if reason:
            self.left_out[reason] += 1
        else:
            self.prompts.append(prompt)

    @property
    def lines(self) -> str:
        """The prompts as JSON, one a line."""
        return "".join(prompt.model_dump_json() + "\n" for prompt in self.prompts)

    @property
    def digest(self) -> str:
        """SHA-256 of :attr:`lines`; part of the fingerprint."""
        return hashlib.sha256(self.lines.encode()).hexdigest()

    def write(self, path: Path) -> Path:
        """Writes a ``prompts.jsonl``. Returns ``path``."""
        path.write_text(self.lines, encoding="utf-8")
        return path


def read_prompts(path: Path) -> list[RolloutPrompt]:
    """Reads a ``prompts.jsonl``. Raises :class:`ConfigError` for an invalid line."""
    with path.open(encoding="utf-8") as lines:  # str.splitlines would also split at U+2028
        return [RolloutPrompt.parse(json.loads(line), str(path)) for line in lines]


def read_texts(path: Path) -> list[str]:
    """Reads the lines of a text file, without empty lines and ``#`` comments.

    Raises :class:`PromptError` if there is no such file.
    """
    if not path.is_file():
        raise PromptError(f"{path}: there is no such file of prompt texts")
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def suite_texts(path: Path) -> list[str]:
    """The texts of a published suite."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def recipe_prompts(
    recipe: RlhfRecipe,
    root: Path,
    serving_model: Path,
    suite: Path,
    arrays: Mapping[str, Path],
    caches: Path,
) -> PromptSet:
    """Returns the prompts of a recipe from artifacts.

    Args:
        recipe: the recipe.
        root: folder of a relative text file.
        serving_model: folder of the base model.
        suite: folder of the evaluation suite.
        arrays: folders of the code arrays, by corpus.
        caches: folder of the text normalizer's cache.

    Raises :class:`PromptError` as :func:`collect` and :func:`check_languages` do.
    """
    card = read_card(serving_model)
    positions = json.loads((serving_model / "config.json").read_text())["max_position_embeddings"]
    limits = Limits(positions - recipe.sampling.max_tokens, card.token_rate)
    found = collect(
        recipe.prompts,
        recipe_texts(recipe.prompts, root),
        arrays,
        suite_texts(suite / "suite.jsonl"),
        limits,
        Normalizer(card.text, caches),
    )
    check_languages(found.prompts, recipe.rewards)
    return found


def recipe_texts(config: PromptsConfig, root: Path) -> list[str]:
    """Reads the lines of the text file that ``config`` names; empty without one."""
    return read_texts(root / config.texts) if config.texts else []


def collect(
    config: PromptsConfig,
    texts: Sequence[str],
    arrays: Mapping[str, Path],
    suite: Iterable[str],
    limits: Limits,
    normalize: Callable[[str, str], str] = numbers_to_words,
) -> PromptSet:
    """Returns all prompts of a recipe in a fixed order.

    Args:
        config: sources and filters.
        texts: lines of the recipe's text file.
        arrays: folders of the code arrays, by corpus.
        suite: texts of the evaluation suite.
        limits: limits of the base model.
        normalize: text and language -> text as in the model's training.

    Raises :class:`PromptError` if a line of the file is in the suite, or if no prompt is left.
    """
    language = config.language
    suite_words = {normalize_for_match(text, language) for text in suite}
    check_overlap(texts, suite_words, language)
    found = PromptSet()
    for text in texts:
        prompt = RolloutPrompt(text=normalize(text, language), language=language)
        found.add(prompt, _left_out(config, limits, prompt, _words(prompt)))
    for corpus in config.corpora:
        table = CodeTable.of_split(arrays[corpus], "train")
        for prompt in _transcripts(table, config, limits.token_rate):
            words = _words(prompt)
            if words in suite_words:
                reason = "in the evaluation suite"
            elif config.voice_prompts and prompt.voice is None:
                reason = "no clip for its voice prompt"
            else:
                reason = _left_out(config, limits, prompt, words)
            found.add(prompt, reason)
    if not found.prompts:
        raise PromptError(f"no prompt is left; left out: {dict(found.left_out)}")
    return found


def check_languages(prompts: Iterable[RolloutPrompt], rewards: Sequence[RewardConfig]) -> None:
    """Raises :class:`PromptError` if a WER reward does not know the language of a prompt."""
    wer_rewards = [reward for reward in rewards if isinstance(reward, WerReward)]
    if not wer_rewards:
        return
    languages = {prompt.language for prompt in prompts}
    others = sorted(tag for tag in languages if spoken_language(tag) != "en")
    english = [reward for reward in wer_rewards if reward.only_english]
    if others and english:
        raise PromptError(
            f"there are prompts in {', '.join(others)}, but {english[0].model or 'tiny.en'}, the "
            "Whisper model of the wer reward, knows English only: use a multilingual model, for "
            'example model = "large-v3", or set prompts.languages = ["en"]'
        )
    if unknown := [tag for tag in others if not known_to_whisper(tag)]:
        raise PromptError(
            f"there are prompts in {', '.join(unknown)}, which Whisper does not know: set the "
            "language of the corpus, or list the languages to use in prompts.languages"
        )


def check_overlap(texts: Sequence[str], suite_words: set[str], language: str) -> None:
    """Raises :class:`PromptError` if one of ``texts`` has the words of a suite text."""
    shared = [text for text in texts if normalize_for_match(text, language) in suite_words]
    if shared:
        raise PromptError(
            f"{len(shared)} prompt texts are in the evaluation suite, the first is {shared[0]!r}: "
            "remove them from the prompts, or the report is meaningless"
        )


def _words(prompt: RolloutPrompt) -> str:
    """Returns the normalized words that the WER reward compares."""
    return normalize_for_match(prompt.text, prompt.language)


def _left_out(config: PromptsConfig, limits: Limits, prompt: RolloutPrompt, words: str) -> str:
    """Returns the reason why a prompt cannot be used; empty if it can."""
    if len(prompt.text) > LONGEST_PROMPT:
        return f"longer than {LONGEST_PROMPT} characters"
    if config.languages and not {prompt.language, spoken_language(prompt.language)} & {
        *config.languages
    }:
        return "language not allowed"
    if not words:
        return "no words to recognize"
    if unread(prompt.text):
        return "unread symbols"
    if _max_tokens(prompt) > limits.tokens:
        return "no room for an answer"
    return ""


def _max_tokens(prompt: RolloutPrompt) -> int:
    """Returns an upper bound of the prompt's tokens: a token of text is one byte or more."""
    voice = prompt.voice
    voice_tokens = len(voice.text.encode()) + len(voice.codes) if voice else 0
    return len(prompt.text.encode()) + voice_tokens + MAX_SPECIAL_TOKENS


def _transcripts(
    table: CodeTable, config: PromptsConfig, token_rate: float
) -> Iterator[RolloutPrompt]:
    """Yields a prompt for each transcript, without voice prompt if no clip fits."""
    voice_rows = _voice_rows(table, config, token_rate) if config.voice_prompts else {}
    for row, sample in enumerate(table.samples):
        if not sample["transcript"]:
            continue
        voice = None
        if row in voice_rows:
            other = table.samples[voice_rows[row]]
            voice = Voice(
                text=other["transcript"],
                codes=tuple(int(code) for code in table[voice_rows[row]]),
                speaker=other["speaker_id"],
                language=other["language"],
                source=other["id"],
            )
        yield RolloutPrompt(text=sample["transcript"], language=sample["language"], voice=voice)


def _voice_rows(table: CodeTable, config: PromptsConfig, token_rate: float) -> dict[int, int]:
    """Returns the row of the voice prompt for each row that has one.

    It is the next row of the same speaker (or of any), cyclically, whose clip is as long as
    ``voice_seconds`` asks.
    """
    shortest, longest = config.voice_seconds
    seconds = np.diff(table.bounds) / token_rate
    fitting: dict[str, list[int]] = {}
    by_speaker: dict[str, list[int]] = {}
    for row, sample in enumerate(table.samples):
        if sample["transcript"]:
            speaker = sample["speaker_id"] if config.voice_speaker == "same" else ""
            by_speaker.setdefault(speaker, []).append(row)
            if shortest <= seconds[row] <= longest:
                fitting.setdefault(speaker, []).append(row)
    found = {}
    for speaker, rows in by_speaker.items():
        candidates = fitting.get(speaker, [])
        for row in rows:
            after = bisect_right(candidates, row)
            other = candidates[after % len(candidates)] if candidates else row
            if other != row:
                found[row] = other
    return found
