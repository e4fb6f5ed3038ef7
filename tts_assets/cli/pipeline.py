"""Commands that run the pipeline: ``run``, ``train``, ``demo``, ``ui``, ``doctor``, ``prune``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tts_assets.cli import AsJson, CommandError, app, messages_beside, names_of, show, use_project
from tts_assets.project_file import DEMO, PROJECT_FILE
from tts_assets.speakers.config import PUBLISHED

if TYPE_CHECKING:
    from tts_assets.settings import Settings

UI_PORT = 3000  # files use the next one


@app.command()
def run(
    job: Annotated[str | None, typer.Argument(help="A job; dg list defs names them.")] = None,
    select: Annotated[
        str | None, typer.Option(help="Assets instead of a job, in the syntax of the UI.")
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="One run for each.", autocompletion=names_of("corpora")),
    ] = None,
    all_corpora: Annotated[
        bool, typer.Option("--all-corpora", help="One run for each corpus.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML of the launchpad, for this run only.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job, or a selection of assets, in the foreground.

    Shows one line per finished asset, and a progress bar. Ctrl-C cancels the run: programs save a
    checkpoint first, and the same command resumes.

    \b
    Examples:
      tts-assets run refresh --corpus ann
      tts-assets run refresh --all-corpora
      tts-assets run --select 'key:"report/ann"'
    """
    if (job is None) == (select is None):
        raise typer.BadParameter("give a job, or --select")
    use_project()
    import yaml

    from jobs.foreground import Request, RequestError, project_instance, run_shown

    values = yaml.safe_load(config.read_text()) if config else {}
    try:
        with messages_beside(as_json), project_instance() as (instance, settings, known):
            corpora: list[str | None] = [*(known if all_corpora else corpus or ())]
            asked = [Request(job, select, one, values) for one in corpora or [None]]
            runs = [run_shown(instance, settings, one) for one in asked]
    except RequestError as error:
        raise CommandError(error) from None
    if as_json:
        show(runs, True, str)


