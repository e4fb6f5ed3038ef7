"""The HTTP API over a socket: formats, seeds, voices, errors, disconnects, engine failures."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import soundfile

from tests.support.scripted_server import ScriptedServer, scripted_server
from tts_assets.core.audio import Clip
from tts_assets.provenance.manifest import KEYS_VARIABLE, ROOT_FILE, make_keys, read_manifest
from tts_assets.serving import async_engine
from tts_assets.serving.config import ServerConfig
from tts_assets.serving.synthesis import Synthesizer

SPEECH = "/v1/audio/speech"
BODY = {"model": "tiny", "input": "one two", "response_format": "wav", "seed": 1}


@pytest.fixture
def server(synthesizer: Synthesizer) -> Iterator[ScriptedServer]:
    with scripted_server(synthesizer, ServerConfig(max_upload_mb=1, max_voices=3)) as running:
        yield running


def post(server: ScriptedServer, **changes: object) -> httpx.Response:
    answer = server.http.post(SPEECH, json=BODY | changes)
    assert answer.status_code == 200, answer.text
    return answer


def duration(data: bytes) -> float:
    """Seconds of decoded audio, in any format."""
    with av.open(io.BytesIO(data)) as container:
        rate = container.streams.audio[0].rate
        return sum(frame.samples for frame in container.decode(audio=0)) / rate


def refused(answer: httpx.Response, status: int, code: str | None, param: str | None = None) -> str:
    """Check an error in OpenAI's format; its message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    expected = {429: "requests", 503: "server_error"}.get(status, "invalid_request_error")
    assert (error["type"], error["code"], error["param"]) == (expected, code, param)
    return str(error["message"])


# -- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("audio_format", "media"), [("aac", "audio/aac"), ("mp3", "audio/mpeg")])
def test_whole_and_streamed_files_can_be_decoded(
    server: ScriptedServer, audio_format: str, media: str
) -> None:
    whole, streamed = (
        post(server, response_format=audio_format, stream=stream) for stream in (False, True)
    )
    assert whole.headers["content-type"] == streamed.headers["content-type"] == media
    expected = duration(post(server).content)
    for answer in (whole, streamed):
        assert duration(answer.content) == pytest.approx(expected, abs=0.15)
        assert b"trainedAlgorithmicMedia" in answer.content


@pytest.mark.parametrize("audio_format", ["pcm", "wav", "mp3", "aac", "flac", "opus"])
def test_server_sent_events_have_the_audio_and_its_usage(
    server: ScriptedServer, audio_format: str
) -> None:
    answer = post(server, response_format=audio_format, stream_format="sse")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n")[:-1]]
    assert [event["type"] for event in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    audio = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    if audio_format != "opus":  # Ogg has a random serial number
        assert (
            audio
            == post(
                server, response_format=audio_format, stream=audio_format in "pcm wav mp3 aac"
            ).content
        )
    usage = events[-1]["usage"]
    assert usage["output_tokens"] >= 61 and usage["input_tokens"] > 7
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_whole_files_are_signed_and_streams_are_not(
    synthesizer: Synthesizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = make_keys(tmp_path / "keys", "Museum of Tests")
    monkeypatch.setenv(KEYS_VARIABLE, str(keys.folder))
    with scripted_server(synthesizer, ServerConfig()) as running:
        for audio_format in ("wav", "flac"):
            file = tmp_path / f"whole.{audio_format}"
            file.write_bytes(post(running, response_format=audio_format).content)
            found = read_manifest(file, keys.folder / ROOT_FILE)
            assert found is not None and found.trusted and not found.problems
            assert found.origin is not None and found.origin.model == "serving/tiny"
        streamed = tmp_path / "stream.wav"
        streamed.write_bytes(post(running, stream=True).content)
        assert read_manifest(streamed) is None


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.5, 4.0])
def test_speed_changes_the_duration(server: ScriptedServer, speed: float) -> None:
    normal = duration(post(server).content)
    for stream in (False, True):
        data = post(server, speed=speed, stream=stream).content
        wave, rate = soundfile.read(io.BytesIO(data))
        assert len(wave) / rate == pytest.approx(normal / speed, rel=0.05)


def test_no_seed_gives_another_result_each_time(server: ScriptedServer) -> None:
    first, second = post(server, seed=None), post(server, seed=None)
    assert first.content != second.content
    assert post(server, seed=int(first.headers["x-seed"])).content == first.content
    assert post(server, seed=7).content == post(server, seed=7).content


