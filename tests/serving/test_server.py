"""The server with vLLM, tested with the openai client. One server runs for all tests."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
import soundfile

from jobs.foreground import RequestError
from jobs.listening import Speaker
from resources.vllm_server import VllmServer
from tests.support.speaking import Speaking
from tts_assets.core.audio import Clip
from tts_assets.core.processes import Server, marked_processes

if TYPE_CHECKING:
    import openai

KEY = "a-key-for-the-tests"
CONCURRENCY = 64
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The log of the server."""
    return []


@pytest.fixture(scope="module")
def server(speaking: Speaking, lines: list[str]) -> Iterator[Server]:
    os.environ["TTS_API_KEY"] = KEY
    arguments = ["--model", str(speaking.serving.path), "--concurrency", str(CONCURRENCY)]
    arguments += ["--max-characters", "200", "--max-upload-mb", "1"]
    try:
        with VllmServer(restarts=0).serve(arguments, lines.append) as running:
            yield running
    finally:
        del os.environ["TTS_API_KEY"]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers) as http:
        yield http


def synthesize(
    client: openai.OpenAI, form: str = "wav", text: str = "one two", **more: object
) -> bytes:
    answer = client.audio.speech.create(
        model="tiny", voice="default", input=text, response_format=form, extra_body=more
    )
    return answer.content


def seconds_of_pcm(data: bytes) -> float:
    return len(data) / 2 / 24_000


def test_the_studio_plays_a_text_while_it_is_synthesized(server: Server) -> None:
    speaker = Speaker()
    assert speaker.state() == {"voice": "", "state": "none"}
    speaker.voice, speaker.server, speaker.key = "ann", server, KEY
    state = speaker.state()
    assert state["state"] == "ready" and "default" in state["speakers"]
    text = " ".join(["one two three four five."] * 6)
    first, *rest = speaker.speech(text, "default")
    assert rest
    wave, rate = soundfile.read(io.BytesIO(b"".join([first, *rest])))
    assert len(wave) > rate
    with pytest.raises(RequestError, match="nobody"):
        speaker.speech("one", "nobody")


def test_audio_states_that_it_is_synthetic(http: httpx.Client, client: openai.OpenAI) -> None:
    for form in ("wav", "flac", "opus", "mp3"):
        assert "trainedAlgorithmicMedia" in comment_of(synthesize(client, form, seed=1))
    assert "trainedAlgorithmicMedia" in comment_of(synthesize(client, "wav", stream=True, seed=1))
    asked = {"model": "tiny", "input": "one", "response_format": "pcm", "seed": 1}
    answer = http.post("/v1/audio/speech", json=asked | {"voice": "default"})
    assert answer.headers["x-provenance"].startswith("Synthetic speech by sft/tiny")


def comment_of(data: bytes) -> str:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return str(file.comment)


@pytest.mark.parametrize("form", ["wav", "flac", "opus", "mp3"])
def test_every_format_can_be_decoded(client: openai.OpenAI, form: str) -> None:
    """60 codes of 20 ms; mp3 pads with up to 0.15 s."""
    wave, rate = soundfile.read(io.BytesIO(synthesize(client, form, seed=1)))
    assert 0.2 <= len(wave) / rate <= 1.2 + 0.15
    assert np.abs(wave).max() > 0.001


def test_pcm_has_the_format_of_openai(client: openai.OpenAI) -> None:
    """24 kHz, with the same duration as the wav file."""
    wave, rate = soundfile.read(io.BytesIO(synthesize(client, "wav", seed=1)))
    assert seconds_of_pcm(synthesize(client, "pcm", seed=1)) == pytest.approx(
        len(wave) / rate, abs=1e-3
    )


def test_seed_determines_bytes_alone_and_in_a_batch(client: openai.OpenAI) -> None:
    alone = synthesize(client, seed=5)
    with ThreadPoolExecutor(8) as pool:
        among = list(pool.map(lambda seed: synthesize(client, seed=seed), [1, 2, 5, 3, 4, 5, 6, 7]))
    assert among[2] == among[5] == alone != among[0]


