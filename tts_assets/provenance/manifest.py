"""C2PA manifests in audio files: which model made the speech, and who consented to its voice.

A manifest is signed with the key of the project (``keys.py``) and covers the bytes of the file: a
changed file no longer verifies. wav, mp3 and flac have a place for it; Ogg, ADTS and raw pcm do
not. It contains a random id, so the bytes of a file differ each time, not its samples. Everything
is verified offline; there is no time stamp of an authority. Source: C2PA Technical Specification
2.2, by ``c2pa-python``.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from tts_assets import __version__
from tts_assets.core.audio import IPTC
from tts_assets.core.config import Config, ConfigError
from tts_assets.corpora.config import VoiceConsent
from tts_assets.provenance.keys import Keys

SIGNED_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac"}
LABEL = "org.tts-assets.synthesis"  # of the assertion that holds an Origin
OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}


class Origin(Config):
    """Where synthesized speech comes from.

    ``content`` is the content digest of the serving model's artifact, empty if it was not
    published. ``consents`` has every corpus that the model, or one of its base recipes, was trained
    on.
    """

    model: str = Field(description="the asset of the serving model, such as serving/my_voice")
    content: str = ""
    version: str = Field(__version__, description="of this project")
    consents: dict[str, VoiceConsent] = Field(default_factory=dict, description="by corpus")


@dataclass(frozen=True)
class Signature:
    """What is signed about speech, and with which key."""

    origin: Origin
    keys: Keys

    def add(self, audio: bytes, name: str) -> bytes:
        """An audio file with the manifest; unchanged if the type ``name`` has no place for it."""
        return sign(audio, name, self.origin, self.keys) if name in SIGNED_TYPES else audio


@dataclass(frozen=True)
class Signed:
    """A manifest that was found in a file.

    ``problems``: codes of the C2PA specification for what does not verify; empty if the file is
    as it was signed. ``trusted``: the root that was given signed the certificate. ``signer`` is
    the organization that the certificate names. ``origin`` is None in files of other programs.
    """

    signer: str
    problems: tuple[str, ...]
    trusted: bool
    origin: Origin | None


def sign(audio: bytes, name: str, origin: Origin, keys: Keys) -> bytes:
    """The bytes of an audio file with a signed manifest. ``name`` is a key of SIGNED_TYPES.

    Raises :class:`ConfigError` if the key cannot sign.
    """
    import c2pa

    info = c2pa.C2paSignerInfo(b"es256", keys.chain, keys.key, None)
    result = io.BytesIO()
    try:
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(_manifest(origin)) as builder:
            builder.sign(signer, SIGNED_TYPES[name], io.BytesIO(audio), result)
    except c2pa.C2paError as error:
        raise ConfigError(f"{keys.folder}: the audio cannot be signed: {error}") from None
    return result.getvalue()


def _manifest(origin: Origin) -> dict[str, Any]:
    program = {"name": "tts-assets", "version": origin.version}
    created = {"action": "c2pa.created", "digitalSourceType": IPTC, "softwareAgent": program}
    return {
        "claim_generator_info": [program],
        "title": f"Synthetic speech by {origin.model}",
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": LABEL, "data": origin.model_dump(mode="json")},
        ],
    }


def read_manifest(path: Path, root: Path | None = None) -> Signed | None:
    """The manifest of an audio file; None if it has none.

    ``root``: the PEM file of the root certificate to trust. Raises :class:`ConfigError` for files
    of another type, unreadable files, and manifests of another form.
    """
    import c2pa

    name = path.suffix.lower().removeprefix(".")
    if name not in SIGNED_TYPES:
        raise ConfigError(f"{path}: manifests are read from {', '.join(SIGNED_TYPES)} only")
    try:
        settings: dict[str, Any] = {"verify": OFFLINE | {"verify_trust": True}}
        if root is not None:
            settings["trust"] = {"trust_anchors": root.read_text()}
        audio = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    try:
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader(SIGNED_TYPES[name], audio, context=context) as reader,
        ):
            return _signed(path, json.loads(reader.json()))
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        raise ConfigError(f"{path}: the manifest cannot be read: {error}") from None


def _signed(path: Path, found: dict[str, Any]) -> Signed:
    own = found["manifests"][found["active_manifest"]]
    codes = [status["code"] for status in found.get("validation_status", [])]
    untrusted = "signingCredential.untrusted"
    assertions = {one["label"]: one["data"] for one in own.get("assertions", [])}
    origin = assertions.get(LABEL)
    return Signed(
        signer=str(own.get("signature_info", {}).get("issuer", "unknown")),
        problems=tuple(code for code in codes if code != untrusted),
        trusted=untrusted not in codes,
        origin=None if origin is None else Origin.parse(origin, f"{path}: {LABEL}"),
    )
