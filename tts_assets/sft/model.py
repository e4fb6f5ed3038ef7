"""The model in training: base, attention and precision, loss, LoRA adapters, and FLOPs.

Shapes: T tokens of a packed row, N targets, H hidden size, V tokens of the vocabulary.

Training packs samples into rows with an attention of its own (``speechlm/ops.py``), and
multiplies the last hidden states by the output matrix in chunks (``speechlm/ops.py``). A model
whose logits are scaled or capped, whose output layer has a bias, or whose attention needs more than
causal attention with a window would silently be trained as another function.
:func:`check_function` finds such models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from tts_assets.core.config import ConfigError
from tts_assets.sft.config import Lora, SftProgram, SftRecipe
from tts_assets.sft.packing import Packed
from tts_assets.speechlm.config import ADAPTER_CARD, AdapterCard
from tts_assets.speechlm.formats import recognize
from tts_assets.speechlm.model import (
    SpeechLM,
    build,
    input_table,
    output_table,
    weights_digest,
)
from tts_assets.speechlm.ops import SEGMENTS, segment_attention, summed_cross_entropy
from tts_assets.speechlm.vocabulary import declare_lexicon, load_tokenizer

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

Probe = Callable[[Tensor, Tensor, Tensor], None]  # of hidden (N, H), table (V, H), targets (N,)
# Dense bfloat16 throughput from the data sheets of the manufacturers, in FLOP/s.
PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
}
LENGTHS = (20, 12)  # of two packed samples
TUNER = "default"  # peft's name of the adapters while they are trained
TOLERANCE = 1e-3  # of the largest logit; float32 sums in another order differ by 1e-6
# Keys of configurations that explain a difference, with the value of a model without it.
REASONS = {
    "logits_scaling": (1.0, "it divides its logits"),
    "logit_scale": (1.0, "it multiplies its logits"),
    "final_logit_softcapping": (None, "it caps its logits"),
    "attn_logit_softcapping": (None, "it caps its attention scores"),
}


class SpeechLoss(nn.Module):
    """The model with its loss: the cross-entropy of the N targets of a packed row."""

    def __init__(self, model: PreTrainedModel, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self.bf16 = bf16
        self.probe: Probe | None = None  # called in evaluation with the inputs of the loss

    def forward(self, row: Packed) -> tuple[Tensor, Tensor]:
        """The sum over the targets (float32 scalar), and the loss of each (N,), without gradient.

        In the sum the losses of text targets are multiplied by ``row.text_scale``.
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
    """The model that training starts from.

    Raises :class:`ConfigError` for a base that training would compute as another function, and
    :class:`VocabularyError` for a base that cannot use the lexicon.
    """
    recipe, codebook_size = program.recipe, program.codebook_size
    if program.base_checkpoint is not None:
        lm = SpeechLM.load(program.base_checkpoint, codebook_size)
    else:
        lm = build(recipe.base, codebook_size, recipe.vocabulary, recipe.seed, program.frame)
    if recipe.base.hub is not None:
        check_function(lm.model, recipe.base.hub)
    lm.vocabulary = declare_lexicon(lm.tokenizer, codebook_size, program.lexicon)
    return lm


