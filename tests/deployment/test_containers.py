"""Dockerfiles and the compose file, as far as they can be checked without a Docker daemon."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.install import CUDA_OF_LOCK, UV

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "deployment"
COMPOSE = FOLDER / "compose.yaml"
BUILDS = ("cpu", "gpu")
ENVIRONMENT = {"POSTGRES_PASSWORD": "secret", "TTS_PROJECT_FOLDER": "/srv/voices"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def instructions(build: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / f"{build}.Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    parts = [line.split(maxsplit=1) for line in lines if line.strip()]
    return [(name, arguments) for name, arguments in parts]


def in_context(name: str) -> bool:
    """Whether ``.dockerignore`` lets a file of the checkout into the build context."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().lstrip("!")
        if not pattern or line.startswith("#"):
            continue
        parents = [name, *(str(parent) for parent in Path(name).parents)]
        found = any(fnmatch(one, pattern.replace("**/", "*")) for one in parents if one != ".")
        kept = line.startswith("!") if found else kept
    return kept


def interpolated(environment: dict[str, str]) -> Any:
    """The compose file with its variables. Raises KeyError for one that must be set."""

    def value(match: re.Match[str]) -> str:
        name, kind, default = match.groups()
        if name in environment:
            return environment[name]
        if kind == "-":
            return str(default)
        raise KeyError(name)

    text = re.sub(r"(?m)^\s*#.*$", "", COMPOSE.read_text())
    return yaml.safe_load(VARIABLE.sub(value, text))


def test_the_build_context_has_what_the_wheel_is_made_of() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout.split("\0")
    packages = ("tts_assets/", "jobs/", "resources/", "sensors/", "examples/corpora/", "locks/")
    needed = [name for name in tracked if name.startswith(packages)]
    needed += ["pyproject.toml", "README.md", "LICENSE", "dagster_project.toml"]
    assert len(needed) > 500 and [name for name in needed if not in_context(name)] == []
    for name in (".git/config", "tests/conftest.py", "storage/sft/x", ".venv/bin/python", ".env"):
        assert not in_context(name), name
    links = [ROOT / name for name in needed if (ROOT / name).is_symlink()]
    assert links
    for link in links:
        assert in_context(str(link.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("build", BUILDS)
def test_images_have_two_stages_and_no_root(build: str) -> None:
    found = instructions(build)
    stages = [arguments for name, arguments in found if name == "FROM"]
    assert len(stages) == 2 and stages[0].endswith(" AS build")
    assert len({stage.split()[0] for stage in stages}) == 1  # the environment names its Python
    last = len(found) - 1 - [name for name, _ in found][::-1].index("FROM")
    runtime = dict(found[last:])
    assert runtime["USER"] == "tts" and "useradd" in str(found[last:])
    assert json.loads(runtime["ENTRYPOINT"]) == ["tts-assets"]
    assert "HEALTHCHECK" in runtime
    for name, arguments in found:
        if name == "COPY" and not arguments.startswith("--from=build"):
            source = arguments.split()[0]
            assert (ROOT / source).exists() and (source == "." or in_context(source))


@pytest.mark.parametrize("build", BUILDS)
def test_images_install_the_locked_versions(build: str) -> None:
    text = (FOLDER / f"{build}.Dockerfile").read_text()
    assert UV in text and f"-r locks/{build}.txt" in text
    backend = "cpu" if build == "cpu" else f"cu{CUDA_OF_LOCK.replace('.', '')}"
    assert f"--torch-backend={backend} " in text
    [version] = set(re.findall(r"FROM python:(\d\.\d+)-", text))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.13" and version in ("3.11", "3.12")
    assert "tts-assets" in project["scripts"]


class Answer(BaseHTTPRequestHandler):
    """Answers with the status in the path."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_the_service(status: int, healthy: bool) -> None:
    arguments = dict(instructions("cpu"))["HEALTHCHECK"]
    command = json.loads(arguments.split("CMD", 1)[1])
    assert command[0] == "python"
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{status}"
        environment = {**os.environ, "TTS_HEALTH_URL": url}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True)
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode == 0) == healthy


def test_the_services_of_the_compose_file_fit_together() -> None:
    compose = interpolated(ENVIRONMENT)
    services = compose["services"]
    assert set(services) == {"postgres", "webserver", "daemon", "speech"}
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            file = (FOLDER / source).is_file() if source.startswith(".") else False
            assert source in compose["volumes"] or source.startswith("/") or file, volume
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), port  # nothing has passwords of its own
    build = services["webserver"]["build"]
    context = (FOLDER / build["context"]).resolve()
    assert context == ROOT and (context / build["dockerfile"]).is_file()
    assert (
        context / interpolated(ENVIRONMENT | {"TTS_BUILD": "gpu"})["x-tts"]["build"]["dockerfile"]
    ).is_file()
    url = services["daemon"]["environment"]["TTS_POSTGRES_URL"]
    assert url == "postgresql+psycopg2://dagster:secret@postgres:5432/dagster"
    named = set(re.findall(r"env: (\w+)", (FOLDER / "dagster.yaml").read_text()))
    assert named <= set(services["daemon"]["environment"])


@pytest.mark.parametrize("missing", sorted(ENVIRONMENT))
def test_the_compose_file_demands_its_variables(missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        interpolated({key: value for key, value in ENVIRONMENT.items() if key != missing})


@pytest.mark.slow
@pytest.mark.parametrize("service", ["webserver", "daemon", "speech"])
def test_the_commands_of_the_services_have_these_options(service: str) -> None:
    """``--help`` of each command lists every option that the compose file gives it."""
    found = interpolated(ENVIRONMENT)["services"][service]
    words = [*found.get("entrypoint", ["tts-assets"]), *found["command"]]
    tool = words[0]
    scripts = Path(sys.executable).parent
    command = [sys.executable, "-m", "tts_assets.cli"] if tool == "tts-assets" else [scripts / tool]
    inner = [word for word in words[1:2] if not word.startswith("-")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [*command, *inner, "--help"], env=environment, text=True, capture_output=True, check=True
    ).stdout
    given = [word for word in words if word.startswith("--")]
    forwarded = ("--host", "--port") if tool == "tts-assets" else ()
    assert given, shlex.join(words)
    assert [option for option in given if option not in shown and option not in forwarded] == []
