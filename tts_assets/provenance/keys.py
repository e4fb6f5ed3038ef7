"""The key of a project that signs C2PA manifests.

:func:`make_keys` writes a folder with a private key, its certificate, and the certificate of a root
that signed it. Others verify signatures with ``root.pem``. The private key of the root is not kept:
nothing else can be signed with it. The private key of the project is readable by its owner only,
and a ``.gitignore`` in the folder keeps all of it out of git.

The certificates follow the C2PA specification (2.2, section 14.5): ECDSA over P-256 with SHA-256, a
certificate of an end entity with the extended key usage ``emailProtection``, not signed by itself.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tts_assets.core.config import ConfigError

KEYS_VARIABLE = "TTS_PROVENANCE_KEYS"  # environment: the folder of the keys
KEY_FILE, CHAIN_FILE, ROOT_FILE = "signing.key", "certificates.pem", "root.pem"
INSTALL = "pip install 'tts-assets[provenance]'"
VALID_DAYS = 5 * 365
USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


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