def test_one_model_by_its_name(server: ScriptedServer) -> None:
    answer = server.http.get("/v1/models/tiny").json()
    assert answer == server.http.get("/v1/models").json()["data"][0]
    assert answer["id"] == "tiny" and answer["object"] == "model"
    refused(server.http.get("/v1/models/gpt"), 404, "model_not_found", "model")


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('"temperature": NaN', "temperature"),
        ('"temperature": Infinity', "temperature"),
        ('"temperature": 1e999', "temperature"),
        ('"temperature": -0.1', "temperature"),
        ('"top_p": NaN', "top_p"),
        ('"top_k": 1099511627776', "top_k"),
        ('"repetition_penalty": Infinity', "repetition_penalty"),
        ('"repetition_penalty": 1e-300', "repetition_penalty"),
        ('"frequency_penalty": 3', "frequency_penalty"),
        ('"max_tokens": 1e400', "max_tokens"),
        ('"seed": -1', "seed"),
        ('"seed": 9223372036854775808', "seed"),
        ('"speed": 0.2', "speed"),
        ('"speed": NaN', "speed"),
        ('"input": "one \\ud800 two"', "input"),
        ('"instructions": "\\udfff"', "instructions"),
        ('"language": "\\ud800"', "language"),
        ('"language": "en en"', "language"),
    ],
)
def test_invalid_parameters_are_400(server: ScriptedServer, body: str, param: str) -> None:
    values = json.dumps({key: value for key, value in BODY.items() if f'"{key}"' not in body})
    data = f"{values[:-1]}, {body}}}"
    answer = server.http.post(SPEECH, content=data, headers={"content-type": "application/json"})
    refused(answer, 400, "invalid_value", param)


