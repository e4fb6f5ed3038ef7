"""The command ``tts-assets``, also ``python -m tts_assets.cli``.

Commands that make and show a project are here: ``init``, ``add-corpus``, ``config``.

Exit statuses: 0 done, 1 failed with a message, 2 wrong usage, 130 canceled by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tts_assets.cli import (
    PROGRAM,
    AsJson,
    CommandError,
    app,
    models,
    pipeline,
    run_command,
    show,
    use_project,
)
from tts_assets.project_file import preset_summary, presets, read_project

__all__ = ["app", "main", "run_command"]

STUDIO_PORT = 3002  # the UI has two before it
DEFAULT_PRESET = "small-cpu"
UNSPECIFIED = "default"

config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config", help="Show the configuration and its presets.")


def complete_preset(incomplete: str) -> list[str]:
    """Names of presets for the completion of the shell."""
    return [name for name in presets() if name.startswith(incomplete)]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    preset: Annotated[
        str, typer.Option(help="See config presets.", autocompletion=complete_preset)
    ] = DEFAULT_PRESET,
    name: Annotated[str | None, typer.Option(help="Default: that of the folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a project of your own, outside of the checkout.

    \b
    Examples:
      tts-assets init my-voices
      tts-assets init "my voices" --preset finetune-gpu --name voices
    """
    from tts_assets.cli.scaffold import write_project

    files = write_project(directory, preset, name or directory.resolve().name)
    lines = "\n".join(f"wrote {path}" for path in files)
    following = f"cd {quoted(directory)} && {PROGRAM} add-corpus FOLDER"
    show({"files": files, "preset": preset}, as_json, lambda: lines, following)


LastDay = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The last day of the consent.")
]
Publication = Annotated[
    bool, typer.Option("--publication", help="They agreed that others get the weights.")
]
Synthetic = Annotated[bool, typer.Option("--synthetic", help="It is not the voice of a person.")]
NoConsent = Annotated[
    bool, typer.Option("--no-consent", help="Nobody agreed: no model is published.")
]
Suite = Annotated[
    Path | None,
    typer.Option(exists=True, help="Texts for reports in this language (docs/formats.md)."),
]
AsrModel = Annotated[
    str, typer.Option(help="ASR model for the suite, such as small; none: no WER.")
]


@app.command("add-corpus")
def add_corpus(
    path: Annotated[Path, typer.Argument(exists=True, help="The folder of the recordings.")],
    name: Annotated[str | None, typer.Option(help="Of corpus and voice.")] = None,
    reader: Annotated[str | None, typer.Option(help="Layout; default: recognized.")] = None,
    language: Annotated[str | None, typer.Option(help="Such as en or pt-BR.")] = None,
    speaker: Annotated[str | None, typer.Option(help="Name of the speaker.")] = None,
    licence: Annotated[str, typer.Option()] = "all rights reserved",
    consent: Annotated[str | None, typer.Option(help="Who agreed to a voice model.")] = None,
    purpose: Annotated[str | None, typer.Option(help="To which use they agreed.")] = None,
    until: LastDay = None,
    publication: Publication = False,
    synthetic: Synthetic = False,
    no_consent: NoConsent = False,
    suite: Suite = None,
    whisper: AsrModel = "none",
    as_json: AsJson = False,
) -> None:
    """Declare a folder of recordings as a corpus, and a voice of that name.

    The layout is recognized; docs/corpora.md lists all. In a terminal, the command asks for what is
    not given. The project file gets the tables [corpora.NAME], and with a preset [sft.NAME] and
    [promotion.NAME].

    \b
    Examples:
      tts-assets add-corpus recordings/ann
      tts-assets add-corpus ann --language en --consent "Ann Example" --purpose "our audio guide"
      tts-assets add-corpus eva --language de --suite german.jsonl --whisper small
    """
    project = use_project()
    from tts_assets.cli import scaffold

    layout = reader or scaffold.recognized(path)
    name = name or scaffold.name_of(path)
    language = language or ask("Language tag of the recordings", "--language", "en")
    speaker = speaker or (ask("Name of the speaker", "", name) if is_terminal() else name)
    added = scaffold.declare_corpus(
        *(project, path, name),
        scaffold.suite_values(suite, project.parent, language, whisper),
        reader=layout,
        language=language,
        licence=licence,
        speaker=speaker,
        consent=consent_of(consent, purpose, until, publication, synthetic, no_consent),
    )
    train = f"{PROGRAM} train {name}"
    recipe = f"add a recipe [sft.{name}] to {project.name}, then {train}"
    show(
        added.facts(),
        as_json,
        lambda: "\n".join(
            [
                f"{added.entries} entries in the layout {layout}",
                *(f"  set aside: {count} ({reason})" for reason, count in added.set_aside.items()),
                f"added to {project}:",
                added.tables.rstrip(),
            ]
        ),
        train if added.with_recipe else recipe,
    )


