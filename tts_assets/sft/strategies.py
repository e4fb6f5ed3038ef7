"""How ranks share the work of one model: ``open_strategy`` gives a run its :class:`Strategy`.

What the trainer asks of a strategy, and the strategies that use torch's own optimizers.

Weights and moments have one name under every strategy, ``model.<parameter>`` and
``optimizer.<moment>.<parameter>``: a checkpoint that one wrote is read by the others, on any number
of ranks.

DistributedDataParallel: model and optimizer whole on every rank.

FSDP2: weights, gradients and optimizer in shards, a layer whole while it is at work.

DeepSpeed: ZeRO-2 (gradients and optimizer in shards) and ZeRO-3 (weights, too).

Weights stay float32 and the loss rounds in autocast, so that the curve is that of the others. Its
own checkpoints are pickles that fit one number of ranks; moments are gathered parameter by
parameter instead, and each rank saves those of its share.
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

from tts_assets.core.program import Run
from tts_assets.sft.config import OptimizerConfig, SftRecipe
from tts_assets.sft.model import SpeechLoss, layers_of
from tts_assets.sft.optimizer import Optimizers, adamw, parameter_groups
from tts_assets.sft.packing import Packed, split_over
from tts_assets.speechlm.model import output_table

Losses = tuple[Tensor, Tensor]  # the sum of a row, and each of its N targets
Tensors = dict[str, Tensor]


class Strategy(ABC):
    """One rank's part of a model that is trained by all."""

    lockstep: ClassVar[bool]  # every forward pass exchanges weights: ranks must do equally many

    @abstractmethod
    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        """Add the gradient of ``scale`` times the row's sum; averaged over ranks with the last."""

    @abstractmethod
    def evaluate(self, row: Packed) -> Losses:
        """The losses of a row, without dropout and gradients."""

    @abstractmethod
    def step(self, lr: float) -> float:
        """Clip, update, clear the gradients; returns the gradient's norm before clipping."""

    @abstractmethod
    def state(self) -> Tensors:
        """This rank's part of trained weights and moments, by the names of the checkpoint."""

    @abstractmethod
    def load(self, read: Callable[[Tensors], None], step: int) -> None:
        """Take over the state after ``step`` steps; ``read`` fills the tensors it is given."""

    @abstractmethod
    def weights(self) -> Tensors:
        """All weights that are trained, whole, in the memory of rank 0; empty elsewhere. All ranks
        take part."""

    @abstractmethod
    def parts(self) -> Iterator[Tensor]:
        """This rank's part of the weights; over all ranks each comes once. All take part."""


class TorchStrategy(Strategy):
    """Parameters that are tensors or DTensors, and torch's optimizers on them."""

    def __init__(self, run: Run, loss: SpeechLoss, config: OptimizerConfig) -> None:
        self.run = run
        self.loss = loss
        self.parallel: nn.Module = loss
        self.optimizers = Optimizers(loss.model, config)

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
        """Parameters and buffers between two steps, as this rank holds them."""
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
            elif self.run.is_main:  # every rank has it
                yield tensor.detach()

    def weights(self) -> Tensors:
        whole = {}
        for name, tensor in self.tensors().items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.run.is_main:
                whole[name] = full.detach().to("cpu", copy=True)
        return whole


def named_tensors(model: nn.Module) -> Tensors:
    """Parameters that are trained and buffers that are saved; what goes by two names (a tied
    head) once."""
    seen: set[int] = set()
    named = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if id(tensor) not in seen and not frozen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


class Ddp(TorchStrategy):
    lockstep = False

    def __init__(self, run: Run, loss: SpeechLoss, config: OptimizerConfig) -> None:
        super().__init__(run, loss, config)
        if run.world_size > 1:
            # No buckets of other dtypes, no unused parameters: the plain case of DDP.
            self.parallel = DistributedDataParallel(loss, gradient_as_bucket_view=True)

    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        wait = isinstance(self.parallel, DistributedDataParallel) and not last
        with self.parallel.no_sync() if wait else nullcontext():  # type: ignore[operator]
            return super().backward(row, scale, last)


class Fsdp(TorchStrategy):
    lockstep = True

    def __init__(self, run: Run, loss: SpeechLoss, config: OptimizerConfig) -> None:
        mesh = init_device_mesh(run.device.type, (run.world_size,))
        # Layers travel in bfloat16, half the bytes: autocast would round the same weights. Their
        # inputs stay float32, as without sharding, and so does the root: the table of the loss.
        dtype = torch.bfloat16 if loss.bf16 else None
        layers = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        root = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
        for layer in layers_of(loss.model):
            fully_shard(layer, mesh=mesh, mp_policy=layers)
        self.shards: FSDPModule = fully_shard(loss, mesh=mesh, mp_policy=root)
        super().__init__(run, loss, config)

    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        self.shards.set_requires_gradient_sync(last)
        return super().backward(row, scale, last)

    def evaluate(self, row: Packed) -> Losses:
        losses = super().evaluate(row)
        self.shards.reshard()  # without a backward pass the root would stay whole
        return losses

    def tensors(self) -> Tensors:
        self.shards.reshard()
        return super().tensors()


