"""Sources of a codec that is not trained here: folder, Hugging Face hub, original checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from tts_assets.codec.config import CODEBOOKS_FILE, ORIGINAL
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.config import ConfigError
from tts_assets.core.hub import MAIN, commit_of, from_hub
from tts_assets.core.metadata import Markdown, Metadata

MODEL_CARD = "README.md"
HUB_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json")
PICKLED = "pytorch_model.bin"
HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def identify(name: str, root: Path) -> dict[str, str]:
    """The identity of a codec, independent of its path.

    Digests of its files by name, or its name and commit on the hub (see ``core/hub.py``). Raises
    :class:`ConfigError` if ``name`` is neither.
    """
    path = root / name
    if path.is_dir():
        return digests(path)
    if path.is_file() and path.suffix in ORIGINAL:
        sizes = path.with_suffix(".json")
        return {file.suffix: sha256_file(file) for file in (path, sizes) if file.is_file()}
    if path.is_file() or not (found := HUB_NAME.fullmatch(name)):
        raise ConfigError(
            f"codec.checkpoint {path} is neither a folder nor a file that ends in one of "
            f"{ORIGINAL}, nor {name!r} a name on the hub, as HKUSTAudio/xcodec2-hf is"
        )
    return {"name": found[1], "revision": commit_of(found[1], found[2] or MAIN)}


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a codec or decoder, by file name."""
    return {file.name: sha256_file(file) for file in files_of(folder)}


def start_digests(folder: Path | None, key: str) -> dict[str, str]:
    """The digests of the folder that a training starts from; empty without one.

    Raises :class:`ConfigError`, which names the configuration key ``key``, if it does not exist.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ConfigError(f"{key}: there is no folder {folder}; name one that was published")
    return digests(folder)


def fetch(
    name: str, source: Mapping[str, str], root: Path, folder: Path, codebooks: int | None = None
) -> None:
    """Write the codec that :func:`identify` identified as ``source`` into ``folder``.

    An original checkpoint is converted. ``codebooks``: how many of several are used.
    """
    path = root / name
    if path.is_dir():
        for file in files_of(path):
            shutil.copyfile(file, folder / file.name)
    elif path.is_file():
        from tts_assets.codec.original import convert

        convert(path, folder)
    else:
        download(source["name"], source["revision"], folder)
    if codebooks is not None:
        (folder / CODEBOOKS_FILE).write_text(json.dumps({"codebooks": codebooks}) + "\n")
    if (folder / PICKLED).is_file() and not any(folder.glob("*.safetensors")):
        without_pickle(folder)


def files_of(folder: Path) -> list[Path]:
    """The files of a codec. The model card is not one: editing it must not retrain anything."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name != MODEL_CARD)


def download(name: str, revision: str, folder: Path) -> None:
    """Download the safetensors of one commit of a published model, but no code.

    SNAC is published without safetensors: its weights are downloaded as a pickle, see
    :func:`without_pickle`.
    """
    from huggingface_hub import snapshot_download

    from tts_assets.codec.backends import snac_sizes

    def get(*patterns: str) -> None:
        with from_hub(name):
            snapshot_download(
                name, revision=revision, local_dir=folder, allow_patterns=list(patterns)
            )

    get(*HUB_FILES)
    if not any(folder.glob("*.safetensors")) and snac_sizes(folder):
        get(PICKLED)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # bookkeeping of huggingface_hub


def without_pickle(folder: Path) -> None:
    """Replace the weights of a SNAC by safetensors. No code of the pickle is executed.

    Raises :class:`ConfigError` for another codec.
    """
    import torch
    from safetensors.torch import save_file

    from tts_assets.codec.backends import WEIGHTS_FILE, snac_sizes

    if not snac_sizes(folder):
        raise ConfigError(f"{folder / PICKLED} is a pickle: save the codec as safetensors")
    weights = torch.load(folder / PICKLED, map_location="cpu", weights_only=True)
    save_file({name: own.contiguous() for name, own in weights.items()}, folder / WEIGHTS_FILE)
    (folder / PICKLED).unlink()


def model_card(folder: Path) -> Metadata:
    """Metadata: the model card of a codec folder, if it has one."""
    card = folder / MODEL_CARD
    return {"model_card": Markdown(card.read_text())} if card.is_file() else {}
