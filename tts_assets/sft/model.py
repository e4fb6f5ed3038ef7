"""The model as it is trained: where it starts, its attention and precision, its loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from tts_assets.sft.config import SftProgram, SftRecipe
from tts_assets.sft.packing import Packed
from tts_assets.speechlm.attention import SEGMENTS, segment_attention
from tts_assets.speechlm.loss import summed_cross_entropy
from tts_assets.speechlm.model import SpeechLM, build, output_table

Probe = Callable[[Tensor, Tensor, Tensor], None]  # hidden (N, H), table (V, H), targets (N,)


class SpeechLoss(nn.Module):
    """The model with its loss: a packed row in, the cross-entropy of its N targets out."""

    def __init__(self, model: PreTrainedModel, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self.bf16 = bf16
        self.probe: Probe | None = None  # sees what a validation's loss is made from

    def forward(self, row: Packed) -> tuple[Tensor, Tensor]:
        """The sum over the targets, float32 scalar, and each (N,) without a gradient.

        In the sum, targets of text count ``row.text_scale`` times.
        """
        with torch.autocast(row.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model.base_model(
                input_ids=row.input_ids,
                position_ids=row.position_ids,
                segments=row.segments,
                use_cache=False,
            )
        hidden = output.last_hidden_state[0][row.where]
        hidden = hidden.to(torch.bfloat16 if self.bf16 else hidden.dtype)
        table = output_table(self.model)
        if self.probe is not None and not self.training:
            self.probe(hidden, table, row.targets)
        if not row.text_targets:
            return summed_cross_entropy(hidden, table, row.targets)
        sizes = [len(hidden) - row.text_targets, row.text_targets]
        (speech, each), (text, each_text) = (
            summed_cross_entropy(states, table, targets)
            for states, targets in zip(hidden.split(sizes), row.targets.split(sizes), strict=True)
        )
        return speech + row.text_scale * text, torch.cat([each, each_text])


def open_base(program: SftProgram) -> SpeechLM:
    """The model that training starts from."""
    recipe = program.recipe
    if program.base_checkpoint is not None:
        return SpeechLM.load(program.base_checkpoint, program.codebook_size)
    return build(recipe.base, program.codebook_size, recipe.vocabulary, recipe.seed)


def uses_bf16(recipe: SftRecipe, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16; master weights stay float32.

    On 2 cores with AVX512_BF16 a step of the embedded recipe takes half as long; without such
    instructions it would take longer than in float32.
    """
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def prepare(
    model: PreTrainedModel, dropout: float, recompute: bool = False, compiled: bool = False
) -> None:
    """Attention over packed rows, with ``dropout`` of its weights while training.

    ``recompute``: layers keep their inputs alone for the backward pass. ``compiled``: layers
    through torch.compile, but for the attention, whose segments differ in every row.
    """
    model.set_attn_implementation(SEGMENTS)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout  # type: ignore[assignment]
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if compiled:
        AttentionInterface.register(SEGMENTS, torch.compiler.disable(segment_attention))
        for layer in layers_of(model):
            layer.forward = torch.compile(layer.forward, dynamic=True)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks, which transformers names as those that belong together."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(f"{type(model).__name__} does not say which modules are its layers")
    return layers
