"""Serve a model over HTTP, as OpenAI's ``/v1/audio/speech`` (``api.py`` lists the routes)::

    python -m tts_assets.serving.server --model SERVING_MODEL

It listens on this machine only, unless ``--host`` says otherwise. The environment variable
``TTS_API_KEY`` sets a key that every request but ``/health`` must bring. It answers when the engine
is up; SIGTERM lets running requests finish and ends the engine.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn

from tts_assets.core.artifacts import ArtifactError
from tts_assets.core.config import ConfigError
from tts_assets.serving.api import build_app
from tts_assets.serving.config import ServerConfig
from tts_assets.serving.streaming import refuse_ended
from tts_assets.serving.synthesis import read_card

KEY_VARIABLE = "TTS_API_KEY"
GRACE_SECONDS = 20
KEEP_ALIVE_SECONDS = 60  # httpx drops idle connections after 5 s, as uvicorn would: they would race
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Of the options that are unset by default.
KINDS: dict[str, type[Any]] = {"voices": Path, "max_model_len": int}
ENGINE_DIED, REFUSED = 1, 2

log = logging.getLogger("tts_assets.server")


def main(argv: list[str] | None = None) -> int:
    options = vars(build_parser().parse_args(argv))
    model = options.pop("model")
    given = {name: value for name, value in options.items() if value is not None}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    key = os.environ.pop(KEY_VARIABLE, "")  # popped: the engine's processes need not know it
    try:
        config = ServerConfig.parse(given, "command line")
        refuse_ended(read_card(model))
    except (ConfigError, ArtifactError) as error:
        log.error("%s", error)
        return REFUSED
    if not key and config.host not in LOOPBACK:
        log.warning("%s serves whoever reaches it: set %s", config.host, KEY_VARIABLE)
    died = False

    def on_death() -> None:
        nonlocal died
        died = server.should_exit = True

    app = build_app(model, config, key, on_death)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            lifespan="on",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    server.run()
    if died:
        log.error("the engine ended by itself")
    return ENGINE_DIED if died or not server.started else 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.serving.server", description=(__doc__ or "").split("::")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a serving model")
    for name, field in ServerConfig.model_fields.items():
        kind = KINDS.get(name) or type(field.default)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            help=f"{field.description or 'to listen on'} (default: {field.default})",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
