"""Sends the policy's weights to the vLLM engine: through a file, or from GPU to GPU with NCCL.

vLLM reloads a model layer by layer. A parameter that it does not receive keeps its old values
without an error. Both senders therefore send all weights under all of their names: a tied output
matrix has two.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tts_assets.core.artifacts import written_aside
from tts_assets.rlhf.config import VllmRollouts
from tts_assets.rlhf.engine import LABEL, WEIGHTS
from tts_assets.rlhf.engine_client import EngineClient, EngineError, EngineLost, WeightSender

NamedWeights = Callable[[], Iterator[tuple[str, Tensor]]]


def weight_sender(model: PreTrainedModel, config: VllmRollouts, folder: Path) -> WeightSender:
    """Returns the sender that ``config.weights`` names.

    "auto" is NCCL if the model is on a GPU, the engine on another GPU, and this environment has
    vLLM, whose transfer needs code on both sides. ``folder``: the engine's run folder.
    """
    separate = model.device.type == "cuda" and not config.shares_gpu
    has_nccl = separate and importlib.util.find_spec("vllm") is not None
    if config.weights == "nccl" or (config.weights == "auto" and has_nccl):
        return NcclSender(model, config)
    return FileSender(model, config, folder)


def named_weights(
    model: PreTrainedModel, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Yields each weight under each of its names, in ``dtype`` (None: unchanged)."""
    for name, tensor in model.state_dict().items():
        yield name, tensor.detach().to(dtype or tensor.dtype).contiguous()


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
        with written_aside(self.folder / WEIGHTS) as aside:
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