MOMENTS = ("exp_avg", "exp_avg_sq")
READ_TOGETHER = 32  # parameters: with their moments whole in memory at once while loading


class Zero(Strategy):
    lockstep = True

    def __init__(self, run: Run, loss: SpeechLoss, config: OptimizerConfig, stage: int) -> None:
        self.run, self.loss, self.stage = run, loss, stage
        self.deepspeed = import_deepspeed(run.device)
        self.parameters: dict[str, Parameter] = {
            name: parameter
            for name, parameter in loss.model.named_parameters()
            if parameter.requires_grad
        }
        groups = [group for group in parameter_groups(loss.model, config) if group["params"]]
        self.engine, self.optimizer, _, _ = self.deepspeed.initialize(
            model=loss, optimizer=adamw(groups, config), config=engine_config(config, stage)
        )
        if stage == 3:  # the loss multiplies with this table outside of its module's forward
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
        if self.optimizer.overflow:  # DeepSpeed would leave the step out and go on
            return float("inf")
        return float(self.engine.get_global_grad_norm())

    def state(self) -> Tensors:
        share = self._share()
        mine: Tensors = {}
        for name, parameter in self.parameters.items():
            whole = {f"model.{name}": self._weight(parameter)}
            for kind in MOMENTS:
                moment = self.deepspeed.utils.safe_get_full_optimizer_state(parameter, kind)
                whole[f"optimizer.{kind}.{name}"] = moment
            if name in share:
                mine |= {name: tensor.cpu() for name, tensor in whole.items()}
        return mine

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
            if self.run.is_main:
                whole[name] = tensor.detach().to("cpu", copy=True)
        return whole

    def parts(self) -> Iterator[Tensor]:
        share = self._share()
        for name, parameter in self.parameters.items():
            tensor = self._weight(parameter)
            if name in share:
                yield tensor.detach()

    def _share(self) -> set[str]:
        """The parameters that this rank tells of."""
        return set(
            split_over(
                list(self.parameters), lambda name: self._shape(name).numel(), self.run.world_size
            )[self.run.rank]
        )

    def _weight(self, parameter: Parameter) -> Tensor:
        tensor: Tensor = self.deepspeed.utils.safe_get_full_fp32_param(parameter)
        return tensor

    def _shape(self, name: str) -> torch.Size:
        parameter = self.parameters[name]
        shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)  # of ZeRO-3: whole
        return shape

    def _put(self, parameter: Parameter, weight: Tensor, *moments: Tensor) -> None:
        """A weight and its moments to the ranks that hold them, and to the model's copy."""
        utils = self.deepspeed.utils
        utils.safe_set_full_fp32_param(parameter, weight)
        for kind, moment in zip(MOMENTS, moments, strict=True):
            utils.safe_set_full_optimizer_state(parameter, moment, kind)
        with self.deepspeed.zero.GatheredParameters(
            [parameter], modifier_rank=0, enabled=self.stage == 3
        ):
            parameter.data.copy_(weight)

    def _start_after(self, step: int) -> None:
        """Moments of zero for every shard.

        Left to itself, ZeRO-2 makes them in the first step, and then finds again only those of
        the first group of parameters (0.19.8 links all groups after the first one's step).
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
    """A parameter's entries of a checkpoint."""
    return [f"model.{name}", *(f"optimizer.{kind}.{name}" for kind in MOMENTS)]


def engine_config(config: OptimizerConfig, stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the trainer says which row is the last of a step
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW: no compiler is needed
        "steps_per_print": 1_000_000_000,
    }


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed for this device, without what it would compile at its first use on a CPU."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed
    import deepspeed.ops

    # 95 s of C++ for exchange through shared memory; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def open_strategy(run: Run, recipe: SftRecipe, loss: SpeechLoss) -> Strategy:
    """The strategy of the recipe; one rank alone holds the whole model under any name.

    Each library is imported where it is used: DeepSpeed alone takes seconds.
    """
    name = recipe.strategy.name
    if name == "ddp" or run.world_size == 1:
        return Ddp(run, loss, recipe.optimizer)
    if name == "fsdp":
        return Fsdp(run, loss, recipe.optimizer)

    return Zero(run, loss, recipe.optimizer, recipe.strategy.zero_stage or 2)
