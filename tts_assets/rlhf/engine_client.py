"""HTTP client of the vLLM engine: sends the weights and requests completions.

A rollout that the engine loses is repeated: the client waits until the engine is healthy again,
sends the same weights, and asks again with the same seeds.

Weights go through a file, or from GPU to GPU with NCCL. vLLM reloads a model layer by layer. A
parameter that it does not receive keeps its old values without an error. Both senders therefore
send all weights under all of their names: a tied output matrix has two.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tts_assets.core.artifacts import atomic_write
from tts_assets.rlhf.config import EngineProgram, VllmRollouts
from tts_assets.rlhf.engine import GRACE_SECONDS, LABEL, LOG, SECRET, WEIGHTS
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request
from tts_assets.speechlm.vocabulary import SpeechVocabulary

POLL_SECONDS = 0.2
HEALTH_SECONDS = 10.0  # time limit of a health request
ROLLOUT_SECONDS = 3600.0  # time limit of all other requests; a slower engine counts as lost
REFUSED = (400, 401, 422)  # statuses of requests that would fail again
NamedWeights = Callable[[], Iterator[tuple[str, Tensor]]]


class EngineError(RuntimeError):
    """The engine cannot complete rollouts any more. The message has the reason and the log."""


class EngineLost(Exception):
    """The engine died or has other weights. It may come back."""


class WeightSender(Protocol):
    """Sends the policy's weights to the engine that ``client`` reaches, under a label."""

    def send(self, client: EngineClient, label: str) -> None:
        """Returns when the engine has the weights. Raises EngineLost or EngineError."""
        ...


class EngineClient:
    """Requests rollouts from an engine, with the weights to use.

    Attributes:
        lost: how often the engine was lost.
        push_seconds: seconds in which the weights of the last rollout were sent.
        rollout_seconds: seconds of the last rollout, without the weights.
    """

    def __init__(
        self,
        url: str,
        program: EngineProgram,
        check: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        """Creates a client; it sends nothing yet.

        Args:
            url: address of the server.
            program: the engine; its run folder has its secret and its log.
            check: called repeatedly while the engine is not healthy; what it raises ends the wait.
            log: called with a message when the engine is lost.
        """
        self.url, self.folder = url, program.run_dir
        self.config, self.restarts = program.engine, program.vllm.restarts
        self.start_seconds = program.vllm.start_seconds
        self.check, self.log = check, log
        self.lost = 0
        self.push_seconds = self.rollout_seconds = 0.0

    def complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        vocabulary: SpeechVocabulary,
        sender: WeightSender,
    ) -> list[Completion]:
        """Returns a completion for each request, in order, with the weights that are sent now.

        Raises :class:`EngineError` if the engine refuses the requests or is lost too often.
        """
        label = uuid.uuid4().hex
        for _ in range(self.restarts + 1):
            try:
                self.wait_until_healthy()
                started = time.monotonic()
                sender.send(self, label)
                self.push_seconds = time.monotonic() - started
                completions = self._complete(requests, sampling, vocabulary, label)
                self.rollout_seconds = time.monotonic() - started - self.push_seconds
                return completions
            except EngineLost as error:
                self.lost += 1
                self.log(f"the engine was lost: {error}; the rollout is repeated when it is back")
        raise EngineError(
            f"the engine died of this rollout {self.restarts + 1} times in a row; {self.log_hint()}"
        )

    def _complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        vocabulary: SpeechVocabulary,
        label: str,
    ) -> list[Completion]:
        answer = self.post(
            "/complete",
            {
                "weights": label,
                "sampling": sampling.model_dump(mode="json"),
                "prompts": [request.prompt.tolist() for request in requests],
                "seeds": [request.seed for request in requests],
            },
        )
        completions = []
        for ids, logprobs in zip(answer["token_ids"], answer["logprobs"], strict=True):
            tokens = np.asarray(ids, dtype=np.int64)
            completions.append(
                Completion(
                    codes=vocabulary.whole_codes(tokens),
                    ended=bool(ids) and ids[-1] == vocabulary.speech_end,
                    token_ids=tokens,
                    logprobs=np.asarray(logprobs, dtype=np.float32),
                )
            )
        return completions

    def health(self) -> dict[str, Any] | None:
        """Returns the engine's state (``instance``, ``weights``, ``pid``); None without answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=HEALTH_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return None

    def wait_until_healthy(self) -> dict[str, Any]:
        """Returns :meth:`health` once the engine answers.

        Raises :class:`EngineError` after the time limit of a start.
        """
        seconds = self.start_seconds + GRACE_SECONDS
        deadline = time.monotonic() + seconds
        while (found := self.health()) is None:
            self.check()
            if time.monotonic() > deadline:
                raise EngineError(
                    f"no engine at {self.url} within {seconds:g} s; {self.log_hint()}"
                )
            time.sleep(POLL_SECONDS)
        return found

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Posts JSON and returns the JSON answer.

        Raises :class:`EngineLost` without an answer, and :class:`EngineError` if the engine refuses
        the request.
        """
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {(self.folder / SECRET).read_text()}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=ROLLOUT_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")
            if error.code in REFUSED:
                raise EngineError(
                    f"the engine refuses {path}: {detail}; {self.log_hint()}"
                ) from None
            raise EngineLost(f"{path}: {error.code} {detail}") from None
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise EngineLost(f"{path}: {type(error).__name__} {error}") from None

    def log_hint(self) -> str:
        """Returns the end of a message that names the engine's log."""
        return f"its log is {self.folder / LOG}"