def test_first_audio_is_sent_before_the_last_is_made(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    """A text of several pieces.

    By the clock of the server, the first audio is early in every request. The client must receive
    it early in one of ten requests: a loaded machine can stop this process for seconds.
    """

    def seconds(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}_sum "))

    def shares() -> tuple[float, float, float]:
        """Fractions of the whole: time to first audio (made, received), size of first chunk."""
        made, all_made = seconds("tts_first_audio_seconds"), seconds("tts_request_seconds")
        started = time.perf_counter()
        with client.audio.speech.with_streaming_response.create(
            model="tiny", voice="default", input="One two three four. " * 8, response_format="pcm"
        ) as answer:
            chunks = answer.iter_bytes()
            sizes = [len(next(chunks))]
            received = time.perf_counter() - started
            sizes += map(len, chunks)
        received /= time.perf_counter() - started
        made = seconds("tts_first_audio_seconds") - made
        made /= seconds("tts_request_seconds") - all_made
        return made, received, sizes[0] / sum(sizes)

    for _ in range(10):
        made, received, audio = shares()
        assert 0 < made < 1 / 2
        if received < 3 / 4 and audio < 1 / 4:
            return
    pytest.fail("the first audio was never received early")


def test_streamed_wav_can_be_read(client: openai.OpenAI) -> None:
    data = synthesize(client, "wav", stream=True, seed=1)
    whole, _ = soundfile.read(io.BytesIO(synthesize(client, "wav", seed=1)))
    assert data[:4] == b"RIFF" and len(data) - data.index(b"data") - 8 == 2 * len(whole)
    wave, rate = soundfile.read(io.BytesIO(data))
    assert (len(wave), rate) == (len(whole), 16_000)


def test_64_concurrent_requests_are_answered(client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        waves = list(pool.map(lambda seed: synthesize(client, seed=seed), range(CONCURRENCY)))
    assert all(soundfile.info(io.BytesIO(wave)).duration >= 0.2 for wave in waves)


def test_requests_beyond_the_limit_get_429(server: Server, client: openai.OpenAI) -> None:
    """All requests are sent before any answer is read, so they arrive together on any machine.

    Then all answers are read at once: the server ends a stream that nobody reads.
    """

    def answered(connection: HTTPConnection) -> tuple[int, str | None, bytes]:
        answer = connection.getresponse()
        return answer.status, answer.headers["retry-after"], answer.read()

    address = httpx.URL(server.url)
    connections = [HTTPConnection(address.host, address.port) for _ in range(2 * CONCURRENCY)]
    request = {"model": "tiny", "voice": "default", "input": "One two three four. " * 9}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    body = json.dumps(request | {"response_format": "pcm"})
    for connection in connections:
        connection.request("POST", "/v1/audio/speech", body, headers)
    with ThreadPoolExecutor(len(connections)) as pool:
        answers = list(pool.map(answered, connections))
    refused = [(retry, text) for status, retry, text in answers if status == 429]
    assert 0 < len(refused) <= CONCURRENCY
    assert {status for status, *_ in answers} == {200, 429}
    assert all(int(retry or 0) > 0 for retry, _ in refused)
    assert b"the limit of this server" in refused[0][1]
    assert len(synthesize(client)) > 1000  # all slots are free again


def test_wrong_key_is_rejected(server: Server, lines: list[str]) -> None:
    import openai

    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="wrong API key"):
        synthesize(stranger)
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert not any(KEY in line or "wrong" in line for line in lines)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": "x " * 101}, 400, "input has 202 characters, at most 200"),
        ({"instructions": "calm " * 50}, 400, "instructions has 250 characters, at most 200"),
        ({"input": "?!"}, 400, "nothing to synthesize"),
        ({"voice": "nobody"}, 400, "known voices: default"),
        ({"model": "gpt"}, 404, "this server has 'tiny'"),
        ({"speed": 5}, 400, "speed"),
        ({"temprature": 1}, 400, "temprature"),
        ({"seed": 2**63}, 400, "seed: Input should be less than 9223372036854775808"),
        ({"min_tokens": 70}, 400, "above max_tokens 60"),
        ({"response_format": "alac"}, 400, "response_format"),
        ({"response_format": "flac", "stream": True}, 400, "cannot be streamed"),
    ],
)
def test_errors_have_the_format_of_openai(
    http: httpx.Client, body: dict[str, object], status: int, message: str
) -> None:
    answer = http.post(
        "/v1/audio/speech", json={"model": "tiny", "voice": "default", "input": "one"} | body
    )
    error = answer.json()["error"]
    assert answer.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]


