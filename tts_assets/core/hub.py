"""Models from the Hugging Face hub or a folder: their identity, and errors of downloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tts_assets.core.artifacts import sha256_file
from tts_assets.core.config import ConfigError, digest_of


def identity(model: str) -> str:
    """The identity of ``model`` for fingerprints: the digest of a folder, or the name on the
    hub."""
    return model_digest(Path(model)) if model and Path(model).is_dir() else model


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
