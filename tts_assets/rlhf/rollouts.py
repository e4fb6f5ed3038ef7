"""Rollouts: an engine completes prompts, the codec decodes them, reward functions score them.

The engine is the policy itself, or vLLM for all ranks.

The seed of a completion follows from the recipe's seed, the step, and the index in the global
batch. It does not depend on the number of ranks.

Held-out prompts are chosen by a hash of their text: neither the order of the prompts nor other
prompts change the choice. Each evaluation uses the same texts and seeds, so that only the policy
differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from tts_assets.audio_models.wer import normalize_for_match
from tts_assets.core.accounting import HashSplit, is_validation
from tts_assets.core.compute import visible_devices
from tts_assets.core.config import ConfigError
from tts_assets.core.processes import LOOPBACK, Server, ServerDied, free_port
from tts_assets.core.program import METRICS_FILE, Run, read_metrics
from tts_assets.rlhf.config import IMPORTANCE_CAP, EngineProgram, HeldOutConfig, VllmRollouts
from tts_assets.rlhf.engine import LOG, hosted, service_address
from tts_assets.rlhf.engine_client import EngineClient, EngineError, weight_sender
from tts_assets.rlhf.prompts import PromptError, RolloutPrompt
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.rewards import DecodedCompletion, RewardResult
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine, decode
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request
from tts_assets.speechlm.model import SpeechLM

GATHER_TIMEOUT = timedelta(days=1)  # other ranks wait for rank 0, which gives the engine up first
# Largest mean difference of log-probabilities, nats a token: float32 differs by 1e-7, an output
# matrix of the previous step by 0.8.
MAX_LOGPROB_GAP = 0.1
HELD_OUT_STEP = -1  # in the seeds of held-out completions: not a step of training
HELD_OUT_SALT = "1"  # of the hash that chooses held-out texts
SUFFIX = "_heldout"  # of the metrics of held-out prompts


class RolloutsStopped(Exception):
    """The run was asked to stop while the engine was not available."""


class RolloutEngine(Protocol):
    """Completes the prompts of this rank with the current weights of the policy."""

    def complete(self, requests: Sequence[Request], sampling: SamplingConfig) -> list[Completion]:
        """Returns one completion for each request. All ranks call it together."""
        ...

    def metrics(self) -> dict[str, float]:
        """Returns metrics of the last rollout."""
        ...


class PolicyEngine:
    """The policy in this process."""

    def __init__(self, lm: SpeechLM) -> None:
        self.engine = TransformersEngine(lm)

    def complete(self, requests: Sequence[Request], sampling: SamplingConfig) -> list[Completion]:
        """Returns one completion for each request."""
        return self.engine.complete(requests, sampling, None) if requests else []

    def metrics(self) -> dict[str, float]:
        """Returns no metrics."""
        return {}


class VllmRolloutEngine:
    """A vLLM engine for all ranks.

    Rank 0 asks it for the requests of all ranks in one batch, in the order of the ranks: the tokens
    do not depend on the number of ranks.
    """

    def __init__(self, run: Run, lm: SpeechLM, client: EngineClient | None) -> None:
        """``client`` is None on all ranks but rank 0."""
        self.run, self.lm, self.client = run, lm, client
        several = run.world_size > 1
        self.group = dist.new_group(backend="gloo", timeout=GATHER_TIMEOUT) if several else None
        self.logprob_gap = 0.0
        if client is not None:
            self.sender = weight_sender(lm.model, client.config, client.folder)

    def complete(self, requests: Sequence[Request], sampling: SamplingConfig) -> list[Completion]:
        """Returns one completion for each request of this rank.

        Raises :class:`EngineError` or :class:`RolloutsStopped`, on all ranks together.
        """
        all_requests = self._gather(list(requests))
        answer = self._scatter(self._request(all_requests, sampling) if self.client else None)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def metrics(self) -> dict[str, float]:
        """Returns durations, losses of the engine, and the gap of log-probabilities (rank 0)."""
        if self.client is None:
            return {}
        return {
            "engine_push_seconds": round(self.client.push_seconds, 3),
            "engine_rollout_seconds": round(self.client.rollout_seconds, 3),
            "engine_lost": float(self.client.lost),
            "engine_logprob_gap": float(f"{self.logprob_gap:.3g}"),
        }

    def _request(
        self, by_rank: list[list[Request]], sampling: SamplingConfig
    ) -> list[list[Completion] | Exception]:
        """Returns the completions of each rank, or the same error for all ranks."""
        assert self.client is not None
        requests = [request for own in by_rank for request in own]
        try:
            completions = self.client.complete(requests, sampling, self.lm.vocabulary, self.sender)
        except (EngineError, RolloutsStopped) as error:
            return [error] * len(by_rank)
        self._compare(requests[0], completions[0])
        rest = iter(completions)
        return [[next(rest) for _ in own] for own in by_rank]

    def _compare(self, request: Request, completion: Completion) -> None:
        """Checks with one completion that the engine has the weights of the policy."""
        difference = full_logprobs(self.lm, request, completion) - torch.from_numpy(
            completion.logprobs
        )
        self.logprob_gap = float(difference.abs().mean())
        if self.logprob_gap > MAX_LOGPROB_GAP:
            self.run.note(
                "the engine's log-probabilities differ from the policy's by "
                f"{self.logprob_gap:.2f} nats a token: the engine has other weights"
            )

    def _gather(self, own: list[Request]) -> list[list[Request]]:
        """Returns the requests of each rank, on rank 0."""
        if self.group is None:
            return [own]
        by_rank: list[list[Request]] = [[] for _ in range(self.run.world_size)]
        dist.gather_object(own, by_rank if self.run.is_main else None, 0, self.group)
        return by_rank

    def _scatter(
        self, answers: list[list[Completion] | Exception] | None
    ) -> list[Completion] | Exception:
        """Returns the answer of this rank; rank 0 has the answers of all."""
        if self.group is None:
            assert answers is not None
            return answers[0]
        own: list[list[Completion] | Exception] = [[]]
        dist.scatter_object_list(own, answers, 0, self.group)
        return own[0]


@torch.no_grad()
def full_logprobs(lm: SpeechLM, request: Request, completion: Completion) -> Tensor:
    """Returns the policy's log-probabilities of a completion, over the whole vocabulary, (L,)."""
    prompt = torch.from_numpy(request.prompt)
    completed = torch.from_numpy(completion.token_ids)
    ids = torch.cat([prompt, completed])[None].to(lm.model.device)  # (1, P + L)
    logits = lm.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]  # (L, V)
    return logits.float().log_softmax(dim=1).cpu().gather(1, completed[:, None])[:, 0]


