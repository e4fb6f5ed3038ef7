"""Failed runs by e-mail and Slack: Dagster's sensors and real servers with TLS."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from dagster import DagsterInstance, SensorDefinition

from sensors import alerts as sensors
from tests.sensors.test_alerts import ALERTS, fail
from tts_assets.core.processes import LOOPBACK, free_port
from tts_assets.orchestration.config import Email, Slack

if TYPE_CHECKING:
    import trustme


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """Who signs certificates that this process believes."""
    import trustme

    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


def server_context(authority: trustme.CA, host: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host).configure_cert(context)
    return context


def failed_run(sensor: SensorDefinition) -> str:
    """The id of a run that fails, which the sensor ``sensor`` reports."""
    with DagsterInstance.ephemeral() as instance:
        return str(fail(instance, sensor)[1])


class Mailbox:
    """Keeps what is sent, with the login it was sent by."""

    def __init__(self) -> None:
        self.received: list[tuple[list[str], str]] = []
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        self.received.append((envelope.rcpt_tos, envelope.content.decode()))
        return "250 kept"

    def authenticate(self, *asked: Any) -> AuthResult:
        self.logins.append((asked[-1].login, asked[-1].password))
        return AuthResult(success=True)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("kind", ["SSL", "STARTTLS"])
def test_a_failed_run_is_sent_by_email(kind: str, authority: trustme.CA) -> None:
    tls, mailbox = server_context(authority, LOOPBACK), Mailbox()
    # With TLS from the start, aiosmtpd does not notice that the connection is encrypted.
    first: dict[str, Any] = {"ssl_context": tls, "auth_require_tls": False}
    server = Controller(
        mailbox,
        LOOPBACK,
        free_port(),
        authenticator=mailbox.authenticate,
        auth_required=True,
        **(first if kind == "SSL" else {"tls_context": tls}),
    )
    server.start()
    try:
        email = Email(
            sender="tts@example.org", to=("me@example.org",), host=LOOPBACK, port=server.port
        )
        email = email.model_copy(update={"kind": kind})
        run_id = failed_run(sensors.email_sensor(email, "hush", ALERTS.ui))
    finally:
        server.stop()
    assert mailbox.logins == [(b"tts@example.org", b"hush")]
    ((to, text),) = mailbox.received
    assert to == ["me@example.org"]
    assert run_id in text and "Steps failed: ['broken']" in text
    assert "hush" not in text


class Proxy(HTTPServer):
    """A proxy whose tunnels all end in a Slack of its own, which keeps what is posted."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.tls = tls
        self.posted: list[tuple[str, str, dict[str, Any]]] = []  # address, token, message
        super().__init__((LOOPBACK, 0), Tunnel)


class Tunnel(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.address = self.path
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        token = self.headers["Authorization"]
        self.server.posted.append((self.address + self.path, token, message))
        answer = json.dumps({"ok": True}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def test_a_failed_run_is_posted_to_slack(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(server_context(authority, "slack.com")) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://{LOOPBACK}:{proxy.server_port}")
        run_id = failed_run(sensors.slack_sensor(Slack(channel="#tts"), "hush", ALERTS.ui))
        proxy.shutdown()
    ((address, token, message),) = proxy.posted
    assert address == "slack.com:443/api/chat.postMessage"
    assert token == "Bearer hush"
    assert message["channel"] == "#tts"
    assert "Steps failed: ['broken']" in message["text"]
    assert run_id in json.dumps(message["blocks"])
