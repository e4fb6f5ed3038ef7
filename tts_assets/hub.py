"""Models of the Hugging Face hub: what goes wrong on the way, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tts_assets.config import ConfigError


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
