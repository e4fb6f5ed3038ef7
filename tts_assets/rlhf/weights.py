"""The policy's weights on their way into a vLLM engine: through a file, or from GPU to GPU."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tts_assets.artifacts import written_aside
from tts_assets.rlhf.engine_client import EngineError, EngineLost
from tts_assets.rlhf.engine_config import VllmRollouts
from tts_assets.rlhf.engine_files import LABEL, WEIGHTS

if TYPE_CHECKING:
    from tts_assets.rlhf.engine_client import EngineClient, Sender


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
        self.steps = _Steps(client)
        self.transfer = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                master_address=address,
                master_port=free_port(address),
                world_size=1 + self.config.gpus,
                rank=0,
            ),
            client=self.steps,
            source=PolicySource(self.model, wire_dtype(self.config, self.model)),
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
