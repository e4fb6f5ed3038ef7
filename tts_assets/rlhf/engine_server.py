"""HTTP server of the vLLM engine: token ids in, token ids and log-probabilities out.

    GET  /health         state: the weights' label, and an id of this start of the server
    POST /complete       completes a whole rollout with the weights that the request names
    POST /weights/file   loads weights.safetensors of the run folder
    POST /weights/nccl/  init, start, update, finish: vLLM's weight transfer between GPUs

vLLM runs inside this process, in one thread. A rollout is one batch in a fixed order, so the same
requests and weights give the same tokens. All requests but ``/health`` need the secret of the run
folder. An error inside vLLM ends the process: the supervisor restarts it, and the client sends the
weights again.

``engine.py`` starts it: ``python -m tts_assets.rlhf.engine_server run.json --host H --port P``.
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

EXTENSION = "tts_assets.rlhf.engine_server.WeightLoader"
ENGINE_DIED = 1  # exit status
OTHER_WEIGHTS = 409  # HTTP status
T = TypeVar("T")


class WeightLoader:
    """Extension of vLLM's worker: loads weights from a file.

    vLLM adds the class to its worker, which has ``model_runner`` (``worker_extension_cls``).
    """

    model_runner: Any

    def load_weights_file(self, path: str) -> None:
        """Replaces the model's weights by a safetensors file that has all of their names.

        A tied output matrix must be in the file under its own name: vLLM reloads layer by layer,
        and a layer without weights keeps its old ones silently.
        """
        self.model_runner.reload_weights(weights_iterator=iter(load_file(path).items()))


class RolloutRequest(BaseModel):
    """``prompts``: token ids of each prompt. ``seeds``: one each. ``weights``: their label."""

    weights: str
    sampling: SamplingConfig
    prompts: list[list[int]]
    seeds: list[int]


class WeightLabel(BaseModel):
    """The label of the weights in the run folder."""

    weights: str


class RequestError(ValueError):
    """An invalid request; the engine's state is unchanged."""


class EngineService:
    """vLLM in this process. Only the thread that creates it may use it."""

    def __init__(self, program: EngineProgram) -> None:
        # In a separate process the engine would start with the first requests before the others
        # arrive: the batches, and with them the rounding, would differ from run to run.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from tts_assets.serving.served_model import open_prompts, read_card
        from tts_assets.serving.vllm_engine import VllmEngine

        self.folder = program.run_dir
        self.weights: str | None = None  # label; the serving model's own weights have none
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
            # Like TRL's: before temperature and filters, over the whole vocabulary.
            logprobs_mode="raw_logprobs",
            **(on_gpus if torch.cuda.is_available() else {}),
        )

    def complete(self, rollout: RolloutRequest) -> dict[str, Any]:
        """Returns ``token_ids`` and ``logprobs``, a list for each prompt.

        Raises :class:`RequestError` if a prompt and its completion may exceed the model's length.
        """
        requests = [
            Request(np.asarray(prompt, dtype=np.int64), seed)
            for prompt, seed in zip(rollout.prompts, rollout.seeds, strict=True)
        ]
        positions = self.vllm.llm.model_config.max_model_len
        longest = max(len(prompt) for prompt in rollout.prompts) + rollout.sampling.max_tokens + 1
        if longest > positions:
            raise RequestError(
                f"the longest prompt and max_tokens need {longest} positions, the model has "
                f"{positions}: lower sampling.max_tokens, or leave out long prompts"
            )
        completions = self.vllm.complete(requests, rollout.sampling)
        return {
            "token_ids": [completion.token_ids.tolist() for completion in completions],
            "logprobs": [completion.logprobs.tolist() for completion in completions],
        }

    def load_file(self, label: str) -> None:
        """Loads the weights of the run folder.

        Raises :class:`RequestError` if the file has another label: a network file system may still
        show an older file.
        """
        path = self.folder / WEIGHTS
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get(LABEL)
        if found != label:
            raise RequestError(f"{path} has the weights {found}, not {label}")
        self.weights = None
        self.vllm.llm.collective_rpc("load_weights_file", args=(str(path),))
        self.weights = label

    def transfer(self, step: str, body: dict[str, Any]) -> None:
        """Runs one step of vLLM's weight transfer. "finish" sets the label of the weights.

        Raises :class:`RequestError` for an unknown step.
        """
        llm = self.vllm.llm
        self.weights = None
        if step == "init":
            llm.init_weight_transfer_engine(body)
        elif step == "start":
            llm.start_weight_update()
        elif step == "update":
            llm.update_weights(body)
        elif step == "finish":
            llm.finish_weight_update()
            self.weights = str(body["weights"])
        else:
            raise RequestError(f"no step {step!r} of a transfer: init, start, update, finish")


def build_app(engine: EngineService, thread: ThreadPoolExecutor, secret: str) -> FastAPI:
    """Returns the HTTP application. ``thread`` runs all calls of ``engine``."""

    def check_secret(authorization: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(authorization.encode(), f"Bearer {secret}".encode()):
            raise HTTPException(401, "wrong secret: the run folder of the engine has it")

    async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
        except RequestError as error:
            raise HTTPException(400, str(error)) from None
        except Exception:  # noqa: BLE001  the supervisor starts another process
            traceback.print_exc()
            os._exit(ENGINE_DIED)

    app = FastAPI(openapi_url=None)
    instance = uuid.uuid4().hex
    protected = [Depends(check_secret)]

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"instance": instance, "weights": engine.weights, "pid": os.getpid()}

    @app.post("/complete", dependencies=protected)
    async def complete(rollout: RolloutRequest) -> dict[str, Any]:
        if rollout.weights != engine.weights:
            raise HTTPException(OTHER_WEIGHTS, f"the engine has the weights {engine.weights}")
        return await in_thread(engine.complete, rollout)

    @app.post("/weights/file", dependencies=protected)
    async def file(label: WeightLabel) -> None:
        await in_thread(engine.load_file, label.weights)

    @app.post("/weights/nccl/{step}", dependencies=protected)
    async def nccl(step: str, body: dict[str, Any]) -> None:
        await in_thread(engine.transfer, step, body)

    return app


def main(argv: list[str] | None = None) -> None:
    """Serves until SIGTERM. The exit status is 1 if the server could not start."""
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
    os._exit(0 if server.started else ENGINE_DIED)  # a rollout that still runs is not needed


if __name__ == "__main__":
    main()
