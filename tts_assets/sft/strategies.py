"""Parallel training strategies: DDP, FSDP2 and DeepSpeed ZeRO behind one interface.

:func:`open_strategy` opens the :class:`Strategy` of a recipe:

* :class:`Ddp`: DistributedDataParallel, with model and optimizer whole on every rank.
* :class:`Fsdp`: FSDP2, with sharded weights, gradients and optimizer; a layer is gathered for its
  forward and backward pass.
* :class:`Zero`: DeepSpeed ZeRO-2 (sharded gradients and optimizer) and ZeRO-3 (also weights).

Weights and moments have the same names under every strategy, ``model.<parameter>`` and
``optimizer.<moment>.<parameter>``. A checkpoint of one strategy is therefore read by the others, on
any number of ranks.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from tts_assets.core.training import rank, world_size
from tts_assets.sft.config import OptimizerConfig, SftRecipe
from tts_assets.sft.model import SpeechLoss, layers_of
from tts_assets.sft.optimizer import CodeRows, Optimizers, adamw, parameter_groups
from tts_assets.sft.packing import Packed, split_over
from tts_assets.speechlm.model import output_table

Losses = tuple[Tensor, Tensor]  # of a row: the sum, and the loss of each target (N,)
Tensors = dict[str, Tensor]


class Strategy(ABC):
    """One rank's part of a model that all ranks train."""

    lockstep: ClassVar[bool]  # forward passes exchange weights: all ranks need the same number

    @abstractmethod
    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        """Add the gradient of ``scale`` times the loss sum of ``row``. Returns its losses.

        With the ``last`` row of a step the gradients are averaged over the ranks.
        """

    @abstractmethod
    def evaluate(self, row: Packed) -> Losses:
        """The losses of a row without dropout and gradients."""

    @abstractmethod
    def step(self, lr: float) -> float:
        """Clip, update, and clear the gradients. Returns the gradient norm before clipping."""

    @abstractmethod
    def state(self) -> Tensors:
        """This rank's part of the trained weights and moments, by their names in a checkpoint."""

    @abstractmethod
    def load(self, read: Callable[[Tensors], None], step: int) -> None:
        """Load the state after ``step`` steps. ``read`` fills the tensors that it is given."""

    @abstractmethod
    def weights(self) -> Tensors:
        """All trained weights, by name, gathered in the memory of rank 0; empty on other ranks.

        All ranks must call it.
        """

    @abstractmethod
    def parts(self) -> Iterator[Tensor]:
        """This rank's part of the weights; each weight is on one rank. All ranks must call it."""


class TorchStrategy(Strategy):
    """A strategy whose parameters are tensors or DTensors, with the optimizers of torch."""

    def __init__(
        self, loss: SpeechLoss, config: OptimizerConfig, codes: CodeRows | None = None
    ) -> None:
        self.loss = loss
        self.parallel: nn.Module = loss
        self.optimizers = Optimizers(loss.model, config, codes)

    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        self.parallel.train()
        total, each = self.parallel(row)
        (total * scale).backward()
        return total.detach(), each

    @torch.no_grad()
    def evaluate(self, row: Packed) -> Losses:
        self.loss.eval()
        total, each = self.loss(row)
        return total, each

    def step(self, lr: float) -> float:
        return self.optimizers.step(lr)

    def tensors(self) -> Tensors:
        """The parameters and buffers that this rank holds between two steps."""
        return named_tensors(self.loss.model)

    def state(self) -> Tensors:
        named = self.tensors()
        names = {id(tensor): name for name, tensor in named.items()}
        weights = {f"model.{name}": tensor.detach() for name, tensor in named.items()}
        moments = {
            f"optimizer.{kind}.{names[id(parameter)]}": value
            for kind, parameter, value in self.optimizers.moments()
        }
        return weights | moments

    def load(self, read: Callable[[Tensors], None], step: int) -> None:
        self.optimizers.start_after(step)
        read(self.state())

    def parts(self) -> Iterator[Tensor]:
        for tensor in self.tensors().values():
            if isinstance(tensor, DTensor):
                yield tensor.to_local().detach()
            elif rank() == 0:  # every rank has the whole tensor
                yield tensor.detach()

    def weights(self) -> Tensors:
        whole = {}
        for name, tensor in self.tensors().items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if rank() == 0:
                whole[name] = full.detach().to("cpu", copy=True)
        return whole


