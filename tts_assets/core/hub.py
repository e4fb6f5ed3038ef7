"""Models from the Hugging Face hub or a folder: their commit, identity, and errors of downloads.

A name on the hub may have a revision: ``owner/name@revision``. Models are pinned to a commit. A
branch, or no revision, is resolved once: to the commit in the cache of the hub, else to the newest,
which is then recorded there, where all libraries look.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tts_assets.core.artifacts import atomic_write, sha256_file
from tts_assets.core.config import ConfigError, digest_of

# Its name and its revision; ../models is none, nor is a revision that leaves the cache's folder.
HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@((?!.*\.\.)\w[\w./-]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"


class HubModel(NamedTuple):
    """Arguments of ``from_pretrained``: a folder without a revision, or a name and its commit."""

    name: str
    revision: str | None


def identity(model: str) -> str:
    """The identity of ``model`` for fingerprints: the digest of a folder, or name and commit on the
    hub."""
    return model_digest(Path(model)) if model and Path(model).is_dir() else pinned(model)


def pinned(model: str) -> str:
    """``model`` with its commit on the hub, as ``owner/name@commit``; a folder or "" as it is.

    Raises :class:`ConfigError` as :func:`commit_of` does.
    """
    found = locate(model)
    return found.name if found.revision is None else f"{found.name}@{found.revision}"


def locate(model: str) -> HubModel:
    """Where to load ``model`` from. Raises :class:`ConfigError` as :func:`commit_of` does."""
    if not model or Path(model).exists():
        return HubModel(model, None)
    name, _, revision = model.partition("@")
    return HubModel(name, commit_of(name, revision or MAIN))


def commit_of(name: str, revision: str = MAIN) -> str:
    """The commit of a branch or tag of a model; a commit as it is.

    Needs the network unless the cache of the hub knows the commit. Raises :class:`ConfigError` with
    a remedy.
    """
    if COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    with from_hub(name):
        folder = repo_folder_name(repo_id=name, repo_type="model")
        known = Path(constants.HF_HUB_CACHE) / folder / "refs" / revision
        if known.is_file():
            return known.read_text().strip()
        commit = str(HfApi().model_info(name, revision=revision).sha)
    with suppress(OSError), atomic_write(known) as aside:  # a cache that is only readable
        aside.write_text(commit)
    return commit


def snapshot(model: str, patterns: Sequence[str]) -> Path:
    """The folder of a model of the hub in the hub's cache, with the files of these patterns.

    Raises :class:`ConfigError` as :func:`commit_of` does.
    """
    from huggingface_hub import snapshot_download

    name, revision = locate(model)
    with from_hub(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


def model_digest(folder: Path) -> str:
    """A digest of the names and bytes of the files directly in ``folder``."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return digest_of({path.name: sha256_file(path) for path in files})


@contextmanager
def from_hub(name: str) -> Iterator[None]:
    """Wrap code that loads the model ``name``.

    Raises :class:`ConfigError` with a remedy if the hub denies access, does not know the model or
    is unreachable. Errors of a local folder are not changed.
    """
    import httpx2  # the HTTP client of huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except (OSError, httpx2.HTTPError, HfHubHTTPError) as error:
        if Path(name).exists():
            raise
        causes = list(chain(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            what = "its owner gives access on request"
        elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            what = "the hub has no such model, or it is private"
        else:
            what = "it cannot be fetched"
        raise ConfigError(
            f"{name}: {what}; ask for access at https://huggingface.co/{name} and type "
            f"`hf auth login`, or, offline, name a folder that holds the model ({error})"
        ) from error


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes. transformers wraps errors of the hub in an OSError."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
