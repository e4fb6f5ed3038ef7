"""The application of ``tts-assets``: options of all commands, errors, output, completion.

The commands are in the modules beside this one. They import what needs seconds, such as Dagster and
torch, only when they run, so that ``--help`` and completion answer at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from tts_assets import __version__
from tts_assets.core.config import ConfigError
from tts_assets.project_file import DATA, project_file, read_project

PROGRAM = "tts-assets"
FAILED, CANCELED = 1, 130
HOME_FILE = "dagster.yaml"

app = typer.Typer(
    name=PROGRAM,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class CommandError(ValueError):
    """A request that cannot be met; the message says what to do."""


@app.callback(invoke_without_command=True)
def options(
    project: Annotated[
        Path | None,
        typer.Option(help="Project file; default: the one of this folder or above it."),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile of the project file.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Text-to-speech training, from recordings to a voice.

    \b
    A first voice:
      tts-assets init my-voices
      cd my-voices
      tts-assets add-corpus ~/recordings/ann
      tts-assets train ann
      tts-assets say "good morning" --voice ann

    Exit statuses: 0 done, 1 failed with a message, 2 wrong usage, 130 canceled by Ctrl-C.
    """
    if version:
        print(__version__)
        raise typer.Exit
    if project is not None:
        os.environ["TTS_PROJECT"] = str(project.resolve())
    if profile is not None:
        os.environ["TTS_PROFILE"] = profile


def run_command(arguments: Sequence[str]) -> int:
    """Run one command. Returns its exit status; prints the message of a failure to stderr."""
    try:
        return int(app(args=list(arguments), prog_name=PROGRAM, standalone_mode=True) or 0)
    except known_errors() as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return CANCELED
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return FAILED
        return int(ended.code or 0)


def known_errors() -> tuple[type[Exception], ...]:
    """The errors whose message says what to do; no error of an unloaded module can occur."""
    artifacts = sys.modules.get("tts_assets.core.artifacts")
    return (CommandError, ConfigError, *([artifacts.ArtifactError] if artifacts else []))


def use_project() -> Path:
    """The path of the project file, for this process and those that it starts.

    Sets ``TTS_PROJECT``, and ``DAGSTER_HOME`` if it is unset: to ``.dagster`` beside the file, with
    the settings of the instance.
    """
    path = project_file().resolve()
    os.environ["TTS_PROJECT"] = str(path)
    read_project(path)  # an error before anything starts
    home = Path(os.environ.get("DAGSTER_HOME") or path.parent / ".dagster")
    os.environ["DAGSTER_HOME"] = str(home)
    home.mkdir(parents=True, exist_ok=True)
    if not (home / HOME_FILE).exists():
        shutil.copyfile(DATA / HOME_FILE, home / HOME_FILE)
    return path


def show(data: Any, as_json: bool, text: Callable[[], str], next_step: str = "") -> None:
    """Print ``data`` as JSON, or ``text`` and the next step."""
    if as_json:
        print(json.dumps(data, indent=2, ensure_ascii=False, default=str))
        return
    print(text())
    if next_step:
        print(f"\nnext: {next_step}")


@contextmanager
def messages_beside(as_json: bool) -> Iterator[None]:
    """With ``as_json``, what the block prints goes to stderr, because stdout is for the JSON."""
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        yield


def names_of(*tables: str) -> Callable[[str], list[str]]:
    """A completion: the names in ``tables`` of the project file that begin with what is typed."""

    def complete(incomplete: str) -> list[str]:
        try:
            values = read_project().values()
        except (ConfigError, OSError):
            return []
        found = {name for table in tables for name in values.get(table, {})}
        return sorted(name for name in found if name.startswith(incomplete))

    return complete
