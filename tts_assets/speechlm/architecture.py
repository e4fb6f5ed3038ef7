"""Checks that the training computes the function of a model, for any ``AutoModelForCausalLM``.

Training packs samples into rows with an attention of its own (``attention.py``), and multiplies the
last hidden states by the output matrix in chunks (``loss.py``). A model whose logits are scaled or
capped, whose output layer has a bias, or whose attention needs more than causal attention with a
window would silently be trained as another function.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tts_assets.core.config import ConfigError
from tts_assets.speechlm.attention import SEGMENTS

LENGTHS = (20, 12)  # of two packed samples
TOLERANCE = 1e-3  # of the largest logit; float32 sums in another order differ by 1e-6
# Keys of configurations that explain a difference, with the value of a model without it.
REASONS = {
    "logits_scaling": (1.0, "it divides its logits"),
    "logit_scale": (1.0, "it multiplies its logits"),
    "final_logit_softcapping": (None, "it caps its logits"),
    "attn_logit_softcapping": (None, "it caps its attention scores"),
}


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
