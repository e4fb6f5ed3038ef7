"""vLLM's own transfer between two GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rlhf.test_engine import SAMPLING, client_of, disturb, largest_gap
from tests.speaking import Speaking
from tts_assets.ports import LOOPBACK, free_port
from tts_assets.rlhf.engine import hosted
from tts_assets.rlhf.engine_config import EngineProgram, VllmRollouts
from tts_assets.rlhf.weights import NcclSender, sender
from tts_assets.serving.synthesis import Line, Synthesizer

pytestmark = [pytest.mark.slow, pytest.mark.gpu]


def test_weights_go_from_gpu_to_gpu(speaking: Speaking, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: NCCL has no group of two ranks on one")
    synthesizer = Synthesizer.open(speaking.serving.path, device="cuda:0")
    policy = synthesizer.engine.lm  # type: ignore[attr-defined]
    requests = [synthesizer.request(Line("one two", seed=seed), 0) for seed in range(8)]
    config = VllmRollouts(dtype="float32", gpu_memory=0.2)
    program = EngineProgram(run_dir=tmp_path, serving_model=speaking.serving.path, engine=config)
    with hosted(program, LOOPBACK, free_port(), print, devices=["1"]) as server:
        client = client_of(program, server)
        sends = sender(policy.model, config, tmp_path)
        assert isinstance(sends, NcclSender)
        for step in range(3):
            disturb(policy, step)
            answers = client.complete(requests, SAMPLING, policy.vocabulary, sends)
            assert largest_gap(policy, requests, answers) < 2e-2
