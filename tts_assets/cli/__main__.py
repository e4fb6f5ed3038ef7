"""The command ``tts-assets``, also ``python -m tts_assets.cli``.

Exit statuses: 0 done, 1 failed with a message, 2 wrong usage, 130 canceled by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tts_assets.cli import exports, models, pipeline, project
from tts_assets.cli.app import app, run_command

__all__ = ["app", "exports", "main", "run_command"]

# The order of the help. Importing the modules above has added their commands.
ORDER = (
    *(project.init, pipeline.doctor, pipeline.demo, project.add_corpus, pipeline.train),
    *(models.say, models.report, models.serve, models.promote, models.rollback, models.history),
    *(models.provenance, pipeline.run, pipeline.ui, pipeline.prune),
)
app.registered_commands.sort(key=lambda command: ORDER.index(command.callback))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit."""
    sys.exit(run_command(sys.argv[1:] if arguments is None else list(arguments)))


if __name__ == "__main__":
    main()
