"""The rollouts' vLLM engine over HTTP: token ids in, token ids and log-probabilities out.

    GET  /health         alive; which weights it holds, and which start of it this is
    POST /complete       a whole rollout, with the weights that it must be made with
    POST /weights/file   take the run folder's weights.safetensors
    POST /weights/nccl/  init, start, update, finish: vLLM's native transfer between GPUs

vLLM runs inside of this process and is stepped by one thread. A rollout is one batch, in its own
order: the same requests meet the same weights in the same batches, so the same tokens come out,
whatever happened before. All but ``/health`` wants the run folder's secret. What goes wrong inside
of vLLM ends the process: who watches it starts it again, and who asks it gives it the weights anew.

``python -m tts_assets.rlhf.engine_server run.json --host H --port P``; ``engine.py`` does that.

What vLLM's workers learn in addition: to take the policy's weights from a file.

vLLM mixes the class into its own worker, which has ``model_runner``.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import os
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import load_file

from tts_assets.rlhf.config import EngineProgram
from tts_assets.rlhf.engine import LABEL, SECRET, WEIGHTS
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request

EXTENSION = "tts_assets.rlhf.engine_server.TakesWeights"


class TakesWeights:
    """Named in ``worker_extension_cls``; its methods are called by ``collective_rpc``."""

    model_runner: Any

    def take_weights_file(self, path: str) -> None:
        """Replace the model's weights by those of a safetensors file with all of their names.

        Also the output matrix of a tied model must be there by its own name: vLLM reloads layer
        by layer, and one that it is given nothing for keeps its old weights without a word.
        """
        self.model_runner.reload_weights(weights_iterator=iter(load_file(path).items()))


ENGINE_DIED = 1
OTHER_WEIGHTS = 409
T = TypeVar("T")


class RolloutRequest(BaseModel):
    """``prompts`` are token ids, ``seeds`` one each; ``weights`` is their label."""

    weights: str
    sampling: SamplingConfig
    prompts: list[list[int]]
    seeds: list[int]


class Label(BaseModel):
    weights: str


class RequestError(ValueError):
    """What cannot be answered; the engine is as before."""


class EngineService:
    """vLLM in this process. One thread uses it, the one that made it."""

    def __init__(self, program: EngineProgram) -> None:
        # In a process of its own the engine would begin with the first requests while the next
        # are still on their way: other batches each time, and other roundings.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from tts_assets.serving.served_model import open_prompts, read_card
        from tts_assets.serving.vllm_engine import VllmEngine

        self.folder = program.run_dir
        self.weights: str | None = None  # those of the serving model have no label
        folder, config = program.serving_model, program.engine
        on_gpus: dict[str, Any] = {
            "tensor_parallel_size": max(1, config.gpus),
            "gpu_memory_utilization": config.gpu_memory,
            "weight_transfer_config": {"backend": "nccl"},
        }
        self.vllm = VllmEngine(
            folder,
            open_prompts(folder, read_card(folder)).vocabulary,
            dtype=config.dtype,
            max_sequences=config.max_sequences,
            worker_extension_cls=EXTENSION,
            # The model's own, before temperature and filters, over the whole vocabulary: as TRL's.
            logprobs_mode="raw_logprobs",
            **(on_gpus if torch.cuda.is_available() else {}),
        )

    def complete(self, rollout: RolloutRequest) -> dict[str, Any]:
        requests = [
            Request(np.asarray(prompt, dtype=np.int64), seed)
            for prompt, seed in zip(rollout.prompts, rollout.seeds, strict=True)
        ]
        positions = self.vllm.llm.model_config.max_model_len
        longest = max(len(prompt) for prompt in rollout.prompts) + rollout.sampling.max_tokens + 1
        if longest > positions:
            raise RequestError(
                f"the longest prompt and max_tokens need {longest} positions, the model has "
                f"{positions}: lower sampling.max_tokens, or leave long prompts out"
            )
        completions = self.vllm.complete(requests, rollout.sampling)
        return {
            "token_ids": [completion.token_ids.tolist() for completion in completions],
            "logprobs": [completion.logprobs.tolist() for completion in completions],
        }

    def take_file(self, label: str) -> None:
        """Load the run folder's weights; raises RequestError if it still shows older ones."""
        path = self.folder / WEIGHTS
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get(LABEL)
        if found != label:
            raise RequestError(f"{path} has the weights {found}, not {label}")
        self.weights = None
        self.vllm.llm.collective_rpc("take_weights_file", args=(str(path),))
        self.weights = label

    def take_nccl(self, what: str, body: dict[str, Any]) -> None:
        """One step of vLLM's transfer; after the last one it holds the weights ``body`` names."""
        llm = self.vllm.llm
        self.weights = None
        if what == "init":
            llm.init_weight_transfer_engine(body)
        elif what == "start":
            llm.start_weight_update()
        elif what == "update":
            llm.update_weights(body)
        elif what == "finish":
            llm.finish_weight_update()
            self.weights = str(body["weights"])
        else:
            raise RequestError(f"no step {what!r} of a transfer: init, start, update, finish")


def build_app(engine: EngineService, thread: ThreadPoolExecutor, secret: str) -> FastAPI:
    def authorized(authorization: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(authorization.encode(), f"Bearer {secret}".encode()):
            raise HTTPException(401, "wrong secret: it lies in the engine's run folder")

    async def in_engine(function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
        except RequestError as error:
            raise HTTPException(400, str(error)) from None
        except Exception:  # noqa: BLE001  it goes on in another process
            traceback.print_exc()
            os._exit(ENGINE_DIED)

    app = FastAPI(openapi_url=None)
    instance = uuid.uuid4().hex
    closed = [Depends(authorized)]

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"instance": instance, "weights": engine.weights, "pid": os.getpid()}

    @app.post("/complete", dependencies=closed)
    async def complete(rollout: RolloutRequest) -> dict[str, Any]:
        if rollout.weights != engine.weights:
            raise HTTPException(OTHER_WEIGHTS, f"holds the weights {engine.weights}")
        return await in_engine(engine.complete, rollout)

    @app.post("/weights/file", dependencies=closed)
    async def file(label: Label) -> None:
        await in_engine(engine.take_file, label.weights)

    @app.post("/weights/nccl/{what}", dependencies=closed)
    async def nccl(what: str, body: dict[str, Any]) -> None:
        await in_engine(engine.take_nccl, what, body)

    return app


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("config", type=Path, help="JSON file of EngineProgram")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(argv)
    program = EngineProgram.from_json(options.config)
    thread = ThreadPoolExecutor(1, "engine")
    engine = thread.submit(EngineService, program).result()
    app = build_app(engine, thread, (program.run_dir / SECRET).read_text())
    config = uvicorn.Config(
        app, options.host, options.port, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.run()
    os._exit(0 if server.started else ENGINE_DIED)  # not waiting for a rollout nobody wants


if __name__ == "__main__":
    main()