def named_tensors(model: nn.Module) -> Tensors:
    """Trained parameters and saved buffers by name. A tensor with two names (a tied head) is listed
    once."""
    seen: set[int] = set()
    named = {}
    # Matrices of four bits have further tensors in the state, which are no buffers.
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if id(tensor) not in seen and id(tensor) in known and not frozen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


class Ddp(TorchStrategy):
    """DistributedDataParallel. With one rank it is the plain model."""

    lockstep = False

    def __init__(
        self, loss: SpeechLoss, config: OptimizerConfig, codes: CodeRows | None = None
    ) -> None:
        super().__init__(loss, config, codes)
        if world_size() > 1:
            self.parallel = DistributedDataParallel(loss, gradient_as_bucket_view=True)

    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        wait = isinstance(self.parallel, DistributedDataParallel) and not last
        with self.parallel.no_sync() if wait else nullcontext():  # type: ignore[operator]
            return super().backward(row, scale, last)


class Fsdp(TorchStrategy):
    """FSDP2 (``fully_shard``): each layer is one unit, and the root holds the rest."""

    lockstep = True

    def __init__(self, loss: SpeechLoss, config: OptimizerConfig) -> None:
        mesh = init_device_mesh(loss.model.device.type, (world_size(),))
        # Layers are gathered in bfloat16, which halves the bytes; autocast rounds the same weights.
        # Their inputs stay float32, as without sharding, and so does the root, which has the output
        # matrix of the loss.
        dtype = torch.bfloat16 if loss.bf16 else None
        layers = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        root = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
        for layer in layers_of(loss.model):
            fully_shard(layer, mesh=mesh, mp_policy=layers)
        self.shards: FSDPModule = fully_shard(loss, mesh=mesh, mp_policy=root)
        super().__init__(loss, config)

    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        self.shards.set_requires_gradient_sync(last)
        return super().backward(row, scale, last)

    def evaluate(self, row: Packed) -> Losses:
        losses = super().evaluate(row)
        self.shards.reshard()  # without a backward pass the root would stay gathered
        return losses

    def tensors(self) -> Tensors:
        self.shards.reshard()
        return super().tensors()


MOMENTS = ("exp_avg", "exp_avg_sq")
READ_TOGETHER = 32  # parameters that are in memory with their moments while loading


