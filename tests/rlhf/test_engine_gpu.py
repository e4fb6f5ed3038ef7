"""vLLM on a separate GPU with NCCL, and on the GPU of the policy with a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rlhf.test_engine import SAMPLING, client_of, disturb, largest_gap
from tests.support.speaking import Speaking
from tts_assets.core.processes import LOOPBACK, free_port
from tts_assets.rlhf.config import EngineProgram, VllmRollouts
from tts_assets.rlhf.engine import hosted
from tts_assets.rlhf.engine_client import FileSender, NcclSender, weight_sender
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer

pytestmark = [pytest.mark.slow, pytest.mark.gpu]


TWO_GPUS = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs: NCCL has no two ranks on one GPU"
)


@pytest.mark.parametrize(
    ("config", "device", "sender_type"),
    [
        pytest.param(
            VllmRollouts(dtype="float32", gpu_memory=0.2), "1", NcclSender, marks=TWO_GPUS
        ),
        (VllmRollouts(dtype="float32", gpus=0, gpu_memory=0.2), "0", FileSender),
    ],
    ids=["nccl", "shared"],
)
def test_the_engine_has_the_weights_of_the_policy(
    speaking: Speaking, tmp_path: Path, config: VllmRollouts, device: str, sender_type: type
) -> None:
    synthesizer = Synthesizer.open(speaking.serving.path, device="cuda:0")
    policy = synthesizer.engine.lm  # type: ignore[attr-defined]
    requests = [synthesizer.request(SynthesisLine("one two", seed=seed), 0) for seed in range(8)]
    program = EngineProgram(run_dir=tmp_path, serving_model=speaking.serving.path, engine=config)
    with hosted(program, LOOPBACK, free_port(), print, devices=[device]) as server:
        client = client_of(program, server)
        sender = weight_sender(policy.model, config, tmp_path)
        assert isinstance(sender, sender_type)
        for step in range(3):
            disturb(policy, step)
            answers = client.complete(requests, SAMPLING, policy.vocabulary, sender)
            assert largest_gap(policy, requests, answers) < 2e-2
