"""Show the promoted models and their history, and change a promoted model by hand.

    python -m tts_assets.promotion history [VOICE]
    python -m tts_assets.promotion rollback VOICE [--because TEXT]
    python -m tts_assets.promotion promote VOICE RECIPE [--because TEXT]

A model that was rolled back is not promoted again automatically.
"""

from __future__ import annotations

import argparse
import sys

from tts_assets.core.artifacts import ArtifactError, ArtifactStore, Promoted, ServingModel
from tts_assets.core.config import ConfigError
from tts_assets.promotion.history import (
    describe_history,
    history,
    locked,
    promoted_now,
    rollback,
    switch,
)
from tts_assets.settings import Settings, load_settings


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = arguments(argv)
    try:
        settings = load_settings()
        store = ArtifactStore(settings.storage)
        if options.command == "history":
            show(store, [options.voice] if options.voice else list(settings.promotion))
            return 0
        check_voice(settings, options.voice)
        handle: Promoted | None
        if options.command == "rollback":
            handle = rollback(store, options.voice, options.because)
        else:
            handle = promote(store, options.voice, options.recipe, options.because)
    except (ArtifactError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1
    if handle is None:
        print(f"{options.voice}: the model of {options.recipe} is already promoted, no change")
        return 0
    from tts_assets.promotion.assets import report_to_dagster

    report_to_dagster(store, handle)
    print(f"{options.voice}: promoted the model of {handle.facts.recipe} ({handle.path})")
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.promotion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("history").add_argument("voice", nargs="?")
    for name in ("rollback", "promote"):
        command = commands.add_parser(name)
        command.add_argument("voice")
        if name == "promote":
            command.add_argument("recipe")
        command.add_argument("--because", default="by hand", help="reason for the history")
    return parser.parse_args(argv)


def check_voice(settings: Settings, voice: str) -> None:
    """Raise :class:`ConfigError` if the project file has no such voice."""
    if voice not in settings.promotion:
        raise ConfigError(
            f"{voice!r} is no voice of the project file: add [promotion.{voice}], or use one of "
            f"{sorted(settings.promotion)}"
        )


def promote(store: ArtifactStore, voice: str, recipe: str, why: str) -> Promoted | None:
    """Promote the current serving model of ``recipe`` whatever its report says.

    Returns None, without an entry in the history, if it is already promoted.
    """
    with locked(store, voice):
        model = store.current(f"serving/{recipe}")
        assert isinstance(model, ServingModel)
        promoted = promoted_now(store, voice)
        if promoted is not None and promoted.facts.model == model.content:
            return None
        return switch(store, voice, model, recipe, "by hand", why)


def show(store: ArtifactStore, voices: list[str]) -> None:
    """Print the promoted model and the history of each voice."""
    for voice in voices:
        chain = history(store, voice)
        now = f"{chain[-1].facts.recipe} ({chain[-1].path})" if chain else "nothing yet"
        print(f"{voice}: {now}")
        if chain:
            print(describe_history(chain))


if __name__ == "__main__":
    sys.exit(main())
