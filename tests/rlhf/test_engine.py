"""The real vLLM server with the trainer's weights; one server for all tests."""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rlhf.conftest import TEXTS
from tests.support.codecs import saved
from tests.support.speaking import Speaking, publish_all
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.processes import LOOPBACK, Server, ServerDied, free_port
from tts_assets.rlhf.config import EngineProgram
from tts_assets.rlhf.engine import SECRET, hosted
from tts_assets.rlhf.engine_client import EngineClient, EngineError, FileSender
from tts_assets.rlhf.rollouts import full_logprobs
from tts_assets.serving.config import VllmConfig
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request
from tts_assets.speechlm.model import SpeechLM

pytestmark = pytest.mark.slow
SAMPLING = SamplingConfig(
    temperature=1.0, top_k=0, repetition_penalty=1.0, min_tokens=5, max_tokens=40
)
# vLLM's CPU attention may multiply in bfloat16; with old weights the difference exceeds 0.1.
TOLERANCE = 2e-2


@pytest.fixture
def client(engine: EngineProgram, server: Server) -> EngineClient:
    return client_of(engine, server)


def client_of(engine: EngineProgram, server: Server) -> EngineClient:
    def check() -> None:
        server.check()

    return EngineClient(server.url, engine, check, print)


@pytest.fixture
def policy(speaking: Speaking) -> SpeechLM:
    return Synthesizer.open(speaking.serving.path).engine.lm  # type: ignore[attr-defined]


@pytest.fixture
def requests(speaking: Speaking) -> list[Request]:
    synthesizer = Synthesizer.open(speaking.serving.path)
    return [
        synthesizer.request(SynthesisLine(text, seed=seed), 0)
        for seed, text in enumerate(text for text in TEXTS for _ in range(4))
    ]


def disturb(lm: SpeechLM, seed: int) -> None:
    """Changes the weights as a training step does, but by more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def ask(client: EngineClient, lm: SpeechLM, requests: Sequence[Request]) -> list[Completion]:
    sender = FileSender(lm.model, client.config, client.folder)
    return client.complete(requests, SAMPLING, lm.vocabulary, sender)


def largest_gap(lm: SpeechLM, requests: Sequence[Request], answers: Sequence[Completion]) -> float:
    return max(
        float(np.abs(full_logprobs(lm, request, answer).numpy() - answer.logprobs).max())
        for request, answer in zip(requests, answers, strict=True)
    )


def tokens(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.token_ids.tolist() for completion in completions]


def test_engine_and_trainer_agree_after_each_weight_transfer(
    client: EngineClient, policy: SpeechLM, requests: list[Request], speaking: Speaking
) -> None:
    """The embeddings of the test model are tied: an old output matrix would be detected."""
    assert policy.model.config.tie_word_embeddings
    base = Synthesizer.open(speaking.serving.path).engine.lm  # type: ignore[attr-defined]
    for step in range(3):
        disturb(policy, step)
        answers = ask(client, policy, requests)
        assert largest_gap(policy, requests, answers) < TOLERANCE
        assert largest_gap(base, requests, answers) > 5 * TOLERANCE


def test_only_speech_tokens_are_sampled(
    client: EngineClient, policy: SpeechLM, requests: list[Request]
) -> None:
    answers = ask(client, policy, requests)
    for answer in answers:
        speech = answer.token_ids[:-1] if answer.ended else answer.token_ids
        assert len(speech) == len(answer.codes) >= SAMPLING.min_tokens
        assert answer.ended or len(speech) == SAMPLING.max_tokens
        assert (answer.codes < policy.vocabulary.codebook_size).all()
        assert len(answer.logprobs) == len(answer.token_ids)


def test_a_rollout_has_the_same_tokens_after_a_crash(
    client: EngineClient, server: Server, policy: SpeechLM, requests: list[Request]
) -> None:
    first = ask(client, policy, requests)
    disturb(policy, 9)
    other = ask(client, policy, requests)
    assert tokens(other) != tokens(first)
    health = client.health()
    assert health is not None
    os.kill(health["pid"], signal.SIGKILL)
    again = ask(client, policy, requests)
    assert tokens(again) == tokens(other)
    for ours, theirs in zip(again, other, strict=True):
        assert np.array_equal(ours.logprobs, theirs.logprobs)
    assert server.restarted == 1


def test_requests_need_the_secret(server: Server) -> None:
    request = urllib.request.Request(
        f"{server.url}/complete", b"{}", {"Authorization": "Bearer wrong"}
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request)


def test_only_the_owner_can_read_the_secret(engine: EngineProgram, server: Server) -> None:
    assert (engine.run_dir / SECRET).stat().st_mode & 0o077 == 0


def test_a_prompt_that_is_too_long_is_rejected(
    client: EngineClient, policy: SpeechLM, requests: list[Request]
) -> None:
    long = replace(requests[0], prompt=np.resize(requests[0].prompt, 1000))
    with pytest.raises(EngineError, match="need 1041 positions, the model has 1024"):
        ask(client, policy, [long])


def test_an_engine_that_cannot_start_fails(
    speaking: Speaking, policy: SpeechLM, requests: list[Request], tmp_path: Path
) -> None:
    config = VllmConfig(restarts=0, python=Path("/bin/false"))
    program = EngineProgram(run_dir=tmp_path, serving_model=speaking.serving.path, vllm=config)
    with (
        hosted(program, LOOPBACK, free_port(), print) as server,
        pytest.raises(ServerDied, match="ended with status 1, 1 times in a row"),
    ):
        ask(client_of(program, server), policy, requests)


def test_rollouts_of_a_codec_with_several_codebooks_are_frames(tmp_path: Path, clips: Path) -> None:
    codec = saved("snac", tmp_path / "snac")
    speaking = publish_all(ArtifactStore(tmp_path / "storage"), clips, codec)
    synthesizer = Synthesizer.open(speaking.serving.path)
    policy: SpeechLM = synthesizer.engine.lm  # type: ignore[attr-defined]
    disturb(policy, 1)
    requests = [synthesizer.request(SynthesisLine(text, seed=1), 0) for text in TEXTS]
    config = VllmConfig(start_seconds=300)
    folder = tmp_path / "engine"
    program = EngineProgram(run_dir=folder, serving_model=speaking.serving.path, vllm=config)
    with hosted(program, LOOPBACK, free_port(), print) as server:
        server.wait_until_healthy()
        answers = ask(client_of(program, server), policy, requests)
    assert largest_gap(policy, requests, answers) < TOLERANCE
    for answer in answers:
        speech = policy.vocabulary.codes(answer.token_ids)
        assert policy.vocabulary.frame.first_misplaced(speech) is None
        assert len(answer.codes) == len(speech) // 7 * 7
        assert len(speech) % 7 == 0 if answer.ended else len(speech) == SAMPLING.max_tokens