def test_large_body_is_rejected(http: httpx.Client) -> None:
    big = b"x" * (1 << 20) + b"y"
    files = {"file": ("a.wav", big)}
    form = {"name": "big", "text": "one"}
    assert http.post("/v1/voices", data=form, files=files).status_code == 413
    json = {"content-type": "application/json"}
    streamed = http.post("/v1/audio/speech", content=iter([big, big]), headers=json)
    assert streamed.status_code == 413
    assert "larger than 1 MB" in streamed.json()["error"]["message"]


def upload(http: httpx.Client, name: str, audio: bytes, text: str = "The number") -> httpx.Response:
    files = {"file": ("clip.wav", audio)}
    return http.post("/v1/voices", data={"name": name, "text": text}, files=files)


def wav(wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16_000, format="WAV")
    return buffer.getvalue()


def test_uploaded_voice_is_used(
    http: httpx.Client, client: openai.OpenAI, recordings: dict[str, tuple[str, object]]
) -> None:
    text, clip = recordings["agent-incorrect"]
    answer = upload(http, "allison", wav(clip.wave), text)  # type: ignore[attr-defined]
    assert answer.status_code == 201, answer.text
    voices = {row["id"]: row for row in http.get("/v1/voices").json()["data"]}
    assert {"default", "allison"} < set(voices)
    assert voices["allison"]["text"] == " ".join(text.split())
    answer = client.audio.speech.create(
        model="tiny", voice="allison", input="one", response_format="wav", extra_body={"seed": 1}
    )
    assert answer.content != synthesize(client, text="one", seed=1)
    assert upload(http, "allison", wav(clip.wave)).status_code == 400  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "audio", "message"),
    [
        ("../etc", wav(np.ones(20_000)), "should match pattern"),
        ("noise", b"no audio at all", "not readable as audio"),
        ("short", wav(np.sin(np.arange(8_000) / 10)), "0.5 s"),
        ("quiet", wav(np.zeros(32_000)), "silence"),
    ],
)
def test_unusable_clip_is_rejected(
    http: httpx.Client, name: str, audio: bytes, message: str
) -> None:
    answer = upload(http, name, audio)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_models_and_metrics(client: openai.OpenAI, http: httpx.Client) -> None:
    synthesize(client, "flac")
    assert [model.id for model in client.models.list()] == ["tiny"]
    text = http.get("/metrics").text
    assert 'tts_requests_total{format="flac"}' in text
    assert "tts_busy 0.0" in text


def test_disconnected_stream_frees_its_slot(http: httpx.Client) -> None:
    body = {"model": "tiny", "voice": "default", "response_format": "pcm"}
    for seed in range(3):
        text = {"input": "One two three four. " * 9, "seed": seed}
        with http.stream("POST", "/v1/audio/speech", json=body | text) as answer:
            next(answer.iter_bytes())
    deadline = time.monotonic() + 60
    while "tts_busy 0.0" not in http.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_burst_with_voice_prompts_and_long_texts(
    http: httpx.Client, recordings: dict[str, tuple[str, Clip]]
) -> None:
    """64 requests at once, whose prompts together have ten times max_num_batched_tokens."""
    text, clip = recordings["cannot-complete-as-dialed"]
    assert upload(http, "burst", wav(clip.wave), text).status_code == 201
    long = "one two three four five six seven eight. " * 4

    def ask(seed: int) -> int:
        body = {"model": "tiny", "voice": "burst", "input": long, "seed": seed}
        answer = http.post("/v1/audio/speech", json=body | {"response_format": "wav"}, timeout=300)
        return answer.status_code

    for _ in range(2):
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            assert set(pool.map(ask, range(CONCURRENCY))) == {200}
    assert http.get("/health").status_code == 200


def test_engine_is_started_again(
    http: httpx.Client, client: openai.OpenAI, server: Server, lines: list[str]
) -> None:
    """Requests meanwhile get 503, and the server process stays. The seed gives the same bytes."""
    before = synthesize(client, seed=5)
    engines = [p for p in marked_processes(server.launch_id) if "EngineCor" in p.name()]
    assert len(engines) == 1
    engines[0].kill()
    body = {"model": "tiny", "input": "one two", "response_format": "wav", "seed": 5}
    deadline, statuses = time.monotonic() + 600, set()
    while True:
        assert time.monotonic() < deadline
        answer = http.post("/v1/audio/speech", json=body, timeout=60)
        statuses.add(answer.status_code)
        if answer.status_code == 200 and 503 in statuses:
            break
        time.sleep(0.1)
    assert statuses == {200, 503}
    assert answer.content == before
    assert server.failure is None and server.restarted == 0
    assert any("the engine ended unexpectedly" in line for line in lines)
