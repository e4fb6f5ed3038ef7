"""What completes the prompts of a rollout: the policy itself, or a vLLM engine for all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from tts_assets.core.compute import visible_devices
from tts_assets.core.config import ConfigError
from tts_assets.core.processes import LOOPBACK, free_port
from tts_assets.core.program import Run
from tts_assets.core.supervisor import Server, ServerDied
from tts_assets.rlhf.config import EngineProgram, RlhfProgram, VllmRollouts
from tts_assets.rlhf.engine import address, hosted
from tts_assets.rlhf.engine_client import EngineClient, EngineError, sender
from tts_assets.serving.synthesis import TransformersEngine
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request
from tts_assets.speechlm.model import SpeechLM

WAIT = timedelta(days=1)  # of the other ranks, for an engine that rank 0 will give up before
GAP = 0.1  # nats a token in the mean: float32 differs by 1e-7, an old output matrix by 0.8


class RolloutsStopped(Exception):
    """No rollout now: a stop was asked for while the engine was away."""


class RolloutEngine(Protocol):
    """Completes the prompts of this rank, with the policy as it is now."""

    def complete(
        self, requests: Sequence[Request], sampling: SamplingConfig
    ) -> list[Completion]: ...

    def facts(self) -> dict[str, float]:
        """How the last rollout went, for the metrics."""
        ...


class PolicyEngine:
    """The policy, in this process."""

    def __init__(self, lm: SpeechLM) -> None:
        self.engine = TransformersEngine(lm)

    def complete(self, requests: Sequence[Request], sampling: SamplingConfig) -> list[Completion]:
        return self.engine.complete(requests, sampling, None) if requests else []

    def facts(self) -> dict[str, float]:
        return {}


class SharedEngine:
    """A vLLM engine that rank 0 asks for all ranks: one batch in the order of the ranks, so that
    the tokens do not depend on their number. ``client`` is None on the others."""

    def __init__(self, run: Run, lm: SpeechLM, client: EngineClient | None) -> None:
        self.run, self.lm, self.client = run, lm, client
        several = run.world_size > 1
        self.group = dist.new_group(backend="gloo", timeout=WAIT) if several else None
        self.gap = 0.0
        if client is not None:
            self.sender = sender(lm.model, client.config, client.folder)

    def complete(self, requests: Sequence[Request], sampling: SamplingConfig) -> list[Completion]:
        """Raises EngineError, or RolloutsStopped, on all ranks at once."""
        shares = self._gather(list(requests))
        answer = self._scatter(self._ask(shares, sampling) if self.client else None)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def facts(self) -> dict[str, float]:
        if self.client is None:
            return {}
        return {
            "engine_push_seconds": round(self.client.push_seconds, 3),
            "engine_rollout_seconds": round(self.client.rollout_seconds, 3),
            "engine_lost": float(self.client.lost),
            "engine_logprob_gap": float(f"{self.gap:.3g}"),
        }

    def _ask(
        self, shares: list[list[Request]], sampling: SamplingConfig
    ) -> list[list[Completion] | Exception]:
        """What each rank is to have: its completions, or why there are none."""
        assert self.client is not None
        requests = [request for share in shares for request in share]
        try:
            completions = self.client.complete(requests, sampling, self.lm.vocabulary, self.sender)
        except (EngineError, RolloutsStopped) as error:
            return [error] * len(shares)
        self._compare(requests[0], completions[0])
        rest = iter(completions)
        return [[next(rest) for _ in share] for share in shares]

    def _compare(self, request: Request, completion: Completion) -> None:
        """Does the engine have the policy's weights? One completion tells."""
        difference = full_logprobs(self.lm, request, completion) - torch.from_numpy(
            completion.logprobs
        )
        self.gap = float(difference.abs().mean())
        if self.gap > GAP:
            self.run.note(
                f"the engine's log-probabilities differ from the policy's by {self.gap:.2f} nats a "
                "token: it does not speak with the same weights"
            )

    def _gather(self, own: list[Request]) -> list[list[Request]]:
        """The requests of all ranks, on rank 0."""
        if self.group is None:
            return [own]
        shares: list[list[Request]] = [[] for _ in range(self.run.world_size)]
        dist.gather_object(own, shares if self.run.is_main else None, 0, self.group)
        return shares

    def _scatter(
        self, answers: list[list[Completion] | Exception] | None
    ) -> list[Completion] | Exception:
        """This rank's part of what rank 0 got."""
        if self.group is None:
            assert answers is not None
            return answers[0]
        own: list[list[Completion] | Exception] = [[]]
        dist.scatter_object_list(own, answers, 0, self.group)
        return own[0]


@torch.no_grad()
def full_logprobs(lm: SpeechLM, request: Request, completion: Completion) -> Tensor:
    """The policy's own log-probabilities of a completion, over the whole vocabulary, (L,)."""
    prompt = torch.from_numpy(request.prompt)
    drawn = torch.from_numpy(completion.token_ids)
    ids = torch.cat([prompt, drawn])[None].to(lm.model.device)
    logits = lm.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(dim=1).cpu().gather(1, drawn[:, None])[:, 0]


@contextmanager
def open_engine(run: Run, program: RlhfProgram, lm: SpeechLM) -> Iterator[RolloutEngine]:
    """The recipe's engine while the ``with`` lasts: one that runs, or one of our own."""
    engine = program.engine_program()
    if engine is None:
        yield PolicyEngine(lm)
        return
    if not run.is_main:
        yield SharedEngine(run, lm, None)
        return
    found = address()
    if found is not None:
        url = f"http://{found[0]}:{found[1]}"
        yield SharedEngine(run, lm, _client(run, engine, url, None))
        return
    devices = spare_devices(run, engine.engine)
    with hosted(engine, LOOPBACK, free_port(), lambda line: None, devices) as server:
        yield SharedEngine(run, lm, _client(run, engine, server.url, server))


def spare_devices(run: Run, config: VllmRollouts) -> list[str] | None:
    """The GPUs behind those of the ranks, or the first, shared; None on a machine without."""
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
            else 'let the engine share one, engine = { kind = "vllm", gpus = 0, gpu_memory = '
            '0.3 }, or the policy speak itself, engine = { kind = "transformers" }'
        )
        raise ConfigError(
            f"{run.local_world_size} processes and an engine of {config.gpus} GPUs need more than "
            f"the {len(devices)} of this machine: {remedy}"
        )
    return spare


def _client(run: Run, engine: EngineProgram, url: str, server: Server | None) -> EngineClient:
    def waiting() -> None:
        if run.stop_requested:
            raise RolloutsStopped("a stop was asked for while the engine was away")
        try:
            if server is not None:
                server.check()
        except ServerDied as error:
            raise EngineError(f"{error}\nThe whole log is {engine.run_dir / 'log.txt'}") from None

    return EngineClient(url, engine.run_dir, engine.engine, waiting, run.note)