def test_surrogates_are_400_wherever_they_are(server: ScriptedServer) -> None:
    for body in ('{"\\ud800": 1}', '{"model": "\\ud800", "input": "one"}', '"\\ud800"', "[" * 9999):
        answer = server.http.post(
            SPEECH, content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, answer.text


def test_every_string_has_a_limit(server: ScriptedServer) -> None:
    too_long = "string_above_max_length"
    for name in ("input", "instructions", "model", "voice", "language"):
        answer = server.http.post(SPEECH, json=BODY | {name: "e" * 100_000})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == too_long, name
    for form, name in (
        ({"name": "e" * 65}, "name"),
        ({"text": "e" * 2001}, "text"),
        ({"language": "e" * 99}, "language"),
    ):
        data = {"name": "ann", "text": "one"} | form
        answer = server.http.post("/v1/voices", data=data, files={"file": ("a.wav", b"x")})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == name


def test_errors_have_openai_types_and_codes(server: ScriptedServer) -> None:
    http = server.http
    refused(http.post(SPEECH, json=BODY | {"model": "gpt"}), 404, "model_not_found", "model")
    refused(http.post(SPEECH, json={"model": "tiny"}), 400, "missing_required_parameter", "input")
    refused(http.post(SPEECH, json=BODY | {"x": 1}), 400, "unknown_parameter", "x")
    refused(http.post(SPEECH, json=BODY | {"voice": "nobody"}), 400, "invalid_value", "voice")
    refused(http.post(SPEECH, json=BODY | {"top_k": "a"}), 400, "invalid_type", "top_k")
    refused(http.get("/v1/nothing"), 404, "unknown_url")
    refused(http.get(SPEECH), 405, "method_not_supported")
    flac = http.post(SPEECH, json=BODY | {"response_format": "flac", "stream": True})
    refused(flac, 400, "unsupported_value", "stream")


# -- clients that leave, engines that fail ---------------------------------------------------------


def raw_request(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {SPEECH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@pytest.mark.parametrize("changes", [{}, {"stream": True}, {"stream_format": "sse"}])
def test_request_ends_when_its_client_leaves(
    server: ScriptedServer, changes: dict[str, object]
) -> None:
    """Without a disconnect check it would run for 60 x 0.2 s."""
    server.engine.step_seconds = 0.2
    connection = server.connect(raw_request(BODY | changes))
    while not server.engine.running:
        time.sleep(0.02)
    connection.close()
    server.wait_idle(seconds=3)
    assert 'tts_requests_total{format="wav"}' not in server.http.get("/metrics").text


@pytest.mark.parametrize("text", ["four <|speech_end|> nine", "a \u2192 b", "one [pause x] two"])
def test_texts_with_unread_signs_are_400(server: ScriptedServer, text: str) -> None:
    answer = server.http.post(SPEECH, json=BODY | {"input": text})
    assert repr(text) in refused(answer, 400, "invalid_value") or "no pause" in answer.text


def test_engine_refusal_is_400(server: ScriptedServer) -> None:
    server.engine.refusal = "the engine rejects the request: too long"
    for changes in ({}, {"stream": True}):
        message = refused(server.http.post(SPEECH, json=BODY | changes), 400, "invalid_value")
        assert "too long" in message


def test_failed_engine_is_replaced(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request in progress and new ones get 503 until the new engine runs."""
    monkeypatch.setattr(async_engine, "WATCH_SECONDS", 0.05)
    time.sleep(0.6)  # the interval before the change
    failed, answers = server.engine, []
    failed.step_seconds = 0.05
    thread = threading.Thread(target=lambda: answers.append(server.http.post(SPEECH, json=BODY)))
    thread.start()
    while not failed.running:
        time.sleep(0.01)
    failed.dead = True
    thread.join()
    assert int(answers[0].headers["retry-after"]) > 0
    refused(answers[0], 503, "engine_unavailable")
    deadline = time.monotonic() + 10
    while (answer := server.http.post(SPEECH, json=BODY)).status_code != 200:
        refused(answer, 503, "engine_unavailable")
        assert time.monotonic() < deadline
    assert len(server.engines) == 2 and not server.exited


def test_server_gives_up_after_repeated_failures(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_engine, "WATCH_SECONDS", 0.02)
    deadline = time.monotonic() + 20
    while not server.exited:
        server.engine.dead = True
        time.sleep(0.02)
        assert time.monotonic() < deadline
    assert len(server.engines) == 1 + async_engine.RESTARTS


# -- voices ----------------------------------------------------------------------------------------


def upload(
    server: ScriptedServer, wave: np.ndarray, name: str = "ann", text: str = "the number"
) -> httpx.Response:
    buffer = io.BytesIO()
    subtype = "FLOAT" if np.abs(wave).max() > 1 else "PCM_16"
    soundfile.write(buffer, wave, 16_000, format="WAV", subtype=subtype)
    files = {"file": ("clip.wav", buffer.getvalue())}
    return server.http.post("/v1/voices", data={"name": name, "text": text}, files=files)


def test_uploaded_voice_can_be_deleted(
    server: ScriptedServer, recordings: dict[str, tuple[str, Clip]]
) -> None:
    text, clip = recordings["agent-incorrect"]
    for _ in range(5):  # more often than max_voices
        assert upload(server, clip.wave, text=text).status_code == 201
        post(server, voice="ann")
        post(server, voice={"id": "ann"})
        answer = server.http.delete("/v1/voices/ann")
        assert answer.json() == {"id": "ann", "object": "voice", "deleted": True}
        refused(
            server.http.post(SPEECH, json=BODY | {"voice": "ann"}), 400, "invalid_value", "voice"
        )
    refused(server.http.delete("/v1/voices/ann"), 404, "voice_not_found", "voice")
    for own in ("default", server.http.get("/v1/voices").json()["data"][1]["id"]):
        assert "cannot be deleted" in refused(
            server.http.delete(f"/v1/voices/{own}"), 400, "invalid_value"
        )


SECOND = np.arange(3 * 16_000) / 16_000


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.random.default_rng(0).normal(0, 0.1, 48_000), "0.0 s of speech"),
        (0.3 * np.sin(2 * np.pi * 440 * SECOND), "0.0 s of speech"),
        (0.3 * np.sin(2 * np.pi * (100 + 200 * SECOND) * SECOND), "0.0 s of speech"),
        (np.zeros(48_000), "silence"),
        (9000 * np.sin(2 * np.pi * 440 * SECOND), "peak"),
    ],
    ids=["noise", "tone", "sweep", "silence", "int16 scale"],
)
def test_prompt_without_speech_is_rejected(
    server: ScriptedServer, wave: np.ndarray, message: str
) -> None:
    assert message in refused(upload(server, wave), 400, "invalid_value")


def test_prompt_that_never_fits_is_rejected(
    server: ScriptedServer, recordings: dict[str, tuple[str, Clip]]
) -> None:
    """19 s are 950 codes of 1023 positions. The transcript alone can be too long, too."""
    text, clip = recordings["agent-incorrect"]
    wave = np.tile(clip.wave, 9)[: 19 * 16_000]
    assert "use a shorter clip" in refused(upload(server, wave, text=text), 400, "invalid_value")
    words = "seven " * 200
    answer = upload(server, clip.wave, text=words)
    assert "use a shorter clip" in refused(answer, 400, "invalid_value")


def test_pieces_of_a_long_text_fit_beside_the_prompt(
    server: ScriptedServer, recordings: dict[str, tuple[str, Clip]]
) -> None:
    """All pieces have the same prompt, and room for their speech."""
    text, clip = recordings["cannot-complete-as-dialed"]
    wave = np.tile(clip.wave, 3)[: 12 * 16_000]
    assert upload(server, wave, text=" ".join([text] * 3)).status_code == 201
    server.engine.prompts.clear()
    post(
        server,
        voice="ann",
        input="one two three four five six seven eight nine ten " * 20,
        max_tokens=1000,
    )
    vocabulary = server.engine.vocabulary
    codes = {tuple(vocabulary.codes(prompt)) for prompt in server.engine.prompts}
    assert len(server.engine.prompts) > 5 and len(codes) == 1
    for prompt in server.engine.prompts:
        assert server.engine.positions - len(prompt) >= 100