def consent_of(
    who: str | None,
    purpose: str | None,
    until: date | None,
    publication: bool,
    synthetic: bool,
    nobody: bool,
) -> dict[str, Any] | str | None:
    """The value of ``consent``; None if nobody agreed. Asks in a terminal.

    Raises :class:`typer.BadParameter` for options that exclude each other or are missing.
    """
    from tts_assets.cli.scaffold import consent_values
    from tts_assets.corpora.config import SYNTHETIC

    if sum((who is not None, synthetic, nobody)) > 1:
        raise typer.BadParameter("give one of --consent, --synthetic and --no-consent")
    if nobody:
        return None
    if synthetic:
        return SYNTHETIC
    flags = "--consent NAME, or --synthetic, or --no-consent"
    who = who or ask("Who agreed to a model of their voice (empty: nobody)", flags, "")
    if not who:
        return None
    purpose = purpose or ask("To which use", "--purpose", "")
    if not purpose:
        raise typer.BadParameter("a consent needs the use: --purpose 'our audio guide'")
    last = until.date() if isinstance(until, datetime) else until
    return consent_values(who, purpose, last, publication)


def ask(what: str, flag: str, default: str) -> str:
    """The answer of a person in a terminal. Raises :class:`typer.BadParameter` elsewhere."""
    if not is_terminal():
        raise typer.BadParameter(f"no terminal to ask in: give {flag}")
    return str(typer.prompt(what, default=default, show_default=bool(default)))


def is_terminal() -> bool:
    """Whether a person can answer."""
    return sys.stdin.isatty()


def quoted(path: Path) -> str:
    """``path`` for a command line."""
    import shlex

    return shlex.quote(str(path))


@config_app.command("presets")
def list_presets(as_json: AsJson = False) -> None:
    """List the presets: values of the project file for a kind of machine.

    \b
    Examples:
      tts-assets config presets
    """
    found = {name: preset_summary(name) for name in presets()}
    show(found, as_json, lambda: "\n".join(f"{name:14} {text}" for name, text in found.items()))


@config_app.command("show")
def show_config(
    table: Annotated[str, typer.Argument(help="Only this table, such as sft.ann.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print every value in force, and where it comes from.

    A value comes from the preset, the project file, its profile, the environment (TTS__…), or is
    the default of the code. The output is TOML; each value has its source as a comment.

    \b
    Examples:
      tts-assets config show
      tts-assets config show sft.ann
      TTS__SFT__ANN__STEPS=100 tts-assets config show sft.ann.steps --json
    """
    project = use_project()
    from tts_assets.cli.scaffold import key, toml
    from tts_assets.settings import load_settings

    sources = read_project(project).sources()
    rows = [
        {"key": path, "value": value, "source": source_of(sources, path)}
        for path, value in leaves(load_settings().model_dump(mode="json", exclude_none=True))
        if path[: len(parts := table.split(".") if table else [])] == tuple(parts)
    ]
    if not rows:
        raise CommandError(f"nothing is set at {table!r}; tts-assets config show prints all keys")
    for row in rows:
        row["key"] = ".".join(key(part) for part in row["key"])
    show(
        rows,
        as_json,
        lambda: "\n".join(f"{r['key']} = {toml(r['value'])}  # {r['source']}" for r in rows),
    )


def leaves(values: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """The path and value of everything that is no table; an empty table is a value."""
    if not isinstance(values, dict) or not values:
        return [(path, values)]
    return [leaf for name, item in values.items() for leaf in leaves(item, (*path, name))]


def source_of(sources: Any, path: tuple[str, ...]) -> str:
    """The layer that sets the value at ``path``, or a table that contains it."""
    for name in path:
        if not isinstance(sources, dict):
            break
        sources = sources.get(name, UNSPECIFIED)
    return sources if isinstance(sources, str) else UNSPECIFIED


@app.command()
def studio(
    host: Annotated[str, typer.Option(help="Another address needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = STUDIO_PORT,
) -> None:
    """Serve the studio, a page for recordings and voices, on 127.0.0.1.

    On another address requests need a key: TTS_API_KEY, or a random one in the printed URL.

    \b
    Examples:
      tts-assets studio
      tts-assets studio --port 3100
    """
    use_project()
    from tts_assets.cli.studio import serve_studio

    serve_studio(host, port)


# The order of the help. The imports above have added further commands.
ORDER = (
    *(init, pipeline.doctor, pipeline.demo, add_corpus, pipeline.train),
    *(models.say, models.report, models.serve, models.promote, models.rollback, models.history),
    *(models.provenance, pipeline.run, pipeline.ui, studio, pipeline.prune),
)
app.registered_commands.sort(key=lambda command: ORDER.index(command.callback))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit."""
    sys.exit(run_command(sys.argv[1:] if arguments is None else list(arguments)))


if __name__ == "__main__":
    main()
