"""Commands for trained voices: ``say``, ``serve``, ``report``, ``promote``, ``rollback``.

``export hub`` and ``export gguf`` write voices for other programs.
"""

from __future__ import annotations

import webbrowser
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tts_assets.cli import (
    PROGRAM,
    AsJson,
    CommandError,
    app,
    messages_beside,
    names_of,
    show,
    use_project,
)

if TYPE_CHECKING:
    from tts_assets.core.artifacts import ArtifactStore
    from tts_assets.settings import Settings

FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True}
VoiceOption = Annotated[
    str | None,
    typer.Option(
        help="Voice or recipe; default: the only one.",
        autocompletion=names_of("promotion", "sft", "rlhf", "dpo"),
    ),
]
VoiceName = Annotated[
    str, typer.Argument(help="A voice of [promotion].", autocompletion=names_of("promotion"))
]
ModelOption = Annotated[Path | None, typer.Option(help="Folder of a serving model instead.")]
Because = Annotated[str, typer.Option(help="Reason for the history.")]
export_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def project_store() -> tuple[Settings, ArtifactStore]:
    """The settings and the artifacts of the project."""
    use_project()
    from tts_assets.core.artifacts import ArtifactStore
    from tts_assets.settings import load_settings

    settings = load_settings()
    return settings, ArtifactStore(settings.storage)


def only_voice(settings: Settings) -> str:
    """The only voice, or else the only recipe. Raises :class:`CommandError` for several."""
    names = list(settings.promotion) or list(settings.stage_of)
    if len(names) == 1:
        return names[0]
    raise CommandError(f"name a voice: {', '.join(names) or 'tts-assets add-corpus makes one'}")


def model_of(voice: str | None) -> Path:
    """The folder of the promoted model of a voice; else of the current model of a recipe.

    Raises :class:`CommandError` if there is none, and for an unknown voice.
    """
    settings, store = project_store()
    from tts_assets.cli.pipeline import recipes_of
    from tts_assets.core.artifacts import ArtifactError

    voice = voice or only_voice(settings)
    recipes = recipes_of(settings, voice)
    for asset in (f"promoted/{voice}", *(f"serving/{one}" for one in (voice, *recipes))):
        try:
            return store.current(asset).path
        except ArtifactError:
            continue
    raise CommandError(f"{voice} has no model yet: {PROGRAM} train {voice}")


@app.command(context_settings=FORWARDED)
def say(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="The text.")],
    out: Annotated[Path, typer.Option(help="A .wav file, or - for samples on stdout.")] = Path(
        "say.wav"
    ),
    voice: VoiceOption = None,
    model: ModelOption = None,
    as_json: AsJson = False,
) -> None:
    """Synthesize a text.

    The promoted model of the voice is used; if none is promoted, that of its recipe. Further
    options are those of python -m tts_assets.serving.synthesize, such as --seed, --temperature,
    --backend. With --backend llama.cpp the weights have 8 bits, or 16 with --weights f16; it needs
    pip install 'tts-assets[llama]'.

    \b
    Examples:
      tts-assets say "good morning" --voice ann --out good_morning.wav
      tts-assets say "one two three" --seed 7 --temperature 0.5
      tts-assets say "good morning" --backend llama.cpp
    """
    stream = str(out) == "-"
    if stream and as_json:
        raise typer.BadParameter("--json needs a file as --out")
    folder = model or model_of(voice)
    from tts_assets.serving.synthesize import main

    main(["--model", str(folder), "--text", text, "--out", str(out), *context.args])
    if not stream:
        following = f"{PROGRAM} serve" + (f" --voice {voice}" if voice else "")
        written = {"file": str(out), "model": str(folder)}
        show(written, as_json, lambda: f"wrote {out}", following)


@app.command(context_settings=FORWARDED)
def serve(context: typer.Context, voice: VoiceOption = None, model: ModelOption = None) -> None:
    """Serve a voice over HTTP, with OpenAI's audio.speech API.

    Further options are those of python -m tts_assets.serving.server, such as --host, --port and
    --adapters. TTS_API_KEY sets a key that requests need.

    \b
    Examples:
      tts-assets serve --voice ann
      tts-assets serve --voice ann --port 8001
    """
    folder = model or model_of(voice)
    from tts_assets.serving.server import main

    raise typer.Exit(main(["--model", str(folder), *context.args]))


