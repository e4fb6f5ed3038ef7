"""DeepSpeed: ZeRO-2 (gradients and optimizer in shards) and ZeRO-3 (weights, too).

Weights stay float32 and the loss rounds in autocast, so that the curve is that of the others. Its
own checkpoints are pickles that fit one number of ranks; moments are gathered parameter by
parameter instead, and each rank saves those of its share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tts_assets.program import Run
from tts_assets.sft.model import SpeechLoss
from tts_assets.sft.optimizer import adamw, parameter_groups
from tts_assets.sft.packing import Packed, split_over
from tts_assets.sft.strategies.base import Losses, Strategy, Tensors
from tts_assets.sft.tables import OptimizerConfig
from tts_assets.speechlm.model import output_table

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
