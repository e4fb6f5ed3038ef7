"""The rollouts' vLLM engine as a program: ``python -m tts_assets.rlhf.engine run.json``.

A launcher runs it beside the trainer, on this machine or on a node of its own; by hand the trainer
does it itself, or finds one that runs already by ``TTS_SERVICE_HOST`` and ``TTS_SERVICE_PORT``. It
starts ``engine_server.py``, watches it, starts it again when it dies, and ends it.

Files of an engine's run folder, which trainer and engine both see.
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

from tts_assets.core.artifacts import written_aside
from tts_assets.core.processes import LOOPBACK, free_port
from tts_assets.core.program import Run, load_config
from tts_assets.core.supervisor import Patience, Server
from tts_assets.rlhf.config import EngineProgram

SECRET = "secret"  # what every request must bring; only its owner can read it
WEIGHTS = "weights.safetensors"
LABEL = "weights"  # in that file's metadata: which weights they are
LOG = "log.txt"


def write_secret(folder: Path) -> None:
    """A new secret in ``folder``, unless one is there: an engine that starts again keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SECRET
    if path.is_file():
        return
    aside = folder / f"{SECRET}.{os.getpid()}"
    aside.touch(mode=0o600)
    aside.write_text(secrets.token_hex(32))
    aside.replace(path)


HOST, PORT = "TTS_SERVICE_HOST", "TTS_SERVICE_PORT"
# torchrun's, which vLLM would take for its own, and Dagster's.
OF_THE_TRAINER = re.compile(
    "(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE|NAME)|ROLE_.*|MASTER_.*|TORCHELASTIC_.*|DAGSTER_PIPES_.*"
)
WATCH_SECONDS = 0.5


def main(argv: list[str] | None = None) -> None:
    program = load_config(EngineProgram, argv)
    host, port = address() or (LOOPBACK, free_port())
    with Run(program.run_dir) as run, hosted(program, host, port, print_line) as server:
        told = False
        while not run.stop_requested:
            healthy = server.check()  # raises if it is given up
            if healthy != told:
                run.note(f"the engine at {server.url} {'is ready' if healthy else 'is away'}")
                told = healthy
            time.sleep(WATCH_SECONDS)
        run.stopped()


def address() -> tuple[str, int] | None:
    """Where the launcher wants the engine; None if no launcher runs one."""
    return (os.environ[HOST], int(os.environ[PORT])) if HOST in os.environ else None


@contextmanager
def hosted(
    program: EngineProgram,
    host: str,
    port: int,
    show: Callable[[str], None],
    devices: Sequence[str] | None = None,
) -> Iterator[Server]:
    """The engine's process while the ``with`` lasts; it is not healthy yet when that begins.

    ``show`` hears its log, which is also kept in the run folder. ``devices``: the GPUs that it
    sees; None: all that this process does. Who reaches the port must bring the run folder's secret,
    but the way is not encrypted: ``host`` is loopback, or a node's address inside of a cluster.
    """
    config = program.engine
    write_secret(program.run_dir)
    with written_aside(program.run_dir / "run.json") as aside:
        aside.write_text(program.to_json())
    command = [
        *(config.python or sys.executable, "-m", "tts_assets.rlhf.engine_server"),
        *(str(program.run_dir / "run.json"), "--host", host, "--port", str(port)),
    ]
    kept = {k: v for k, v in os.environ.items() if not OF_THE_TRAINER.fullmatch(k)}
    if devices is not None:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    patience = Patience(config.start_seconds, config.restarts, config.grace_seconds)
    with (program.run_dir / LOG).open("a") as log:

        def heard(line: str) -> None:
            print(line, file=log, flush=True)
            show(line)

        server = Server(command, f"http://{host}:{port}", patience, heard, kept)
        with server.running():
            yield server


def print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