@app.command()
def report(
    voice: Annotated[
        str | None,
        typer.Argument(
            help="Voice or recipe; default: the only one.",
            autocompletion=names_of("promotion", "sft", "rlhf", "dpo"),
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the figures of the last report of a voice, and the path of its page.

    \b
    Examples:
      tts-assets report ann
      tts-assets report ann --open
      tts-assets report ann --json
    """
    settings, store = project_store()
    from tts_assets.cli.pipeline import recipes_of

    voice = voice or only_voice(settings)
    found = {name: store.current(f"report/{name}") for name in recipes_of(settings, voice)}
    rows = []
    for recipe, handle in found.items():
        page = handle.path / "report.html"
        rows.append({"recipe": recipe, "page": str(page), **handle.facts.model_dump(mode="json")})
        if open_page:
            webbrowser.open(page.as_uri())
    show(rows, as_json, lambda: "\n".join(map(described, rows)), f'{PROGRAM} say "good morning"')


def described(row: dict[str, object]) -> str:
    """The figures of one report as lines."""
    lines = [f"{row['recipe']}: {row['texts']} texts"]
    categories = row["wer_by_category"]
    assert isinstance(categories, dict)
    lines += [f"  WER {name:16} {wer:7.1%}" for name, wer in categories.items()]
    for name, label in (("dnsmos_p808", "DNSMOS P.808"), ("speaker_similarity", "similarity")):
        if (value := row[name]) is not None:
            lines.append(f"  {label:20} {value:7.2f}")
    return "\n".join([*lines, f"  listen: {row['page']}"])


@app.command()
def promote(
    voice: VoiceName,
    recipe: Annotated[str | None, typer.Argument(help="Default: the first candidate.")] = None,
    because: Because = "by hand",
    as_json: AsJson = False,
) -> None:
    """Promote the current model of a recipe by hand, whatever its report says.

    \b
    Examples:
      tts-assets promote ann
      tts-assets promote ann ann_grpo --because "better endings"
    """
    settings, _ = project_store()
    if recipe is None:
        from tts_assets.promotion.__main__ import check_voice

        check_voice(settings, voice)
        recipe = settings.promotion[voice].candidates[0]
    change_promoted(["promote", voice, recipe, "--because", because], as_json)


@app.command()
def rollback(voice: VoiceName, because: Because = "by hand", as_json: AsJson = False) -> None:
    """Return to the model that was promoted before.

    The model that is left is not promoted again automatically.

    \b
    Examples:
      tts-assets rollback ann --because "clicks at the end"
    """
    change_promoted(["rollback", voice, "--because", because], as_json)


def change_promoted(arguments: list[str], as_json: bool) -> None:
    """Run a command of ``tts_assets.promotion``. Prints the next step, or the promoted model."""
    _, store = project_store()
    from tts_assets.promotion.__main__ import main
    from tts_assets.promotion.history import promoted_now

    with messages_beside(as_json):
        if status := main(arguments):
            raise typer.Exit(status)
    if as_json:
        promoted = promoted_now(store, arguments[1])
        assert promoted is not None
        show({"folder": promoted.path, **promoted.facts.model_dump(mode="json")}, True, str)
    else:
        print(f"\nnext: {PROGRAM} history {arguments[1]}; a running server keeps the model it has")


@app.command(context_settings=FORWARDED)
def provenance(context: typer.Context) -> None:
    """Tell where audio comes from, and whether the consents of all corpora hold.

    The commands are those of python -m tts_assets.provenance: check, show, init, consents,
    withdraw.

    \b
    Examples:
      tts-assets provenance check speech.wav
      tts-assets provenance consents
      tts-assets provenance withdraw ann --because "asked on 2026-11-30"
    """
    from tts_assets.provenance.__main__ import main

    raise typer.Exit(main(context.args))


@app.command()
def history(
    voice: Annotated[
        str | None,
        typer.Argument(help="Default: all voices.", autocompletion=names_of("promotion")),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the promoted models and the history of each voice.

    \b
    Examples:
      tts-assets history
      tts-assets history ann --json
    """
    settings, store = project_store()
    from tts_assets.promotion.__main__ import check_voice
    from tts_assets.promotion.__main__ import show as show_history
    from tts_assets.promotion.history import history as promotions

    if voice is not None:
        check_voice(settings, voice)
    voices = [voice] if voice else list(settings.promotion)
    if not as_json:
        show_history(store, voices)
        return
    found = {
        name: [one.facts.model_dump(mode="json") for one in promotions(store, name)]
        for name in voices
    }
    show(found, True, str)


app.add_typer(export_app, name="export", help="Write a voice for other programs.")

ExportedVoice = Annotated[
    str,
    typer.Argument(
        help="A voice with a promoted model, or a recipe.",
        autocompletion=names_of("promotion", "sft", "rlhf", "dpo"),
    ),
]
Target = Annotated[Path, typer.Argument(help="A new folder.")]


def selected(settings: Settings, store: ArtifactStore, voice: str) -> tuple[str, str]:
    """The recipe of a voice's model, and the digest of the model.

    It is the promoted model of a voice, or the current one of a recipe. Raises
    :class:`CommandError` for a voice without a promoted model.
    """
    from tts_assets.promotion.history import promoted_now

    if voice in settings.promotion and (promoted := promoted_now(store, voice)) is not None:
        return promoted.facts.recipe, promoted.facts.model
    if voice not in settings.stage_of:
        raise CommandError(f"{voice} has no promoted model: tts-assets train {voice}, or promote")
    return voice, store.current(f"serving/{voice}").content


def base_of(settings: Settings, recipe: str) -> str:
    """The name of the base model of a recipe on the hub; empty for another base."""
    name: str | None = settings.aligned[recipe].base if recipe in settings.aligned else recipe
    while name is not None:
        base = settings.sft[name].base
        if base.hub is not None:
            return "" if Path(base.hub).exists() else base.hub
        name = base.recipe
    return ""


@export_app.command("hub")
def export_hub(voice: ExportedVoice, directory: Target, as_json: AsJson = False) -> None:
    """Write a Hugging Face repository, which plain transformers loads.

    It has the weights, the codec, a model card made from the report, a data card, samples, and an
    example of ten lines. Every speaker must have agreed to the publication: publication = true in
    the consent of each corpus. Nothing is uploaded.

    \b
    Examples:
      tts-assets export hub ann ann-hub
      cd ann-hub && python example.py
    """
    settings, store = project_store()
    from tts_assets.core.artifacts import Report
    from tts_assets.export.hub import gather, write_repository

    recipe, content = selected(settings, store, voice)
    report = store.current(f"report/{recipe}")
    assert isinstance(report, Report)
    consents = settings.consents(recipe)
    source = gather(report, content, consents, base_of(settings, recipe))
    write_repository(source, directory)
    following = f"cd {directory} && python example.py; hf upload NAME/REPOSITORY {directory}"
    show({"folder": str(directory)}, as_json, lambda: f"wrote {directory}", following)


class Weights(StrEnum):
    """How matrices are stored."""

    f16 = "f16"
    q8_0 = "q8_0"


@export_app.command("gguf")
def export_gguf(
    voice: ExportedVoice,
    directory: Annotated[Path, typer.Argument(help="A folder; files of an earlier export go.")],
    weights: Annotated[Weights, typer.Option(help="16 bits, or 8 bits.")] = Weights.q8_0,
    as_json: AsJson = False,
) -> None:
    """Write the language model as GGUF for llama.cpp, and the codec's decoder as ONNX.

    The bases are Llama, Qwen 2 and Qwen 3, the codecs those with one codebook. It needs
    pip install 'tts-assets[export]'.

    \b
    Examples:
      tts-assets export gguf ann ann-gguf
      tts-assets export gguf ann ann-gguf --weights f16
    """
    folder = model_of(voice)
    from tts_assets.export import write_decoder, write_gguf
    from tts_assets.serving.audio_formats import require_consents
    from tts_assets.serving.served_model import verify_model

    card = verify_model(folder)
    require_consents(card, folder)
    decoder = write_decoder(folder, card, directory)
    model = write_gguf(folder, card, directory, weights.value)
    written = {"model": str(model), "decoder": str(decoder)}
    following = f"llama-server --model {model}; docs/export.md has prompts and decoding"
    show(written, as_json, lambda: f"wrote {model}\nwrote {decoder}", following)
