"""Models by name or folder: what they are, and what goes wrong on the way from the Hugging Face
hub, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tts_assets.core.artifacts import sha256_file
from tts_assets.core.config import ConfigError, digest_of


def identity(model: str) -> str:
    """What ``model`` is, as far as this machine knows: of a folder the digest of its files, which
    another model in the same place does not have; of a name on the hub the name."""
    return model_digest(Path(model)) if model and Path(model).is_dir() else model


def model_digest(folder: Path) -> str:
    """What a model is, whatever its name: the digest of its files' names and bytes."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return digest_of({path.name: sha256_file(path) for path in files})


@contextmanager
def from_hub(name: str) -> Iterator[None]:
    """Around what fetches the model ``name``. Raises :class:`ConfigError` where the hub refuses it,
    does not know it or cannot be reached; errors of a folder are left as they are."""
    import httpx2  # what huggingface_hub speaks with
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
    """An error and what it came from; transformers hides the hub's behind an OSError."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