def importance_ratio(lm: SpeechLM, request: Request, completion: Completion) -> Tensor:
    """Returns the policy's probability of a completion divided by the engine's, a scalar.

    0 above :data:`IMPORTANCE_CAP`.
    """
    gap = full_logprobs(lm, request, completion) - torch.from_numpy(completion.logprobs)
    ratio = gap.sum().exp()
    return ratio if ratio <= IMPORTANCE_CAP else torch.zeros(())


@contextmanager
def open_engine(run: Run, program: EngineProgram | None, lm: SpeechLM) -> Iterator[RolloutEngine]:
    """Opens the rollout engine for the duration of the ``with`` block.

    Args:
        run: the trainer's run.
        program: the vLLM engine; None: the policy completes its own prompts.
        lm: the policy.

    An engine that a launcher runs is used. Otherwise rank 0 hosts one itself.
    """
    if program is None:
        yield PolicyEngine(lm)
        return
    if not run.is_main:
        yield VllmRolloutEngine(run, lm, None)
        return
    address = service_address()
    if address is not None:
        url = f"http://{address[0]}:{address[1]}"
        yield VllmRolloutEngine(run, lm, _client(run, program, url, None))
        return
    devices = spare_devices(run, program.engine)
    with hosted(program, LOOPBACK, free_port(), lambda line: None, devices) as server:
        yield VllmRolloutEngine(run, lm, _client(run, program, server.url, server))