class Zero(Strategy):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020), ``stage`` 2 or 3.

    Weights stay float32 and the loss rounds in autocast, so the loss curve is that of the other
    strategies. DeepSpeed's own checkpoints are pickles for one number of ranks. Instead, moments
    are gathered parameter by parameter, and each rank saves a part of the parameters.
    """

    lockstep = True

    def __init__(self, loss: SpeechLoss, config: OptimizerConfig, stage: int) -> None:
        self.loss, self.stage = loss, stage
        self.deepspeed = import_deepspeed(loss.model.device)
        self.parameters: dict[str, Parameter] = {
            name: parameter
            for name, parameter in loss.model.named_parameters()
            if parameter.requires_grad
        }
        groups = [group for group in parameter_groups(loss.model, config) if group["params"]]
        self.engine, self.optimizer, _, _ = self.deepspeed.initialize(
            model=loss, optimizer=adamw(groups, config), config=engine_config(config, stage)
        )
        if stage == 3:  # the loss uses this matrix outside of the forward pass of its module
            self.deepspeed.zero.register_external_parameter(loss, output_table(loss.model))
        self._start_after(0)

    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        self.engine.train()
        self.engine.set_gradient_accumulation_boundary(last)
        total, each = self.engine(row)
        self.engine.backward(total * scale)
        return total.detach(), each

    @torch.no_grad()
    def evaluate(self, row: Packed) -> Losses:
        self.engine.eval()
        total, each = self.engine(row)
        return total, each

    def step(self, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        if self.optimizer.overflow:  # DeepSpeed would skip the step silently
            return float("inf")
        return float(self.engine.get_global_grad_norm())

    def state(self) -> Tensors:
        saved_here = self._saved_here()
        own: Tensors = {}
        for name, parameter in self.parameters.items():
            whole = {f"model.{name}": self._weight(parameter)}
            for kind in MOMENTS:
                moment = self.deepspeed.utils.safe_get_full_optimizer_state(parameter, kind)
                whole[f"optimizer.{kind}.{name}"] = moment
            if name in saved_here:
                own |= {name: tensor.cpu() for name, tensor in whole.items()}
        return own

    def load(self, read: Callable[[Tensors], None], step: int) -> None:
        self._start_after(step)
        names = list(self.parameters)
        for start in range(0, len(names), READ_TOGETHER):
            some = names[start : start + READ_TOGETHER]
            tensors = {key: torch.empty(self._shape(name)) for name in some for key in keys(name)}
            read(tensors)
            for name in some:
                self._put(self.parameters[name], *(tensors[key] for key in keys(name)))

    def weights(self) -> Tensors:
        whole = {}
        for name, parameter in self.parameters.items():
            tensor = self._weight(parameter)
            if rank() == 0:
                whole[name] = tensor.detach().to("cpu", copy=True)
        return whole

    def parts(self) -> Iterator[Tensor]:
        saved_here = self._saved_here()
        for name, parameter in self.parameters.items():
            tensor = self._weight(parameter)
            if name in saved_here:
                yield tensor.detach()

    def _saved_here(self) -> set[str]:
        """The names of the parameters that this rank saves."""
        by_rank = split_over(
            list(self.parameters), lambda name: self._shape(name).numel(), world_size()
        )
        return set(by_rank[rank()])

    def _weight(self, parameter: Parameter) -> Tensor:
        tensor: Tensor = self.deepspeed.utils.safe_get_full_fp32_param(parameter)
        return tensor

    def _shape(self, name: str) -> torch.Size:
        parameter = self.parameters[name]
        shape: torch.Size = getattr(
            parameter, "ds_shape", parameter.shape
        )  # ZeRO-3: the whole shape
        return shape

    def _put(self, parameter: Parameter, weight: Tensor, *moments: Tensor) -> None:
        """Write a weight and its moments to the ranks that hold them, and to the model's copy."""
        utils = self.deepspeed.utils
        utils.safe_set_full_fp32_param(parameter, weight)
        for kind, moment in zip(MOMENTS, moments, strict=True):
            utils.safe_set_full_optimizer_state(parameter, moment, kind)
        with self.deepspeed.zero.GatheredParameters(
            [parameter], modifier_rank=0, enabled=self.stage == 3
        ):
            parameter.data.copy_(weight)

    def _start_after(self, step: int) -> None:
        """Set zero moments for every shard.

        By default ZeRO-2 creates them in the first step, and then finds only the moments of the
        first parameter group (0.19.8 links all groups after the step of the first one).
        """
        inner = self.optimizer.optimizer
        for shard in self._shards():
            count = torch.tensor(float(step), dtype=torch.float32, device=shard.device)
            inner.state[shard] = {
                "step": count,
                **{kind: torch.zeros_like(shard) for kind in MOMENTS},
            }
        if self.stage == 2:
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _shards(self) -> Iterator[Tensor]:
        """The flat float32 shards that the inner optimizer updates."""
        if self.stage == 2:
            yield from self.optimizer.single_partition_of_fp32_groups
        else:
            yield from self.optimizer.fp32_partitioned_groups_flat


def keys(name: str) -> list[str]:
    """The names of a parameter and its moments in a checkpoint."""
    return [f"model.{name}", *(f"optimizer.{kind}.{name}" for kind in MOMENTS)]


def engine_config(config: OptimizerConfig, stage: int) -> dict[str, Any]:
    """The configuration of DeepSpeed's engine."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the trainer marks the last row of a step
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW: no compiler is needed
        "steps_per_print": 1_000_000_000,
    }


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this device, without compiling its operator for CPUs."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed
    import deepspeed.ops

    # Compiling its shared-memory exchange takes 95 s; gloo does not need it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def open_strategy(recipe: SftRecipe, loss: SpeechLoss, codes: CodeRows | None) -> Strategy:
    """The strategy of the recipe. A single rank always trains the plain model.

    ``codes`` are the rows whose updates are shared, of a recipe with ``optimizer.share_codes``.
    """
    name = recipe.strategy
    if name == "ddp" or world_size() == 1:
        return Ddp(loss, recipe.optimizer, codes)
    if name == "fsdp":
        return Fsdp(loss, recipe.optimizer)
    return Zero(loss, recipe.optimizer, 3 if name == "zero3" else 2)
