"""Where a codec that was trained elsewhere comes from: folder, hub, or original checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tts_assets.artifacts import sha256_file
from tts_assets.hub import from_hub

MODEL_CARD = "README.md"
HUB_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", "README.md")
ORIGINAL = (".ckpt", ".safetensors")


def identify(name: str, revision: str | None, root: Path) -> dict[str, str]:
    """What a codec is, whatever its path: digests of its files, or its name and commit on the hub
    (the newest, without ``revision``; that needs the network)."""
    path = root / name
    if path.is_dir():
        return {file.name: sha256_file(file) for file in files_of(path)}
    if path.is_file() and path.suffix in ORIGINAL:
        sizes = path.with_suffix(".json")
        return {file.suffix: sha256_file(file) for file in (path, sizes) if file.is_file()}
    return {"name": name, "revision": revision or newest_revision(name)}


def fetch(name: str, source: Mapping[str, str], root: Path, folder: Path) -> None:
    """Write the codec folder of what :func:`identify` found; an original is converted."""
    path = root / name
    if path.is_dir():
        for file in files_of(path):
            shutil.copyfile(file, folder / file.name)
    elif path.is_file():
        from tts_assets.codec.original import convert

        convert(path, folder)
    else:
        download(name, source["revision"], folder)


def files_of(folder: Path) -> list[Path]:
    """The files that a codec consists of. Its card is none: other words train nothing again."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name != MODEL_CARD)


def newest_revision(name: str) -> str:
    """The commit that the main branch of a published model is at; needs the network."""
    from huggingface_hub import HfApi

    with from_hub(name):
        return str(HfApi().model_info(name).sha)


def download(name: str, revision: str, folder: Path) -> None:
    """The safetensors of one commit of a published model; code and pickles stay there."""
    from huggingface_hub import snapshot_download

    with from_hub(name):
        snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=list(HUB_FILES))
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the downloader's own notes