def spare_devices(run: Run, config: VllmRollouts) -> list[str] | None:
    """Returns the GPUs of the engine: those after the ranks' GPUs, or the first one, shared.

    None on a machine without GPUs. Raises :class:`ConfigError` if there are too few.
    """
    devices = visible_devices()
    if not devices:
        return None
    if config.shares_gpu:
        return devices[:1]
    spare = devices[run.local_world_size :][: config.gpus]
    if len(spare) < config.gpus:
        left = len(devices) - config.gpus
        remedy = (
            f"start at most {left} processes"
            if left > 0
            else 'let the engine share a GPU with engine = { kind = "vllm", gpus = 0, gpu_memory = '
            '0.3 }, or generate with the policy itself, engine = { kind = "transformers" }'
        )
        raise ConfigError(
            f"{run.local_world_size} processes and an engine of {config.gpus} GPUs need more than "
            f"the {len(devices)} of this machine: {remedy}"
        )
    return spare


def _client(run: Run, program: EngineProgram, url: str, server: Server | None) -> EngineClient:
    def check() -> None:
        if run.stop_requested:
            raise RolloutsStopped("the run was asked to stop while the engine was not available")
        try:
            if server is not None:
                server.check()
        except ServerDied as error:
            raise EngineError(f"{error}\nThe whole log is {program.run_dir / LOG}") from None

    return EngineClient(url, program, check, run.note)


@dataclass(frozen=True)
class Rollout:
    """One completion: its request, its tokens, its waveform, and its rewards."""

    request: Request
    completion: Completion
    decoded: DecodedCompletion
    result: RewardResult