def weight_sender(model: PreTrainedModel, config: VllmRollouts, folder: Path) -> WeightSender:
    """Returns the sender of the policy's weights.

    It is NCCL if the model is on a GPU, the engine on another GPU, and this environment has vLLM,
    whose transfer needs code on both sides. ``folder``: the engine's run folder.
    """
    separate = model.device.type == "cuda" and not config.shares_gpu
    if separate and importlib.util.find_spec("vllm") is not None:
        return NcclSender(model, config)
    return FileSender(model, config, folder)


def named_weights(
    model: PreTrainedModel, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Yields each weight under each of its names, in ``dtype`` (None: unchanged).

    Adapters of peft are added to the weights beside them, as merging them would.
    """
    from peft.tuners.lora import LoraLayer  # takes three seconds to import

    adapted: dict[str, Any] = {
        f"{name}.base_layer.weight": module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        weight = tensor.detach()
        if name in adapted:
            weight = weight + adapted[name].get_delta_weight(*adapted[name].active_adapters)
        plain = name.replace(".base_layer.", ".")
        yield plain, weight.to(dtype or weight.dtype).contiguous()


def transfer_dtype(config: VllmRollouts, model: PreTrainedModel) -> torch.dtype | None:
    """Returns the engine's dtype, so that no unused bits are sent; None: the model's dtype."""
    if config.dtype is not None:
        dtype: torch.dtype = getattr(torch, config.dtype)
        return dtype
    return torch.bfloat16 if model.device.type == "cuda" else None


@dataclass
class FileSender:
    """Writes ``weights.safetensors`` into the run folder, from which the engine loads it."""

    model: PreTrainedModel
    config: VllmRollouts
    folder: Path

    def send(self, client: EngineClient, label: str) -> None:
        """Raises EngineLost or EngineError."""
        weights: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in named_weights(self.model, transfer_dtype(self.config, self.model)):
            shared = tensor.data_ptr() in seen  # safetensors does not store shared memory
            seen.add(tensor.data_ptr())
            weights[name] = tensor.clone() if shared else tensor
        with atomic_write(self.folder / WEIGHTS) as aside:
            save_file(weights, aside, metadata={LABEL: label})
        client.post("/weights/file", {LABEL: label})


class NcclSender:
    """vLLM's weight transfer over NCCL.

    The process group has this rank and the engine's GPUs. It is built again for each start of the
    engine.
    """

    def __init__(self, model: PreTrainedModel, config: VllmRollouts) -> None:
        self.model, self.config = model, config
        self.instance = ""  # the start of the engine for which the group was built
        self.transfer: Any = None
        self.calls: _TransferCalls | None = None

    def send(self, client: EngineClient, label: str) -> None:
        """Raises EngineLost if the engine leaves the group during the transfer."""
        instance = client.wait_until_healthy()["instance"]
        try:
            if instance != self.instance:
                self._connect(client)
                self.instance = instance
            assert self.calls is not None
            self.calls.label = label
            self.transfer.send_weights()
        except EngineError:
            raise
        except RuntimeError as error:  # of NCCL, or of torch's rendezvous
            self.instance = ""  # the group is broken
            raise EngineLost(f"NCCL: {error}") from error

    def _connect(self, client: EngineClient) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        address = own_address(client.url)
        dtype = transfer_dtype(self.config, self.model)
        self.calls = _TransferCalls(client)
        self.transfer = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                master_address=address,
                master_port=free_port(address),
                world_size=1 + self.config.gpus,
                rank=0,
            ),
            client=self.calls,
            source=policy_source(partial(named_weights, self.model, dtype)),
        )


class _TransferCalls:
    """The calls of vLLM's transfer, as requests to the engine's server."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.label = ""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.client.post("/weights/nccl/init", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self.client.post("/weights/nccl/start", {})

    def update_weights(self, update_info: Any) -> None:
        self.client.post("/weights/nccl/update", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.client.post("/weights/nccl/finish", {LABEL: self.label})


def policy_source(weights: NamedWeights) -> Any:
    """Returns vLLM's ``WeightSource`` of ``weights``.

    vLLM's own source leaves out a tied output matrix. The class is defined here because its base
    class needs vLLM, which the trainer's environment may not have.
    """
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class PolicySource(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, w.dtype, tuple(w.shape)) for name, w in weights()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return weights()

    return PolicySource()


def own_address(url: str) -> str:
    """Returns this machine's address as the engine at ``url`` reaches it."""
    target = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target.hostname, target.port))  # UDP: selects a route, sends nothing
        return str(probe.getsockname()[0])


def free_port(address: str) -> int:
    """Returns a free port of ``address``."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
