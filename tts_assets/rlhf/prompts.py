"""What the policy is asked to say: lines of a text file, and transcripts of code arrays.

Nothing of it may stand in the evaluation suite: a policy that is trained on its exam proves
nothing. A file that overlaps is refused; transcripts that do are left out, and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tts_assets.arrays.arrays import CodeTable
from tts_assets.config import Config, ConfigError
from tts_assets.corpora.text import normalize as numbers_to_words
from tts_assets.hearing.text_match import normalize_for_match
from tts_assets.rlhf.config import PromptsConfig
from tts_assets.rlhf.reward_config import RewardConfig, WerReward
from tts_assets.serving.config import Voice


class PromptError(ConfigError):
    """Prompt texts that cannot be used: the message names them."""


class RolloutPrompt(Config):
    """A text to say, as training normalized it, and the voice prompt to say it after."""

    text: str
    language: str = "en"
    voice: Voice | None = None


@dataclass
class PromptSet:
    """The prompts, and how many texts were left out for which reason."""

    prompts: list[RolloutPrompt] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def write(self, path: Path) -> None:
        path.write_text("".join(prompt.model_dump_json() + "\n" for prompt in self.prompts))


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
    normalize: Callable[[str, str], str] = numbers_to_words,
) -> PromptSet:
    """All prompts of a recipe, in a fixed order. ``texts`` are the lines of its file;
    ``normalize`` is that of the model's training.

    Raises :class:`PromptError` if the file overlaps with the suite, or if nothing is left.
    """
    language = config.language
    examined = {normalize_for_match(text, language) for text in suite}
    refuse_overlap(texts, examined, language)
    found = PromptSet()
    for text in texts:
        _add(found, config, RolloutPrompt(text=normalize(text, language), language=language))
    for corpus in config.corpora:
        for prompt in _transcripts(CodeTable.of_split(arrays[corpus], "train"), config):
            if normalize_for_match(prompt.text, prompt.language) in examined:
                found.left_out["in the evaluation suite"] += 1
            else:
                _add(found, config, prompt)
    if not found.prompts:
        raise PromptError(f"no prompt is left; left out were {dict(found.left_out)}")
    return found


def refuse_unheard(prompts: Iterable[RolloutPrompt], rewards: Sequence[RewardConfig]) -> None:
    """Raise if a Whisper that knows English only would have to hear another language."""
    others = sorted({prompt.language for prompt in prompts} - {"en"})
    deaf = [r for r in rewards if isinstance(r, WerReward) and r.only_english]
    if others and deaf:
        raise PromptError(
            f"there are prompts in {', '.join(others)}, but the wer reward listens with Whisper "
            f"{deaf[0].model or 'tiny.en'}, which knows English only: give it a multilingual "
            'model, for example model = "large-v3", or take prompts.languages = ["en"]'
        )


def refuse_overlap(texts: Sequence[str], examined: set[str], language: str) -> None:
    """Raise if one of ``texts`` says the same words as one of the suite's."""
    shared = [text for text in texts if normalize_for_match(text, language) in examined]
    if shared:
        raise PromptError(
            f"{len(shared)} prompt texts are in the evaluation suite, the first is {shared[0]!r}: "
            "take them out of the prompts, or the report means nothing"
        )


def _add(found: PromptSet, config: PromptsConfig, prompt: RolloutPrompt) -> None:
    reason = _left_out(config, prompt)
    if reason:
        found.left_out[reason] += 1
    else:
        found.prompts.append(prompt)


def _left_out(config: PromptsConfig, prompt: RolloutPrompt) -> str:
    """Why a prompt cannot be used; empty if it can."""
    if len(prompt.text) < config.min_characters:
        return "shorter than min_characters"
    if len(prompt.text) > config.max_characters:
        return "longer than max_characters"
    if config.languages and prompt.language not in config.languages:
        return "language not allowed"
    return ""


def _transcripts(table: CodeTable, config: PromptsConfig) -> Iterator[RolloutPrompt]:
    """Each transcript; with ``voice_prompts`` after the next sample of the same speaker."""
    following = _next_of_speaker(table.samples)
    for row, sample in enumerate(table.samples):
        if not sample["transcript"]:
            continue
        voice = None
        if config.voice_prompts and row in following:
            other = table.samples[following[row]]
            voice = Voice(
                text=other["transcript"],
                codes=tuple(int(code) for code in table[following[row]]),
                speaker=other["speaker_id"],
                language=other["language"],
                source=other["id"],
            )
        yield RolloutPrompt(text=sample["transcript"], language=sample["language"], voice=voice)


def _next_of_speaker(samples: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Row -> the next row of the same speaker, in a circle; speakers of one sample have none."""
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        if sample["transcript"]:
            rows.setdefault(sample["speaker_id"], []).append(row)
    return {
        row: own[(place + 1) % len(own)]
        for own in rows.values()
        if len(own) > 1
        for place, row in enumerate(own)
    }
