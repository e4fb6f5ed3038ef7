"""The trainer's end of a vLLM engine: new weights in, completions out, whatever happens to it.

The policy's weights on their way into a vLLM engine: through a file, or from GPU to GPU.
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
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tts_assets.core.artifacts import written_aside
from tts_assets.rlhf.config import VllmRollouts
from tts_assets.rlhf.engine import LABEL, SECRET, WEIGHTS
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request
from tts_assets.speechlm.vocabulary import SpeechVocabulary

if TYPE_CHECKING:
    pass

POLL_SECONDS = 0.2
HEALTH_SECONDS = 10.0
REFUSED = (400, 401, 422)  # asking again would not help


class EngineError(RuntimeError):
    """No rollout will come any more: the message says why, and where the engine's log is."""


class EngineLost(Exception):
    """The engine died, or forgot its weights: it may come back."""


class Sender(Protocol):
    """Moves the policy's weights into the engine that ``client`` reaches."""

    def send(self, client: EngineClient, label: str) -> None: ...


class EngineClient:
    """Asks an engine for rollouts, with the weights they must be made with.

    ``waiting`` is called again and again while there is no answer to wait for; what it raises ends
    the wait. ``note`` hears of losses.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        config: VllmRollouts,
        waiting: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self.url, self.folder, self.config = url, folder, config
        self.waiting, self.note = waiting, note
        self.lost = 0  # how often it was
        self.push_seconds = self.rollout_seconds = 0.0  # of the last rollout

    def complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        vocabulary: SpeechVocabulary,
        sender: Sender,
    ) -> list[Completion]:
        """Complete every request with the weights that ``sender`` sends now, in order.

        An engine that dies meanwhile is waited for, given the same weights again and asked again:
        the seeds are the same, so are the tokens. Raises EngineError when it is given up.
        """
        label = uuid.uuid4().hex
        for _ in range(self.config.restarts + 1):
            try:
                self.wait_until_healthy()
                started = time.monotonic()
                sender.send(self, label)
                self.push_seconds = time.monotonic() - started
                completions = self._ask(requests, sampling, vocabulary, label)
                self.rollout_seconds = time.monotonic() - started - self.push_seconds
                return completions
            except EngineLost as error:
                self.lost += 1
                self.note(f"the engine was lost: {error}; waiting for it to ask again")
        raise EngineError(
            f"the engine died of this rollout {self.config.restarts + 1} times in a row; "
            f"{self.where()}"
        )

    def _ask(
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
                    codes=vocabulary.codes(tokens),
                    ended=bool(ids) and ids[-1] == vocabulary.speech_end,
                    token_ids=tokens,
                    logprobs=np.asarray(logprobs, dtype=np.float32),
                )
            )
        return completions

    def health(self) -> dict[str, Any] | None:
        """What the engine says of itself; None while it says nothing."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=HEALTH_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return None

    def wait_until_healthy(self) -> dict[str, Any]:
        """The answer of :meth:`health`. Raises EngineError if none comes within a start's time."""
        seconds = self.config.start_seconds + self.config.grace_seconds
        deadline = time.monotonic() + seconds
        while (found := self.health()) is None:
            self.waiting()
            if time.monotonic() > deadline:
                raise EngineError(f"no engine at {self.url} within {seconds:g} s; {self.where()}")
            time.sleep(POLL_SECONDS)
        return found

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer. Raises EngineLost if none comes, EngineError if it is a refusal."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {(self.folder / SECRET).read_text()}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=self.config.rollout_seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")
            if error.code in REFUSED:
                raise EngineError(f"the engine refuses {path}: {detail}; {self.where()}") from None
            raise EngineLost(f"{path}: {error.code} {detail}") from None
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise EngineLost(f"{path}: {type(error).__name__} {error}") from None

    def where(self) -> str:
        return f"its log is {self.folder / 'log.txt'}"


def sender(model: PreTrainedModel, config: VllmRollouts, folder: Path) -> Sender:
    """As ``config.weights`` asks for; ``auto`` is NCCL where the model is on a GPU, the engine on
    another, and this environment has vLLM, whose transfer has two ends."""
    apart = model.device.type == "cuda" and not config.shares_gpu
    native = apart and importlib.util.find_spec("vllm") is not None
    if config.weights == "nccl" or (config.weights == "auto" and native):
        return NcclSender(model, config)
    return FileSender(model, config, folder)


def named_weights(
    model: PreTrainedModel, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """All weights by all of their names, in ``dtype`` (None: as they are).

    A tied output matrix has two, and vLLM must be given it by both (``engine_worker.py``).
    """
    for name, tensor in model.state_dict().items():
        yield name, tensor.detach().to(dtype or tensor.dtype).contiguous()


def wire_dtype(config: VllmRollouts, model: PreTrainedModel) -> torch.dtype | None:
    """The engine's own: more bits would only be moved to be thrown away."""
    if config.dtype is not None:
        found: torch.dtype = getattr(torch, config.dtype)
        return found
    return torch.bfloat16 if model.device.type == "cuda" else None


@dataclass
class FileSender:
    """``weights.safetensors`` of the engine's run folder: written aside, then taken."""

    model: PreTrainedModel
    config: VllmRollouts
    folder: Path

    def send(self, client: EngineClient, label: str) -> None:
        weights: dict[str, Tensor] = {}
        known: set[int] = set()
        for name, tensor in named_weights(self.model, wire_dtype(self.config, self.model)):
            shared = tensor.data_ptr() in known  # safetensors has no tensors that share memory
            known.add(tensor.data_ptr())
            weights[name] = tensor.clone() if shared else tensor
        with written_aside(self.folder / WEIGHTS) as aside:
            save_file(weights, aside, metadata={LABEL: label})
        client.post("/weights/file", {LABEL: label})


class NcclSender:
    """vLLM's own transfer over NCCL. One group of this rank and the engine's GPUs, made anew for
    every start of the engine."""

    def __init__(self, model: PreTrainedModel, config: VllmRollouts) -> None:
        self.model, self.config = model, config
        self.instance = ""  # the engine's start that the group was made with
        self.transfer: Any = None
        self.steps: _Steps | None = None

    def send(self, client: EngineClient, label: str) -> None:
        """Raises EngineLost where the engine leaves the group in the middle of it."""
        instance = client.wait_until_healthy()["instance"]
        try:
            if instance != self.instance:
                self._connect(client)
                self.instance = instance
            assert self.steps is not None
            self.steps.label = label
            self.transfer.send_weights()
        except EngineError:
            raise
        except RuntimeError as error:  # NCCL's, and torch's of the meeting
            self.instance = ""  # the group is of no use any more
            raise EngineLost(f"NCCL: {error}") from error

    def _connect(self, client: EngineClient) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        from tts_assets.rlhf.nccl_source import PolicySource

        address = own_address(client.url)
        dtype = wire_dtype(self.config, self.model)
        self.steps = _Steps(client)
        self.transfer = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                master_address=address,
                master_port=free_port(address),
                world_size=1 + self.config.gpus,
                rank=0,
            ),
            client=self.steps,
            source=PolicySource(partial(named_weights, self.model, dtype)),
        )


class _Steps:
    """The calls that vLLM's transfer makes, to our engine's addresses."""

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


def own_address(url: str) -> str:
    """This machine's address as the engine at ``url`` would reach it."""
    place = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((place.hostname, place.port))  # sends nothing: it only finds the way
        return str(probe.getsockname()[0])


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
