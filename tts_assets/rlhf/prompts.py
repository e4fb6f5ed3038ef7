"""What the policy is asked to say: lines of a text file, and transcripts of code arrays.

Nothing of it may stand in the evaluation suite: a policy that is trained on its exam proves
nothing. A file that overlaps is refused; transcripts that do are left out, and counted.
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
from tts_assets.corpora.text import normalize as numbers_to_words
from tts_assets.rlhf.config import PromptsConfig
from tts_assets.rlhf.reward_config import RewardConfig, WerReward
from tts_assets.serving.config import Voice

SIGNS = 40  # tokens of a prompt that are neither text nor codes, at most


class PromptError(ConfigError):
    """Prompt texts that cannot be used: the message names them."""


class RolloutPrompt(Config):
    """A text to say, as training normalized it, and the voice prompt to say it after."""

    text: str
    language: str = "en"
    voice: Voice | None = None


@dataclass(frozen=True)
class Limits:
    """What the base model sets: ``tokens`` of a prompt that leave room for the longest answer,
    and codes a second."""

    tokens: int
    token_rate: float


@dataclass
class PromptSet:
    """The prompts, and how many texts were left out for which reason."""

    prompts: list[RolloutPrompt] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, prompt: RolloutPrompt, reason: str) -> None:
        """Take the prompt, or leave it out where there is a ``reason``."""
        if reason:
            self.left_out[reason] += 1
        else:
            self.prompts.append(prompt)

    @property
    def lines(self) -> str:
        """As JSON, a line a prompt."""
        return "".join(prompt.model_dump_json() + "\n" for prompt in self.prompts)

    @property
    def digest(self) -> str:
        """Of what a policy is trained on, in this order."""
        return hashlib.sha256(self.lines.encode()).hexdigest()

    def write(self, path: Path) -> None:
        path.write_text(self.lines)


def read_prompts(path: Path) -> list[RolloutPrompt]:
    """A ``prompts.jsonl``."""
    lines = path.read_text().splitlines()
    return [RolloutPrompt.parse(json.loads(line), str(path)) for line in lines]


def read_texts(path: Path) -> list[str]:
    """The lines of a text file; empty ones and ``#`` comments are skipped."""
    if not path.is_file():
        raise PromptError(f"{path}: no such file of prompt texts")
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def collect(
    config: PromptsConfig,
    texts: Sequence[str],
    arrays: Mapping[str, Path],
    suite: Iterable[str],
    limits: Limits,
    normalize: Callable[[str, str], str] = numbers_to_words,
) -> PromptSet:
    """All prompts of a recipe, in a fixed order. ``texts`` are the lines of its file;
    ``limits`` and ``normalize`` are those of the model and its training.

    Raises :class:`PromptError` if the file overlaps with the suite, or if nothing is left.
    """
    language = config.language
    examined = {normalize_for_match(text, language) for text in suite}
    refuse_overlap(texts, examined, language)
    found = PromptSet()
    for text in texts:
        prompt = RolloutPrompt(text=normalize(text, language), language=language)
        found.add(prompt, _left_out(config, limits, prompt, _words(prompt)))
    for corpus in config.corpora:
        table = CodeTable.of_split(arrays[corpus], "train")
        for prompt in _transcripts(table, config, limits.token_rate):
            words = _words(prompt)
            if words in examined:
                reason = "in the evaluation suite"
            elif config.voice_prompts and prompt.voice is None:
                reason = "no clip for its voice prompt"
            else:
                reason = _left_out(config, limits, prompt, words)
            found.add(prompt, reason)
    if not found.prompts:
        raise PromptError(f"no prompt is left; left out were {dict(found.left_out)}")
    return found


