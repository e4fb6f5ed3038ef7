"""HTTP client of the vLLM engine: sends the weights and requests completions.

A rollout that the engine loses is repeated: the client waits until the engine is healthy again,
sends the same weights, and asks again with the same seeds.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from tts_assets.rlhf.config import EngineProgram
from tts_assets.rlhf.engine import GRACE_SECONDS, LOG, SECRET
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request
from tts_assets.speechlm.vocabulary import SpeechVocabulary

POLL_SECONDS = 0.2
HEALTH_SECONDS = 10.0  # time limit of a health request
ROLLOUT_SECONDS = 3600.0  # time limit of all other requests; a slower engine counts as lost
REFUSED = (400, 401, 422)  # statuses of requests that would fail again


class EngineError(RuntimeError):
    """The engine cannot complete rollouts any more. The message has the reason and the log."""


class EngineLost(Exception):
    """The engine died or has other weights. It may come back."""


class WeightSender(Protocol):
    """Sends the policy's weights to the engine that ``client`` reaches, under a label."""

    def send(self, client: EngineClient, label: str) -> None:
        """Returns when the engine has the weights. Raises EngineLost or EngineError."""
        ...


class EngineClient:
    """Requests rollouts from an engine, with the weights to use.

    Attributes:
        lost: how often the engine was lost.
        push_seconds: seconds in which the weights of the last rollout were sent.
        rollout_seconds: seconds of the last rollout, without the weights.
    """

    def __init__(
        self,
        url: str,
        program: EngineProgram,
        check: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        """Creates a client; it sends nothing yet.

        Args:
            url: address of the server.
            program: the engine; its run folder has its secret and its log.
            check: called repeatedly while the engine is not healthy; what it raises ends the wait.
            log: called with a message when the engine is lost.
        """
        self.url, self.folder = url, program.run_dir
        self.config, self.restarts = program.engine, program.vllm.restarts
        self.start_seconds = program.vllm.start_seconds
        self.check, self.log = check, log
        self.lost = 0
        self.push_seconds = self.rollout_seconds = 0.0

    def complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        vocabulary: SpeechVocabulary,
        sender: WeightSender,
    ) -> list[Completion]:
        """Returns a completion for each request, in order, with the weights that are sent now.

        Raises :class:`EngineError` if the engine refuses the requests or is lost too often.
        """
        label = uuid.uuid4().hex
        for _ in range(self.restarts + 1):
            try:
                self.wait_until_healthy()
                started = time.monotonic()
                sender.send(self, label)
                self.push_seconds = time.monotonic() - started
                completions = self._complete(requests, sampling, vocabulary, label)
                self.rollout_seconds = time.monotonic() - started - self.push_seconds
                return completions
            except EngineLost as error:
                self.lost += 1
                self.log(f"the engine was lost: {error}; the rollout is repeated when it is back")
        raise EngineError(
            f"the engine died of this rollout {self.restarts + 1} times in a row; {self.log_hint()}"
        )

    def _complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        vocabulary: SpeechVocabulary,
        label: str,
    ) -> list[Completion]:
        answer = self.post(
            "/complete",
            {
                "weights": label,
                "sampling": sampling.model_dump(mode="json"),
                "prompts": [request.prompt.tolist() for request in requests],
                "seeds": [request.seed for request in requests],
            },
        )
        completions = []
        for ids, logprobs in zip(answer["token_ids"], answer["logprobs"], strict=True):
            tokens = np.asarray(ids, dtype=np.int64)
            completions.append(
                Completion(
                    codes=vocabulary.codes(tokens),
                    ended=bool(ids) and ids[-1] == vocabulary.speech_end,
                    token_ids=tokens,
                    logprobs=np.asarray(logprobs, dtype=np.float32),
                )
            )
        return completions

    def health(self) -> dict[str, Any] | None:
        """Returns the engine's state (``instance``, ``weights``, ``pid``); None without answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=HEALTH_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return None

    def wait_until_healthy(self) -> dict[str, Any]:
        """Returns :meth:`health` once the engine answers.

        Raises :class:`EngineError` after the time limit of a start.
        """
        seconds = self.start_seconds + GRACE_SECONDS
        deadline = time.monotonic() + seconds
        while (found := self.health()) is None:
            self.check()
            if time.monotonic() > deadline:
                raise EngineError(
                    f"no engine at {self.url} within {seconds:g} s; {self.log_hint()}"
                )
            time.sleep(POLL_SECONDS)
        return found

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Posts JSON and returns the JSON answer.

        Raises :class:`EngineLost` without an answer, and :class:`EngineError` if the engine refuses
        the request.
        """
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {(self.folder / SECRET).read_text()}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=ROLLOUT_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")
            if error.code in REFUSED:
                raise EngineError(
                    f"the engine refuses {path}: {detail}; {self.log_hint()}"
                ) from None
            raise EngineLost(f"{path}: {error.code} {detail}") from None
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise EngineLost(f"{path}: {type(error).__name__} {error}") from None

    def log_hint(self) -> str:
        """Returns the end of a message that names the engine's log."""
        return f"its log is {self.folder / LOG}"