def uses_bf16(recipe: SftRecipe, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16. The weights stay float32.

    On 2 cores with AVX512_BF16 a step of the embedded recipe takes half the time of float32.
    Without these instructions bfloat16 is slower than float32.
    """
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def prepare(
    model: PreTrainedModel, dropout: float, recompute: bool = False, compiled: bool = False
) -> None:
    """Set the attention over packed rows, with ``dropout`` of its weights in training.

    With ``recompute`` layers keep only their inputs for the backward pass. With ``compiled`` layers
    go through torch.compile. The attention does not, because its segments differ in every row.
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
    """The repeated blocks of the model, which transformers lists in ``_no_split_modules``.

    Raises ValueError if the model lists none.
    """
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(f"{type(model).__name__} does not say which modules are its layers")
    return layers


class Flops:
    """Model FLOPs of training, for the model FLOPs utilization (MFU).

    Forward and backward pass of a matrix of P elements cost 6 P a token, causal attention over n
    tokens 6 n^2 a layer and feature (Chowdhery et al. 2022, PaLM, appendix B, halved for
    causality). The output matrix is multiplied at positions with targets only. Padding is not
    counted. A frozen matrix needs no gradient for its weights: 4 P.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """``model``: before its weights are sharded."""
        layers = layers_of(model)
        self.matrices = sum(of_matrix(p) for m in layers for p in m.parameters() if p.ndim == 2)
        self.table = of_matrix(output_table(model))
        config = model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.features = len(layers) * config.num_attention_heads * head

    def of(self, lengths: Iterable[int], targets: int) -> float:
        """FLOPs of a step over samples of these ``lengths``, with ``targets`` targets in total."""
        lengths = list(lengths)
        attention = 6.0 * self.features * sum(n * n for n in lengths)
        return self.matrices * sum(lengths) + self.table * targets + attention


def of_matrix(matrix: Tensor) -> float:
    """Training FLOPs of a matrix per token."""
    return (6.0 if matrix.requires_grad else 4.0) * matrix.numel()


def peak(device: torch.device) -> float | None:
    """The dense bfloat16 FLOP/s of the device; None where they are not known (any CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAKS.items() if key in name), None)


def check_lora(recipe: SftRecipe) -> None:
    """Raise :class:`ConfigError` if the embeddings of new tokens would stay random."""
    if recipe.lora is None or recipe.lora.embeddings or recipe.base.hub is None:
        return
    if recognize(load_tokenizer(recipe.base.hub).get_vocab()) is None:
        raise ConfigError(
            f"{recipe.base.hub} has no speech vocabulary: its rows would be new, and lora alone "
            "leaves them random. Write lora.embeddings = true, or use a base that has speech tokens"
        )


def adapt_lora(model: PreTrainedModel, config: Lora, seed: int) -> LoraModel:
    """Freeze ``model`` and add adapters with random weights from ``seed`` to its layers.

    Hu et al. 2022, LoRA, arXiv 2106.09685; implemented by peft. The names of layers do not change.
    The name of the weight of an adapted layer gets the suffix ``.base_layer``.
    """
    from peft.tuners.lora import LoraModel

    settings = lora_settings(config, lora_targets(model, config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuner = LoraModel(model, settings, TUNER)
    if config.embeddings:
        for table in (input_table(model), output_table(model)):
            table.requires_grad_(True)
    return tuner


def lora_settings(config: Lora, targets: list[str]) -> LoraConfig:
    """The configuration of peft for the modules ``targets``."""
    from peft import LoraConfig  # takes three seconds to import

    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
    )


def lora_targets(model: PreTrainedModel, config: Lora) -> list[str]:
    """The full names of the matrices that get adapters. Raises :class:`ConfigError`."""
    inside = {id(module) for layer in layers_of(model) for module in layer.modules()}
    linear = [
        name
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear)
    ]
    known = sorted({_last(name) for name in linear})
    unknown = sorted(set(config.targets) - set(known))
    if unknown:
        raise ConfigError(f"lora.targets {unknown} are no matrices of the layers; known: {known}")
    return [name for name in linear if _last(name) in (config.targets or known)]


def merge_lora(base: SpeechLM, recipe: SftRecipe, trained: dict[str, Tensor]) -> SpeechLM:
    """Merge trained adapters into ``base``, which must be the untrained base. Returns ``base``.

    Raises ValueError if ``trained`` has tensors that the adapted model does not have.
    """
    assert recipe.lora is not None
    if recipe.lora.four_bit:
        round_to_four_bit(base.model)
    tuner = adapt_lora(base.model, recipe.lora, recipe.seed)
    found = base.model.load_state_dict(trained, strict=False)
    if found.unexpected_keys:
        raise ValueError(f"{found.unexpected_keys} are no parameters of the adapted model")
    tuner.merge_and_unload()
    return base


