"""The Dagster UI and daemon, and the files of the storage beside it.

Both serve on 127.0.0.1 only. The files, read-only, are at the next port: the links of assets to
reports, pages and artifact folders lead there. A second start on the same DAGSTER_HOME is refused,
because two daemons would launch every run twice.
"""

from __future__ import annotations

import html
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import uvicorn
from dagster import DagsterInstance, RunsFilter
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster._core.storage.tags import GRPC_INFO_TAG
from filelock import FileLock, Timeout
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from tts_assets.settings import load_settings

HOST = "127.0.0.1"
SUPERSEDED = "ignore:Function `dev_command` is superseded"  # dg dev ignores workspace.yaml
POLL_SECONDS = 0.5
STOP_SECONDS = 120.0  # trainings save a checkpoint when they are asked to stop


def main(port: int) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; the files use the next port. Returns the status."""
    home = Path(os.environ["DAGSTER_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    address = home / "ui.address"
    lock = FileLock(home / "ui.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        running = address.read_text().strip() if address.is_file() else "another address"
        print(f"already running at {running}; stop it there first", file=sys.stderr)
        return 1
    with lock:
        for used in (port, port + 1):
            if not is_free(used):
                remedy = "choose another with --port (make ui PORT=…)"
                print(f"port {used} is in use: {remedy}", file=sys.stderr)
                return 1
        url = f"http://{HOST}:{port}"
        address.write_text(f"{url}\n")
        settings = load_settings()
        os.environ["TTS_FILES_URL"] = f"http://{HOST}:{port + 1}"
        serve_files(settings.storage, port + 1)
        print(f"Dagster UI at {url}, files of {settings.storage} at {os.environ['TTS_FILES_URL']}")
        cancels = settings.compute.launcher != "slurm"
        return run_dagster(port, cancels=cancels, folder=settings.root)


def is_free(port: int) -> bool:
    """Whether nothing listens on the port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def run_dagster(port: int, *target: str, cancels: bool = True, folder: Path | None = None) -> int:
    """Run ``dagster dev`` until it ends, or until SIGINT, SIGTERM or SIGHUP. Returns its status.

    ``target``: options that name the definitions; none: ``workspace.yaml`` of ``folder``. With
    ``cancels`` its runs are canceled first. Batch jobs of a cluster, which outlive Dagster, are
    not.
    """
    command = [sys.executable, "-m", "dagster", "dev", "--host", HOST, "--port", str(port), *target]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # background jobs ignore SIGINT
    # A session of its own: Ctrl-C reaches this process only. A run that Ctrl-C interrupts before it
    # is canceled counts as failed.
    environment = {**os.environ, "PYTHONWARNINGS": SUPERSEDED}
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            if cancels:
                cancel_runs()
        except KeyboardInterrupt:
            print("stopping at once")
        process.send_signal(signal.SIGINT)
        return process.wait(timeout=STOP_SECONDS)


def cancel_runs() -> None:
    """Cancel the runs that the servers of this instance execute, and wait for their end.

    Runs of ``tts-assets run``, ``train`` and ``demo`` belong to their own terminals and go on.
    """
    with DagsterInstance.get() as instance:
        runs = [
            run
            for run in instance.get_runs(RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES))
            if GRPC_INFO_TAG in run.tags
        ]
        if not runs:
            return
        print(
            f"stopping {len(runs)} run{'s' * (len(runs) > 1)} "
            f"({', '.join(run.job_name for run in runs)}): trainings save a checkpoint, and resume "
            "when they are launched again; Ctrl-C again does not wait",
            flush=True,
        )
        for run in runs:
            instance.run_coordinator.cancel_run(run.run_id)
        deadline = time.monotonic() + STOP_SECONDS
        ids = [run.run_id for run in runs]
        while time.monotonic() < deadline:
            found = instance.get_runs(RunsFilter(run_ids=ids))
            if all(run.is_finished for run in found):
                return
            time.sleep(POLL_SECONDS)


def serve_files(storage: Path, port: int, host: str = HOST, secret: str = "") -> None:
    """Serve ``storage`` in a thread of this process; see :func:`file_app`."""
    config = uvicorn.Config(file_app(storage, secret), host=host, port=port, log_level="warning")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()


def file_app(storage: Path, secret: str = "") -> Starlette:
    """An application that answers GET for files and folders below ``storage``.

    Hidden names and everything that leads out of ``storage`` are 404. The Host header must be that
    of this machine, so that a foreign page cannot read the files through a name of its own. With a
    ``secret``, every path begins with it, and the host may be any.
    """
    root, above = storage.resolve(), f"/{secret}" if secret else ""

    def answer(request: Request) -> Response:
        path = (root / request.path_params["path"]).resolve()
        below = path.relative_to(root).parts if path.is_relative_to(root) else (".",)
        if any(part.startswith(".") for part in below) or not path.exists():
            return Response("no such file\n", status_code=404, media_type="text/plain")
        return listing(path, root, above) if path.is_dir() else FileResponse(path)

    known = ["*"] if secret else [HOST, "localhost"]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=known)
    return Starlette(routes=[Route(f"{above}/{{path:path}}", answer)], middleware=[hosts])


def listing(folder: Path, root: Path, above: str) -> HTMLResponse:
    """A page with links to the files of a folder; ``above`` is the path of ``root``."""
    names = sorted(
        f"{one.name}/" if one.is_dir() else one.name
        for one in folder.iterdir()
        if not one.name.startswith(".")
    )
    here = f"{above}/" + "".join(f"{part}/" for part in folder.relative_to(root).parts)
    items = "".join(
        f'<li><a href="{quote(here + name)}">{html.escape(name)}</a></li>' for name in names
    )
    title = html.escape(here)
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<h1>{title}</h1><ul>{items}</ul></html>"
    )
