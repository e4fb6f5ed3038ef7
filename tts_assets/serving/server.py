"""Serve a model over HTTP, compatible with OpenAI's ``/v1/audio/speech``::

    python -m tts_assets.serving.server --model SERVING_MODEL

``api.py`` lists the routes. By default the server listens on this machine only; ``--host`` changes
that. The environment variable ``TTS_API_KEY`` sets a key that all requests except ``/health`` need.
The server answers when the engine is running. On SIGTERM it completes running requests and ends.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from tts_assets.core.artifacts import ArtifactError
from tts_assets.core.config import ConfigError
from tts_assets.provenance.manifest import keys_of_environment
from tts_assets.serving.api import build_app
from tts_assets.serving.audio_formats import require_consents
from tts_assets.serving.config import ServerConfig
from tts_assets.serving.requests import MAX_HEADER_BYTES, bounded_protocol
from tts_assets.serving.served_model import verify_model

KEY_VARIABLE = "TTS_API_KEY"
GRACE_SECONDS = 20
KEEP_ALIVE_SECONDS = 60  # httpx drops idle connections after 5 s; uvicorn's default would race it
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Types of options whose default is None.
OPTION_TYPES: dict[str, type[Any]] = {"voices": Path, "max_model_len": int}
ENGINE_FAILED, INVALID = 1, 2  # exit statuses

log = logging.getLogger("tts_assets.server")


def main(argv: list[str] | None = None) -> int:
    """Run the server until SIGTERM; return the exit status."""
    options = vars(build_parser().parse_args(argv))
    model = options.pop("model")
    given = {name: value for name, value in options.items() if value is not None}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    key = os.environ.pop(KEY_VARIABLE, "")  # removed: the engine's processes must not see it
    try:
        config = ServerConfig.parse(given, "command line")
        for folder in (model, *config.adapter_folders):
            require_consents(verify_model(folder), folder)
        keys_of_environment()  # raises an error before the engine starts
    except (ConfigError, ArtifactError) as error:
        log.error("%s", error)
        return INVALID
    if not key and config.host not in LOOPBACK:
        log.warning("%s accepts requests without a key: set %s", config.host, KEY_VARIABLE)
    failed = False

    def on_engine_exit() -> None:
        nonlocal failed
        failed = server.should_exit = True

    server = http_server(build_app(model, config, key, on_engine_exit), config)
    server.run()
    if failed:
        log.error("the engine ended unexpectedly")
    return ENGINE_FAILED if failed or not server.started else 0


def http_server(app: FastAPI, config: ServerConfig) -> uvicorn.Server:
    """The HTTP server of ``app`` with the limits of ``requests.py``."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            lifespan="on",
            access_log=False,
            http=bounded_protocol(config.max_connections),
            ws="none",
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line: one option for each key of :class:`ServerConfig`."""
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.serving.server", description=(__doc__ or "").split("::")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a serving model")
    for name, field in ServerConfig.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=OPTION_TYPES.get(name) or type(field.default),
            help=f"{field.description or 'port to listen on'} (default: {field.default})",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