def write_adapter(
    folder: Path, base: SpeechLM, recipe: SftRecipe, trained: dict[str, Tensor]
) -> None:
    """Write trained adapters in the format of peft. ``base`` is the untrained base.

    ``adapter_model.safetensors`` and ``adapter_config.json`` are for peft and vLLM, ``base.json``
    says what the adapters belong to.
    """
    assert recipe.lora is not None
    targets = {_last(name) for name in lora_targets(base.model, recipe.lora)}
    settings = lora_settings(recipe.lora, sorted(targets)).to_dict() | {
        "base_model_name_or_path": recipe.base.hub or recipe.base.recipe,
        "target_modules": sorted(targets),  # peft writes a set, in another order each time
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    card = AdapterCard(base=weights_digest(base.model), vocabulary=base.vocabulary.digest)
    weights = {
        f"base_model.model.{name.replace(f'.{TUNER}.', '.')}": tensor.contiguous()
        for name, tensor in trained.items()
    }
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True))
    (folder / ADAPTER_CARD).write_text(card.to_json())


def hold_in_four_bit(model: PreTrainedModel, device: torch.device, bf16: bool) -> None:
    """Replace the frozen linear layers by layers of bitsandbytes with NF4 weights on ``device``."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    class FrozenLinear(Linear4bit):
        """Always in training mode: in evaluation, CPUs convert the weights and round them again."""

        def train(self, mode: bool = True) -> FrozenLinear:
            self.training = True
            return self

    kind: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
    for layer in layers_of(model):
        for name, module in list(layer.named_modules()):
            if not isinstance(module, nn.Linear) or module.weight.requires_grad:
                continue
            dtype = torch.bfloat16 if bf16 else torch.float32
            held = FrozenLinear(module.in_features, module.out_features, False, dtype, **kind)
            held.weight = Params4bit(module.weight.data, False, **kind)
            held.bias = module.bias
            held.to(device)  # rounds the weights
            parent, _, own = name.rpartition(".")
            setattr(layer.get_submodule(parent), own, held)


def round_to_four_bit(model: PreTrainedModel) -> None:
    """Give the linear layers the values that :func:`hold_in_four_bit` computes with."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for layer in layers_of(model):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                held = quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
                module.weight.data = dequantize_4bit(*held)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


@torch.no_grad()
def check_function(model: PreTrainedModel, name: str) -> None:
    """Compare the logits of training with the model's own, on random tokens.

    Raises :class:`ConfigError` with the reason if they differ.
    """
    training = model.training
    implementation = model.config._attn_implementation
    model.eval()
    ids = torch.randint(model.config.vocab_size, (sum(LENGTHS),), generator=_generator())
    ids = ids.to(model.device)
    own = torch.cat([model(part[None]).logits[0] for part in ids.split(LENGTHS)])
    try:
        ours = _packed_logits(model, ids)
    except (ValueError, TypeError) as error:
        raise ConfigError(_refusal(model, name, str(error))) from error
    finally:
        model.set_attn_implementation(implementation)
        model.train(training)
    difference = float((own - ours).abs().max() / own.abs().max())
    if difference > TOLERANCE:
        raise ConfigError(_refusal(model, name, f"its logits would differ by {difference:.2g}"))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _packed_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The logits (T, V) as training computes them: hidden states of a packed row, output matrix."""
    model.set_attn_implementation(SEGMENTS)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    output = model.base_model(
        input_ids=ids[None],
        position_ids=positions[None].to(model.device),
        segments=list(LENGTHS),
        use_cache=False,
    )
    table = model.get_output_embeddings().weight
    logits = output.last_hidden_state[0] @ table.T
    assert isinstance(logits, Tensor)
    return logits


def _refusal(model: PreTrainedModel, name: str, difference: str) -> str:
    reasons = [
        f"{words} ({key} = {getattr(model.config, key)})"
        for key, (plain, words) in REASONS.items()
        if getattr(model.config, key, plain) != plain
    ]
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        reasons.append("its output layer has a bias")
    return (
        f"{name}: {type(model).__name__} cannot be trained as itself: "
        f"{'; '.join(reasons) or difference}. Use a base of another architecture, such as Llama, "
        "Qwen, Mistral, SmolLM3, OLMo 2 or Gemma 3"
    )
