"""The vLLM process for rollouts: ``python -m tts_assets.rlhf.engine run.json``.

The program starts ``engine_server.py``, watches it, restarts it if it dies, and ends it. A launcher
runs it beside the trainer, on the same machine or on another node, and sets ``TTS_SERVICE_HOST``
and ``TTS_SERVICE_PORT`` for both. Without a launcher the trainer hosts the server itself
(:func:`hosted`).

Trainer and server share a run folder: the secret of the requests, the weights, and the log.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.processes import LOOPBACK, Patience, Server, free_port
from tts_assets.core.program import Run, load_config
from tts_assets.rlhf.config import EngineProgram

SECRET = "secret"  # file with the secret of every request; only its owner can read it
WEIGHTS = "weights.safetensors"
LABEL = "weights"  # key in that file's metadata: a label that identifies the weights
LOG = "log.txt"
HOST, PORT = "TTS_SERVICE_HOST", "TTS_SERVICE_PORT"
# Variables of torchrun, which vLLM would interpret as its own, and of Dagster Pipes.
TRAINER_VARIABLES = re.compile(
    "(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE|NAME)|ROLE_.*|MASTER_.*|TORCHELASTIC_.*|DAGSTER_PIPES_.*"
)
WATCH_SECONDS = 0.5
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL


def main(argv: list[str] | None = None) -> None:
    """Hosts the server until this program is asked to stop.

    Raises :class:`ServerDied` if the server died more often in a row than ``restarts`` allows.
    """
    program = load_config(EngineProgram, argv)
    host, port = service_address() or (LOOPBACK, free_port())
    with Run(program.run_dir) as run, hosted(program, host, port, print_line) as server:
        reported = False
        while not run.stop_requested:
            healthy = server.check()
            if healthy != reported:
                state = "is ready" if healthy else "does not answer"
                run.note(f"the engine at {server.url} {state}")
                reported = healthy
            time.sleep(WATCH_SECONDS)
        run.stopped()


def service_address() -> tuple[str, int] | None:
    """Returns host and port that a launcher set for the engine; None without a launcher."""
    return (os.environ[HOST], int(os.environ[PORT])) if HOST in os.environ else None


@contextmanager
def hosted(
    program: EngineProgram,
    host: str,
    port: int,
    log_line: Callable[[str], None],
    devices: Sequence[str] | None = None,
) -> Iterator[Server]:
    """Runs the server process for the duration of the ``with`` block.

    The server may not be healthy yet when the block starts. Requests need the secret of the run
    folder, but are not encrypted: ``host`` must be loopback or an address inside a cluster.

    Args:
        program: the engine's configuration.
        host: address on which the server listens.
        port: port on which the server listens.
        log_line: called with each line of the log, which is also written to the run folder.
        devices: GPUs that the server may use; None: the GPUs of this process.
    """
    config = program.vllm
    write_secret(program.run_dir)
    with atomic_write(program.run_dir / "run.json") as aside:
        aside.write_text(program.to_json())
    command = [
        *(str(config.python or sys.executable), "-m", "tts_assets.rlhf.engine_server"),
        *(str(program.run_dir / "run.json"), "--host", host, "--port", str(port)),
    ]
    variables = {k: v for k, v in os.environ.items() if not TRAINER_VARIABLES.fullmatch(k)}
    if devices is not None:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    patience = Patience(config.start_seconds, config.restarts, GRACE_SECONDS)
    with (program.run_dir / LOG).open("a") as log:

        def write_line(line: str) -> None:
            print(line, file=log, flush=True)
            log_line(line)

        server = Server(command, f"http://{host}:{port}", patience, write_line, variables)
        with server.running():
            yield server


def write_secret(folder: Path) -> None:
    """Writes a new secret into ``folder``; a restarted engine keeps the one that exists."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SECRET
    if path.is_file():
        return
    aside = folder / f"{SECRET}.{os.getpid()}"
    aside.touch(mode=0o600)
    aside.write_text(secrets.token_hex(32))
    aside.replace(path)


def print_line(line: str) -> None:
    """Prints a line of the server's log at once."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
