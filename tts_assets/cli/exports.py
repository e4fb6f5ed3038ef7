"""Commands that write voices for other programs: ``export hub``, ``export gguf``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tts_assets.cli.app import CommandError, app, names_of
from tts_assets.cli.models import model_of, project_store

if TYPE_CHECKING:
    from tts_assets.core.artifacts import ArtifactStore
    from tts_assets.settings import Settings

export_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
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
def export_hub(voice: ExportedVoice, directory: Target) -> None:
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
    print(f"wrote {directory}")
    print(f"\nnext: cd {directory} && python example.py; hf upload NAME/REPOSITORY {directory}")


class Weights(StrEnum):
    """How matrices are stored."""

    f16 = "f16"
    q8_0 = "q8_0"


@export_app.command("gguf")
def export_gguf(
    voice: ExportedVoice,
    directory: Annotated[Path, typer.Argument(help="A folder; files of an earlier export go.")],
    weights: Annotated[Weights, typer.Option(help="16 bits, or 8 bits.")] = Weights.q8_0,
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
    from tts_assets.export.gguf import write_gguf
    from tts_assets.export.onnx_decoder import write_decoder
    from tts_assets.serving.audio_formats import require_consents
    from tts_assets.serving.served_model import verify_model

    card = verify_model(folder)
    require_consents(card, folder)
    decoder = write_decoder(folder, card, directory)
    model = write_gguf(folder, card, directory, weights.value)
    print(f"wrote {model}\nwrote {decoder}")
    print(f"\nnext: llama-server --model {model}; docs/export.md has prompts and decoding")