@app.command()
def train(
    voices: Annotated[
        list[str],
        typer.Argument(
            metavar="VOICE...",
            help="Voices of [promotion], or recipes of [sft], [rlhf] or [dpo].",
            autocompletion=names_of("promotion", "sft", "rlhf", "dpo"),
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Train voices: data, training, serving model, report, promotion.

    What did not change is not made again; an interrupted training resumes. Corpora whose consent
    has ended or was withdrawn are left out.

    \b
    Examples:
      tts-assets train ann
      tts-assets train ann guide
      TTS__SFT__ANN__STEPS=100 tts-assets train ann     (a first test)
    """
    use_project()
    from jobs.asset_jobs import IMPORT, REFRESH
    from jobs.foreground import Request, RequestError, project_instance, run_shown

    try:
        with messages_beside(as_json), project_instance() as (instance, settings, known):
            recipes = [one for voice in voices for one in recipes_of(settings, voice)]
            corpora = {name for one in recipes for name in settings.training_corpora(one)}
            check_consents(settings, corpora)
            asked = [
                *(Request(REFRESH if c in known else IMPORT, corpus=c) for c in sorted(corpora)),
                Request(select=selection(settings, recipes)),
            ]
            runs = [run_shown(instance, settings, one) for one in asked]
    except RequestError as error:
        raise CommandError(error) from None
    if as_json:
        show(runs, True, str)
    else:
        print(f"\nnext: tts-assets report {voices[0]}, or tts-assets say TEXT --voice {voices[0]}")


def check_consents(settings: Settings, corpora: Iterable[str]) -> None:
    """Raise :class:`CommandError` for a corpus that is the only one of a recipe, and has ended."""
    for name in sorted(settings.ended_consents.keys() & {*corpora}):
        raise CommandError(
            f"the consent for corpora.{name} {settings.ended_consents[name]}, and a recipe has no "
            "other corpus: add one, or remove the recipe"
        )


def recipes_of(settings: Settings, voice: str) -> list[str]:
    """The recipes of a voice, or the recipe of that name. Raises :class:`CommandError`."""
    if voice in settings.promotion:
        return list(settings.promotion[voice].candidates)
    if voice in settings.stage_of:
        return [voice]
    known = ", ".join(dict.fromkeys((*settings.promotion, *settings.stage_of)))
    raise CommandError(
        f"there is no voice {voice!r}; voices and recipes: {known or 'none'}; "
        "tts-assets add-corpus makes one"
    )


def selection(settings: Settings, recipes: Iterable[str]) -> str:
    """The assets of ``recipes``, after the arrays of their corpora, in the syntax of the UI."""
    keys = {"evaluation_suite"}
    if settings.codec.decoder is not None:
        keys.add("codec_decoder")
    if settings.evaluation.speaker_encoder == PUBLISHED:
        keys.add(PUBLISHED)
    for recipe in recipes:
        aligned = settings.aligned.get(recipe)
        base: str | None = aligned.base if aligned else recipe
        while base is not None:
            keys |= {f"sft/{base}", *(f"texts/{name}" for name in settings.sft[base].texts)}
            base = settings.sft[base].base.recipe
        if aligned:
            keys |= {f"serving/{aligned.base}", f"report/{aligned.base}"}
            keys |= {f"{settings.stage_of[recipe]}/{recipe}", f"comparison/{recipe}"}
        if recipe in settings.dpo:
            keys.add(f"preferences/{settings.dpo[recipe].preferences}")
        keys |= {f"serving/{recipe}", f"report/{recipe}"}
        voices = settings.promotion.items()
        keys |= {f"promoted/{voice}" for voice, one in voices if recipe in one.candidates}
    return " or ".join(f'key:"{key}"' for key in sorted(keys))


@app.command()
def demo(
    directory: Annotated[
        Path | None, typer.Argument(help="A new folder for the project of the demo.")
    ] = None,
) -> None:
    """Train the demo's small voice end to end: 18 to 27 minutes on two cores.

    Without a folder, all recipes of the project of this folder are trained. A second run finds
    nothing to do; after Ctrl-C it resumes.

    \b
    Examples:
      tts-assets demo my-demo
    """
    if directory is not None:
        if not (directory / PROJECT_FILE).exists():
            from tts_assets.cli.scaffold import write_project

            write_project(directory, DEMO, "demo")
        os.environ["TTS_PROJECT"] = str((directory / PROJECT_FILE).resolve())
    use_project()
    from jobs.demo import run_demo
    from jobs.foreground import RequestError, project_instance

    try:
        with project_instance() as (instance, settings, _):
            run_demo(instance, settings)
    except RequestError as error:
        raise CommandError(error) from None


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Of the UI; files use the next one.")] = UI_PORT,
) -> None:
    """Start the Dagster UI and daemon on 127.0.0.1, and the files of the storage beside it.

    Ctrl-C cancels the runs of the UI: programs save a checkpoint first.

    \b
    Examples:
      tts-assets ui
      tts-assets ui --port 3100
    """
    use_project()
    from jobs.ui import main

    raise typer.Exit(main(port))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: what is missing, what that affects, and how to install it.

    The exit status is 1 if a part is missing that the project needs.

    \b
    Examples:
      tts-assets doctor
      tts-assets doctor --json
    """
    from tts_assets.doctor.findings import check_machine

    raise typer.Exit(check_machine(as_json))


@app.command()
def prune(
    days: Annotated[float | None, typer.Option(help="Keep younger versions.")] = None,
    versions: Annotated[
        int | None, typer.Option(help="Keep so many of each asset and partition.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; else list them.")] = False,
    as_json: AsJson = False,
) -> None:
    """List or delete old versions of artifacts that nothing refers to.

    The defaults are those of [retention]. Current and promoted versions, and what they were made
    from, are kept.

    \b
    Examples:
      tts-assets prune                       (lists them, and their size)
      tts-assets prune --days 90 --delete
    """
    use_project()
    from tts_assets.doctor.__main__ import prune_storage
    from tts_assets.settings import load_settings

    asked = {"days": days, "versions": versions}
    given = {key: value for key, value in asked.items() if value is not None}
    raise typer.Exit(prune_storage(load_settings(), given, delete, as_json))