def completion_seed(seed: int, step: int, index: int) -> int:
    """Returns a seed of 63 bits that depends on all three arguments."""
    digest = hashlib.blake2b(f"{seed}:{step}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class RolloutWorker:
    """Generates and scores the completions of one rank."""

    def __init__(
        self,
        synthesizer: Synthesizer,
        engine: RolloutEngine,
        rewards: RewardExecutor,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self.synthesizer = synthesizer
        self.engine = engine
        self.rewards = rewards
        self.sampling = sampling
        self.seed = seed

    def run(self, prompts: Sequence[RolloutPrompt], step: int, first_index: int) -> list[Rollout]:
        """Completes and scores prompts, in their order.

        All ranks call it together, even those without prompts: they may share an engine.

        Args:
            prompts: the prompts of this rank.
            step: part of the completions' seeds.
            first_index: index of the first prompt in the global batch.
        """
        requests = [
            self.synthesizer.request(
                SynthesisLine(
                    prompt.text,
                    prompt.voice,
                    completion_seed(self.seed, step, index),
                    language=prompt.language,
                ),
                self.sampling.seed,
            )
            for index, prompt in enumerate(prompts, start=first_index)
        ]
        completions = self.engine.complete(requests, self.sampling)
        decoded = self.decode(prompts, completions)
        results = self.rewards.score(decoded)
        return [
            Rollout(*parts) for parts in zip(requests, completions, decoded, results, strict=True)
        ]

    def decode(
        self, prompts: Sequence[RolloutPrompt], completions: Sequence[Completion]
    ) -> list[DecodedCompletion]:
        """Decodes the completions in one batch.

        A completion without an end token scores 0 in all rewards, so it is not decoded: its
        waveform is empty.
        """
        empty = np.zeros(0, dtype=np.int64)
        codes: list[NDArray[np.int64]] = [c.codes if c.ended else empty for c in completions]
        waves = decode(self.synthesizer.codec, codes, [prompt.voice for prompt in prompts])
        rate = self.synthesizer.sample_rate
        return [
            DecodedCompletion(
                prompt.text, wave, rate, completion.ended, prompt.voice, prompt.language
            )
            for prompt, wave, completion in zip(prompts, waves, completions, strict=True)
        ]


def hold_out(
    prompts: Sequence[RolloutPrompt], config: HeldOutConfig
) -> tuple[list[RolloutPrompt], list[RolloutPrompt]]:
    """Splits prompts into training prompts and held-out prompts.

    Prompts with the same words are on the same side. Each held-out text occurs once.

    Raises :class:`PromptError` if no prompt is left for training.
    """
    split = HashSplit(fraction=config.fraction, salt=HELD_OUT_SALT)
    by_text: dict[str, RolloutPrompt] = {}
    for prompt in prompts:
        by_text.setdefault(text_key(prompt), prompt)
    ordered = sorted(by_text, key=_text_order)
    held_out = [text for text in ordered if is_validation(text, split)][: config.prompts]
    excluded = set(held_out)
    training = [prompt for prompt in prompts if text_key(prompt) not in excluded]
    if not training:
        raise PromptError(
            f"all {len(by_text)} prompts are held out: give more, or a smaller heldout.fraction"
        )
    return training, [by_text[text] for text in held_out]


def text_key(prompt: RolloutPrompt) -> str:
    """Returns the language and the normalized words: equal for prompts of the same text."""
    return f"{prompt.language}:{normalize_for_match(prompt.text, prompt.language)}"


def _text_order(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


class HeldOutEvaluation:
    """Evaluates the policy on held-out prompts. All ranks call it at the same steps."""

    def __init__(
        self,
        run: Run,
        worker: RolloutWorker,
        prompts: Sequence[RolloutPrompt],
        samples: int,
        every: int,
    ) -> None:
        """Prepares the evaluation.

        Args:
            run: receives the metrics.
            worker: completes and scores the prompts of this rank.
            prompts: all held-out prompts.
            samples: completions of each prompt.
            every: optimizer updates between two evaluations.
        """
        self.run, self.worker, self.every = run, worker, every
        self.prompts = [prompt for prompt in prompts for _ in range(samples)]

    def due(self, update: int) -> bool:
        """Whether the policy is evaluated before this update."""
        return update % self.every == 0

    def measure(self, update: int) -> None:
        """Logs the mean reward and WER after ``update`` updates."""
        if not self.prompts:
            return
        size = -(-len(self.prompts) // self.run.world_size)
        first = self.run.rank * size
        rollouts = self.worker.run(self.prompts[first : first + size], HELD_OUT_STEP, first)
        values = held_out_means([one.result for one in rollouts], self.run.device)
        if self.run.is_main and not self._logged(update):
            self.run.metrics(update, values)

    def _logged(self, update: int) -> bool:
        """Whether the run logged this evaluation before it was interrupted."""
        path = self.run.run_dir / METRICS_FILE
        records = read_metrics(path) if path.is_file() else []
        return any(r["step"] == update and f"reward{SUFFIX}" in r for r in records)


def held_out_means(results: Sequence[RewardResult], device: torch.device) -> dict[str, float]:
    """Returns the mean reward and WER over all ranks. All ranks call it together."""
    columns: dict[str, list[float]] = {"reward": [one.total for one in results]}
    columns["wer"] = [min(1.0, one.wer) for one in results if one.wer is not None]
    sums = torch.tensor(
        [part for values in columns.values() for part in (sum(values), len(values))],
        dtype=torch.float64 if device.type == "cpu" else torch.float32,
        device=device,
    )
    if dist.is_initialized():
        dist.all_reduce(sums)
    pairs = zip(columns, sums.view(-1, 2).tolist(), strict=True)
    return {f"{name}{SUFFIX}": round(total / n, 6) for name, (total, n) in pairs if n}
