"""Compares a serving model with its checkpoint: greedy tokens and log-probabilities::

    python -m tts_assets.serving.verify run.json

The reference is the checkpoint, sampled by ``speechlm/generate.py``. The serving folder is opened
as a user would open it: with ``AutoTokenizer`` on the whole prompt string,
``AutoModelForCausalLM``, and vLLM.

This is a program because vLLM may need a separate environment, and a GPU on another node.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tts_assets.core.artifacts import Agreement
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config
from tts_assets.serving.config import VerifyProgram
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request, allowed_at, allowed_ids, generate
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.vocabulary import SpeechVocabulary

# float32 sums in another order differ by 1e-6 to 1e-5 nats. A lost or untied weight gives 1e-1 and
# more.
TOLERANCE = 1e-3
# CPU attention of vLLM multiplies in bfloat16 if the processor supports it: 5e-3 measured.
VLLM_TOLERANCE = 2e-2


def agreements(program: VerifyProgram) -> dict[str, Agreement]:
    """Run the requested comparisons; results by engine.

    Raises :class:`ConfigError` if vLLM is requested and not installed.
    """
    if program.vllm and find_spec("vllm") is None:
        raise ConfigError(
            f"vLLM is not installed in {sys.executable}: set the interpreter that has it in "
            "[vllm] python, or write check_vllm = false under [serving]"
        )
    arguments = (
        *(program.checkpoint, program.serving_model, program.codebook_size),
        *(program.texts, program.tokens),
    )
    found = {"transformers": compare_transformers(*arguments)}
    if program.vllm:
        found["vllm"] = compare_vllm(*arguments)
    return found


def greedy(
    lm: SpeechLM, texts: Sequence[str], tokens: int
) -> tuple[list[Request], list[Completion]]:
    """Requests and completions of the reference: ``tokens`` greedy tokens after each text."""
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    requests = [Request(prompts.inference(text), seed=0) for text in texts]
    return requests, generate(lm, requests, greedy_sampling(tokens))


def greedy_sampling(tokens: int) -> SamplingConfig:
    """Greedy decoding of exactly ``tokens`` speech tokens."""
    return SamplingConfig(
        temperature=0, top_k=0, repetition_penalty=1.0, min_tokens=tokens, max_tokens=tokens
    )


def compare_transformers(
    checkpoint: Path, serving: Path, codebook_size: int, texts: Sequence[str], tokens: int
) -> Agreement:
    """Compare the serving folder in plain transformers with the checkpoint."""
    lm = SpeechLM.load(checkpoint, codebook_size)
    requests, completions = greedy(lm, texts, tokens)
    tokenizer = AutoTokenizer.from_pretrained(serving, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        serving, dtype=torch.float32, local_files_only=True
    )
    rows = []
    prompts_equal = True
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    for units, request, completion in zip(prompts.units(texts), requests, completions, strict=True):
        written = prompts.prompt_string(units)
        prompt = tokenizer(written, add_special_tokens=prompts.adds_prefix)["input_ids"]
        prompts_equal &= prompt == request.prompt.tolist()
        drawn = torch.from_numpy(completion.token_ids)
        logprobs = next_logprobs(model, torch.tensor(prompt), drawn, lm.vocabulary)
        allowed = torch.from_numpy(allowed_ids(lm.vocabulary))
        rows.append(_compare_row(logprobs, drawn, allowed, completion.logprobs))
    return _summarize(prompts_equal, rows, TOLERANCE)


def compare_vllm(
    checkpoint: Path, serving: Path, codebook_size: int, texts: Sequence[str], tokens: int
) -> Agreement:
    """Compare the serving folder in the vLLM engine with the checkpoint.

    The engine samples its own tokens, so only tokens before the first difference are compared.
    """
    from tts_assets.serving.vllm_engine import VllmEngine

    lm = SpeechLM.load(checkpoint, codebook_size)
    requests, completions = greedy(lm, texts, tokens)
    engine = VllmEngine(
        serving,
        lm.vocabulary,
        dtype="float32",  # also on GPUs: bfloat16 rounding hides wrong weights
        max_sequences=len(texts),
        # The KV cache of the full context of a large model needs gigabytes.
        max_model_len=max(len(request.prompt) for request in requests) + tokens + 1,
    )
    with closing(engine):
        answers = engine.complete(requests, greedy_sampling(tokens))
    rows = []
    for reference, answer in zip(completions, answers, strict=True):
        length = min(len(reference.token_ids), len(answer.token_ids))
        equal = reference.token_ids[:length] == answer.token_ids[:length]
        agreed = length if equal.all() else int(equal.argmin())
        differences = np.abs(reference.logprobs[:agreed] - answer.logprobs[:agreed])
        tie = agreed < length and (
            abs(reference.logprobs[agreed] - answer.logprobs[agreed]) < VLLM_TOLERANCE
        )
        missing = 0 if agreed == tokens or tie else 1
        rows.append((agreed, missing, float(differences.max(initial=0.0))))
    return _summarize(True, rows, VLLM_TOLERANCE)


@torch.inference_mode()
def next_logprobs(
    model: torch.nn.Module, prompt: Tensor, completion: Tensor, vocabulary: SpeechVocabulary
) -> Tensor:
    """Log-probabilities of the A allowed tokens at each of the L tokens of ``completion``.

    ``prompt`` has shape (P,), ``completion`` (L,). Returns float32 of (L, A).
    """
    ids = torch.cat([prompt, completion])[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    allowed = torch.from_numpy(allowed_at(vocabulary))
    here = allowed[torch.arange(len(completion)) % len(allowed)]
    logits = logits[:, torch.from_numpy(allowed_ids(vocabulary))].float()
    return logits.masked_fill(~here, -torch.inf).log_softmax(dim=1)


def _compare_row(
    logprobs: Tensor, drawn: Tensor, allowed: Tensor, expected: NDArray[np.float32]
) -> tuple[int, int, float]:
    """Number of tokens, tokens with another greedy choice, largest log-probability difference."""
    index = (drawn[:, None] == allowed).int().argmax(dim=1)
    chosen = logprobs.gather(1, index[:, None])[:, 0]
    best = logprobs[:, :-1].max(dim=1).values  # the end token was forbidden below min_tokens
    different = int((best - chosen > TOLERANCE).sum())
    return len(drawn), different, float((chosen - torch.from_numpy(expected)).abs().max())


def _summarize(
    prompts_equal: bool, rows: Sequence[tuple[int, int, float]], tolerance: float
) -> Agreement:
    return Agreement(
        prompts_equal=prompts_equal,
        tokens=sum(row[0] for row in rows),
        different=sum(row[1] for row in rows),
        largest_difference=max((row[2] for row in rows), default=0.0),
        tolerance=tolerance,
    )


def main(argv: list[str] | None = None) -> None:
    """Run the comparisons of the ``run.json`` in ``argv`` and write the result."""
    program = load_config(VerifyProgram, argv)
    with Run(program.run_dir) as run:
        found = agreements(program)
        run.finish({engine: agreement.model_dump() for engine, agreement in found.items()})


if __name__ == "__main__":
    main()
