"""Copy the checkpoint of an SFT recipe to a folder of the repository, in half precision.

    TTS_PROFILE=base python scripts/make_base_model.py reader_en examples/models/reader-en

Run it after ``make base``. The folder can then be a base: ``base = { hub = "examples/models/…" }``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tts_assets.core.artifacts import ArtifactStore, Checkpoint
from tts_assets.settings import load_settings
from tts_assets.speechlm.model import SpeechLM


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a recipe of [sft]")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    settings = load_settings()
    checkpoint = ArtifactStore(settings.storage).current(f"sft/{options.recipe}")
    assert isinstance(checkpoint, Checkpoint)
    lm = SpeechLM.load(checkpoint.path, checkpoint.facts.codebook_size, torch.float16)
    options.folder.mkdir(parents=True, exist_ok=True)
    lm.save(options.folder)
    recipe = settings.sft[options.recipe].canonical()
    text = json.dumps(recipe, indent=2, sort_keys=True) + "\n"
    (options.folder / "recipe.json").write_text(text)
    print(f"{options.folder}: {lm.parameters:,} parameters")


if __name__ == "__main__":
    main()