def refuse_unheard(prompts: Iterable[RolloutPrompt], rewards: Sequence[RewardConfig]) -> None:
    """Raise if a Whisper would have to hear a language that it does not know."""
    listening = [reward for reward in rewards if isinstance(reward, WerReward)]
    if not listening:
        return
    languages = {prompt.language for prompt in prompts}
    others = sorted(tag for tag in languages if spoken_language(tag) != "en")
    deaf = [reward for reward in listening if reward.only_english]
    if others and deaf:
        raise PromptError(
            f"there are prompts in {', '.join(others)}, but the wer reward listens with Whisper "
            f"{deaf[0].model or 'tiny.en'}, which knows English only: give it a multilingual "
            'model, for example model = "large-v3", or take prompts.languages = ["en"]'
        )
    if unknown := [tag for tag in others if not known_to_whisper(tag)]:
        raise PromptError(
            f"there are prompts in {', '.join(unknown)}, which Whisper does not know: give the "
            "corpus its language, or name those to take in prompts.languages"
        )


def refuse_overlap(texts: Sequence[str], examined: set[str], language: str) -> None:
    """Raise if one of ``texts`` says the same words as one of the suite's."""
    shared = [text for text in texts if normalize_for_match(text, language) in examined]
    if shared:
        raise PromptError(
            f"{len(shared)} prompt texts are in the evaluation suite, the first is {shared[0]!r}: "
            "take them out of the prompts, or the report means nothing"
        )


def _words(prompt: RolloutPrompt) -> str:
    """What a listener would have to hear."""
    return normalize_for_match(prompt.text, prompt.language)


def _left_out(config: PromptsConfig, limits: Limits, prompt: RolloutPrompt, words: str) -> str:
    """Why a prompt of these ``words`` cannot be used; empty if it can."""
    if len(prompt.text) < config.min_characters:
        return "shorter than min_characters"
    if len(prompt.text) > config.max_characters:
        return "longer than max_characters"
    if config.languages and not {prompt.language, spoken_language(prompt.language)} & {
        *config.languages
    }:
        return "language not allowed"
    if not words:
        return "no words to recognize"
    if _tokens_at_most(prompt) > limits.tokens:
        return "no room for an answer"
    return ""


def _tokens_at_most(prompt: RolloutPrompt) -> int:
    """A token of text is a byte or more."""
    voice = prompt.voice
    spoken = len(voice.text.encode()) + len(voice.codes) if voice else 0
    return len(prompt.text.encode()) + spoken + SIGNS


def _transcripts(
    table: CodeTable, config: PromptsConfig, token_rate: float
) -> Iterator[RolloutPrompt]:
    """Each transcript; with ``voice_prompts`` after the next clip that fits, None if none does."""
    following = _voice_rows(table, config, token_rate) if config.voice_prompts else {}
    for row, sample in enumerate(table.samples):
        if not sample["transcript"]:
            continue
        voice = None
        if row in following:
            other = table.samples[following[row]]
            voice = Voice(
                text=other["transcript"],
                codes=tuple(int(code) for code in table[following[row]]),
                speaker=other["speaker_id"],
                language=other["language"],
                source=other["id"],
            )
        yield RolloutPrompt(text=sample["transcript"], language=sample["language"], voice=voice)


def _voice_rows(table: CodeTable, config: PromptsConfig, token_rate: float) -> dict[int, int]:
    """Row -> the next row, in a circle, that is as long as ``voice_seconds`` asks, of the same
    speaker or of any; none for a row that has no other."""
    shortest, longest = config.voice_seconds
    seconds = np.diff(table.bounds) / token_rate
    fitting: dict[str, list[int]] = {}
    spoken: dict[str, list[int]] = {}
    for row, sample in enumerate(table.samples):
        if sample["transcript"]:
            speaker = sample["speaker_id"] if config.voice_of == "same" else ""
            spoken.setdefault(speaker, []).append(row)
            if shortest <= seconds[row] <= longest:
                fitting.setdefault(speaker, []).append(row)
    found = {}
    for speaker, rows in spoken.items():
        own = fitting.get(speaker, [])
        for row in rows:
            after = bisect_right(own, row)
            other = own[after % len(own)] if own else row
            if other != row:
                found[row] = other
    return found
