"""The policy of a GRPO run: what it is asked to say, what it says, and what is kept of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset  # type: ignore[import-untyped]
from numpy.typing import NDArray

from tts_assets.program import Run
from tts_assets.rlhf.config import RlhfProgram
from tts_assets.rlhf.engines import RolloutEngine
from tts_assets.rlhf.heldout import HeldOut, hold_out
from tts_assets.rlhf.listening import FOLDER, save_audio, spread
from tts_assets.rlhf.metrics import record_of
from tts_assets.rlhf.panel import Panel
from tts_assets.rlhf.prompts import read_prompts, refuse_unheard
from tts_assets.rlhf.rollouts import Rollout, RolloutWorker
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine
from tts_assets.speechlm.model import SpeechLM

if TYPE_CHECKING:
    from trl import GRPOTrainer


def own_lm(synthesizer: Synthesizer) -> SpeechLM:
    """The model that is trained: that of the synthesizer."""
    assert isinstance(synthesizer.engine, TransformersEngine)
    return synthesizer.engine.lm


class Policy:
    """What TRL calls: completions and rewards for the prompts of this process."""

    def __init__(
        self, run: Run, program: RlhfProgram, synthesizer: Synthesizer, engine: RolloutEngine
    ) -> None:
        self.run, self.recipe = run, program.recipe
        found = read_prompts(program.prompts)
        refuse_unheard(found, self.recipe.rewards)
        self.prompts, held_out = hold_out(found, self.recipe.heldout)
        self.synthesizer, self.engine = synthesizer, engine
        self.lm = own_lm(synthesizer)
        self.panel = Panel.open(self.recipe, synthesizer, run.rank)
        sampling, seed = self.recipe.sampling, self.recipe.seed
        self.worker = RolloutWorker(synthesizer, engine, self.panel, sampling, seed)
        self.held_out = HeldOut(run, self.recipe, self.worker, held_out)

    def dataset(self) -> Dataset:
        """The prompts of every step in order, as rows ``{"prompt": index}``."""
        count = self.recipe.steps * self.recipe.prompts_per_step
        order = prompt_order(len(self.prompts), count, self.recipe.seed)
        return Dataset.from_dict({"prompt": [str(index) for index in order]})

    def rollout(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """TRL's ``rollout_func``: ``prompts`` are indices, each as often as it has generations."""
        step = trainer.state.global_step
        if self.held_out.due(step):
            self.held_out.measure(step)
        chosen = [self.prompts[int(index)] for index in prompts]
        rollouts = self.worker.run(chosen, step, first_place=self.run.rank * len(prompts))
        if self.run.is_main and self.due(step):
            self.keep(step, rollouts)
        return {
            "prompt_ids": [r.request.prompt.tolist() for r in rollouts],
            "completion_ids": [r.completion.token_ids.tolist() for r in rollouts],
            "logprobs": [r.completion.logprobs.tolist() for r in rollouts],
            "verdict": [record_of(r) for r in rollouts],
        }

    def due(self, step: int) -> bool:
        """Whether the completions of this update are kept as audio."""
        every = self.recipe.audio_every
        return self.recipe.keep_audio > 0 and (step // self.recipe.iterations) % every == 0

    def keep(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Save some of the completions for listening."""
        kept = [rollouts[place] for place in spread(len(rollouts), self.recipe.keep_audio)]
        heard = [(one.spoken, one.verdict) for one in kept]
        save_audio(self.run.result_dir / FOLDER, step, heard, self.synthesizer.provenance)


def prompt_order(prompts: int, count: int, seed: int) -> NDArray[np.int64]:
    """``count`` prompt indices: all prompts in random order, then again in another."""
    epochs = -(-count // prompts)
    orders = [np.random.default_rng([seed, epoch]).permutation(prompts) for epoch in range(epochs)]
    return np.concatenate(orders)[:count]
