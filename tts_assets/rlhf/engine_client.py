"""The trainer's end of a vLLM engine: new weights in, completions out, whatever happens to it."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tts_assets.rlhf.engine_config import VllmRollouts
from tts_assets.rlhf.engine_files import SECRET
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request
from tts_assets.speechlm.vocabulary import SpeechVocabulary

POLL_SECONDS = 0.2
HEALTH_SECONDS = 10.0
REFUSED = (400, 401, 422)  # asking again would not help


class EngineError(RuntimeError):
    """No rollout will come any more: the message says why, and where the engine's log is."""


class EngineLost(Exception):
    """The engine died, or forgot its weights: it may come back."""


class Sender(Protocol):
    """Moves the policy's weights into the engine that ``client`` reaches."""

    def send(self, client: EngineClient, label: str) -> None: ...


class EngineClient:
    """Asks an engine for rollouts, with the weights they must be made with.

    ``waiting`` is called again and again while there is no answer to wait for; what it raises ends
    the wait. ``note`` hears of losses.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        config: VllmRollouts,
        waiting: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self.url, self.folder, self.config = url, folder, config
        self.waiting, self.note = waiting, note
        self.lost = 0  # how often it was
        self.push_seconds = self.rollout_seconds = 0.0  # of the last rollout

    def complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        vocabulary: SpeechVocabulary,
        sender: Sender,
    ) -> list[Completion]:
        """Complete every request with the weights that ``sender`` sends now, in order.

        An engine that dies meanwhile is waited for, given the same weights again and asked again:
        the seeds are the same, so are the tokens. Raises EngineError when it is given up.
        """
        label = uuid.uuid4().hex
        for _ in range(self.config.restarts + 1):
            try:
                self.wait_until_healthy()
                started = time.monotonic()
                sender.send(self, label)
                self.push_seconds = time.monotonic() - started
                completions = self._ask(requests, sampling, vocabulary, label)
                self.rollout_seconds = time.monotonic() - started - self.push_seconds
                return completions
            except EngineLost as error:
                self.lost += 1
                self.note(f"the engine was lost: {error}; waiting for it to ask again")
        raise EngineError(
            f"the engine died of this rollout {self.config.restarts + 1} times in a row; "
            f"{self.where()}"
        )

    def _ask(
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
        """What the engine says of itself; None while it says nothing."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=HEALTH_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return None

    def wait_until_healthy(self) -> dict[str, Any]:
        """The answer of :meth:`health`. Raises EngineError if none comes within a start's time."""
        seconds = self.config.start_seconds + self.config.grace_seconds
        deadline = time.monotonic() + seconds
        while (found := self.health()) is None:
            self.waiting()
            if time.monotonic() > deadline:
                raise EngineError(f"no engine at {self.url} within {seconds:g} s; {self.where()}")
            time.sleep(POLL_SECONDS)
        return found

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer. Raises EngineLost if none comes, EngineError if it is a refusal."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {(self.folder / SECRET).read_text()}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=self.config.rollout_seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")
            if error.code in REFUSED:
                raise EngineError(f"the engine refuses {path}: {detail}; {self.where()}") from None
            raise EngineLost(f"{path}: {error.code} {detail}") from None
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise EngineLost(f"{path}: {type(error).__name__} {error}") from None

    def where(self) -> str:
        return f"its log is {self.folder / 'log.txt'}"
