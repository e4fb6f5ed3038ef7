"""Rollouts: the policy speaks, the panel judges. Token ids in, token ids and log-probabilities out.

The engine is the policy itself in this process, or a vLLM engine that is given the policy's weights
before each rollout (``engines.py``). A completion's seed follows from (recipe seed, step,
place in the global batch): the same whatever the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tts_assets.rlhf.engines import RolloutEngine
from tts_assets.rlhf.panel import Panel
from tts_assets.rlhf.prompts import RolloutPrompt
from tts_assets.rlhf.spoken import Spoken, Verdict
from tts_assets.serving.synthesis import Line, Synthesizer, decode
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request


@dataclass(frozen=True)
class Rollout:
    """One completion: prompt, tokens, sound, verdict."""

    request: Request
    completion: Completion
    spoken: Spoken
    verdict: Verdict


def completion_seed(seed: int, step: int, place: int) -> int:
    """63 bits that depend on all three."""
    digest = hashlib.blake2b(f"{seed}:{step}:{place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class RolloutWorker:
    """Makes and judges completions on one process."""

    def __init__(
        self,
        synthesizer: Synthesizer,
        engine: RolloutEngine,
        panel: Panel,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self.synthesizer = synthesizer
        self.engine = engine
        self.panel = panel
        self.sampling = sampling
        self.seed = seed

    def run(self, prompts: Sequence[RolloutPrompt], step: int, first_place: int) -> list[Rollout]:
        """Complete and judge ``prompts``, the first of which is at ``first_place`` globally.

        Every rank calls it at once, also one that has no prompts: they may share an engine.
        """
        requests = [
            self.synthesizer.request(
                Line(prompt.text, prompt.voice, completion_seed(self.seed, step, place)),
                self.sampling.seed,
                prompt.language,
            )
            for place, prompt in enumerate(prompts, start=first_place)
        ]
        completions = self.engine.complete(requests, self.sampling)
        spoken = self.listen(prompts, [completion.codes for completion in completions], completions)
        verdicts = self.panel.judge(spoken)
        return [
            Rollout(*parts) for parts in zip(requests, completions, spoken, verdicts, strict=True)
        ]

    def listen(
        self,
        prompts: Sequence[RolloutPrompt],
        codes: Sequence[NDArray[np.int64]],
        completions: Sequence[Completion],
    ) -> list[Spoken]:
        """One decode for all rewards; what never ended is not decoded, it scores zero anyway."""
        ended = [own if c.ended else own[:0] for own, c in zip(codes, completions, strict=True)]
        waves = decode(self.synthesizer.codec, ended, [prompt.voice for prompt in prompts])
        rate = self.synthesizer.sample_rate
        return [
            Spoken(prompt.text, wave, rate, completion.ended, prompt.voice, prompt.language)
            for prompt, wave, completion in zip(prompts, waves, completions, strict=True)
        ]
