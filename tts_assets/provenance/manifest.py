"""C2PA manifests in audio files, and the key that signs them.

A manifest says which model made the speech, and who consented to its voice. It is signed with the
key of the project and covers the bytes of the file: a changed file no longer verifies. wav, mp3 and
flac have a place for it; Ogg, ADTS and raw pcm do not. It contains a random id, so the bytes of a
file differ each time, not its samples. Everything is verified offline; there is no time stamp of an
authority. Source: C2PA Technical Specification 2.2, by ``c2pa-python``.

:func:`make_keys` writes a folder with a private key, its certificate, and the certificate of a root
that signed it. Others verify signatures with ``root.pem``. The private key of the root is not kept:
nothing else can be signed with it. The private key of the project is readable by its owner only,
and a ``.gitignore`` in the folder keeps all of it out of git. The certificates follow the
specification (section 14.5): ECDSA over P-256 with SHA-256, a certificate of an end entity with the
extended key usage ``emailProtection``, not signed by itself.
"""

from __future__ import annotations

import io
import json
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import Field

from tts_assets import __version__
from tts_assets.core.audio import IPTC
from tts_assets.core.config import Config, ConfigError
from tts_assets.corpora.config import VoiceConsent

KEYS_VARIABLE = "TTS_PROVENANCE_KEYS"  # environment: the folder of the keys
KEY_FILE, CHAIN_FILE, ROOT_FILE = "signing.key", "certificates.pem", "root.pem"
INSTALL = "pip install 'tts-assets[provenance]'"
VALID_DAYS = 5 * 365
USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
SIGNED_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac"}
LABEL = "org.tts-assets.synthesis"  # of the assertion that holds an Origin
OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}


@dataclass(frozen=True)
class Keys:
    """The signing key and its certificates, as PEM. The key is in no message and no repr."""

    folder: Path

    @property
    def key(self) -> bytes:
        """The private key. Raises :class:`ConfigError` if it is missing or others may read it."""
        path = self.folder / KEY_FILE
        if not path.is_file():
            raise ConfigError(
                f"{self.folder} holds no signing key: run `python -m tts_assets.provenance init "
                f"{self.folder} --organization NAME`, or unset {KEYS_VARIABLE}"
            )
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{path} is readable by others: run `chmod 600 {path}`")
        return path.read_bytes()

    @property
    def chain(self) -> bytes:
        """The certificate of the key and that of the root."""
        return (self.folder / CHAIN_FILE).read_bytes()


def keys_of_environment() -> Keys | None:
    """The keys in the folder that ``TTS_PROVENANCE_KEYS`` names; None if it is not set.

    Raises :class:`ConfigError` if the folder holds no usable key, or without the packages.
    """
    folder = os.environ.get(KEYS_VARIABLE)
    if not folder:
        return None
    keys = Keys(Path(folder))
    _ = keys.key
    try:
        import c2pa  # noqa: F401
    except ImportError:
        raise ConfigError(f"{KEYS_VARIABLE} is set, which needs c2pa-python: {INSTALL}") from None
    return keys


def make_keys(folder: Path, organization: str) -> Keys:
    """Write a new key with its certificates to ``folder``, which is created with mode 0700.

    ``organization`` is the name that readers of a manifest see as the signer. Raises
    :class:`ConfigError` if the folder already holds a key.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ConfigError(f"keys need the package cryptography: {INSTALL}") from None
    if (folder / KEY_FILE).exists():
        raise ConfigError(f"{folder} already holds a signing key: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / ".gitignore").write_text("*\n")
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root, certificate = certificates(organization, root_key, key)
    pem = serialization.Encoding.PEM
    (folder / ROOT_FILE).write_bytes(root.public_bytes(pem))
    (folder / CHAIN_FILE).write_bytes(certificate.public_bytes(pem) + root.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(folder / KEY_FILE, flags, 0o600), "wb") as file:
        file.write(private)
    return Keys(folder)


def certificates(organization: str, root_key: Any, key: Any) -> tuple[Any, Any]:
    """The certificate of the root and that of ``key``, which the root signs (X.509)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(common: str) -> x509.Name:
        parts = ((NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, common))
        return x509.Name([x509.NameAttribute(*part) for part in parts])

    def usage(*given: str) -> x509.KeyUsage:
        return x509.KeyUsage(**{one: one in given for one in USAGES})

    def certificate(common: str, public: Any, authority: bool) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        length = 0 if authority else None
        return (
            x509.CertificateBuilder(issuer_name=name("root"), subject_name=name(common))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))  # clocks differ
            .not_valid_after(now + timedelta(days=VALID_DAYS))
            .add_extension(x509.BasicConstraints(authority, length), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    by_root = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    emails = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    root = certificate("root", root_key.public_key(), True).add_extension(
        usage("key_cert_sign", "crl_sign"), critical=True
    )
    own = (
        certificate("speech synthesis", key.public_key(), False)
        .add_extension(usage("digital_signature"), critical=True)
        .add_extension(emails, critical=False)
        .add_extension(by_root, critical=False)
    )
    return root.sign(root_key, hashes.SHA256()), own.sign(root_key, hashes.SHA256())


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
