"""The signing key: ECDSA on P-256, kept as PEM, known by the SHA-256 of its public half."""

import hashlib
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from core.errors import LetheError


class EvidenceError(LetheError):
    """A report, its envelope or a key cannot be read as what it should be."""

    code = "unreadable_evidence"
    exit_code = 2


def new_key() -> bytes:
    """A new private key, as unencrypted PKCS#8 PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises EvidenceError where `pem` is no unencrypted private key on P-256."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise EvidenceError("The private key is not an unencrypted PEM file.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceError("The private key is not an ECDSA key on the curve P-256.")
    return key


def public_key(pem: bytes, file: Path | None = None) -> ec.EllipticCurvePublicKey:
    """Raises EvidenceError where `pem`, read from `file`, is no public key on P-256."""
    called = f"The public key {file}" if file else "The public key"
    if _PRIVATE.search(pem):
        raise EvidenceError(
            f"{called} is a private key, which whoever checks must not have. Its public half is needed: "
            "`openssl pkey -in signing.pem -pubout` writes it."
        )
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise EvidenceError(
            f"{called} is not a PEM file of one: such a file begins with -----BEGIN PUBLIC KEY-----."
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceError(f"{called} is not an ECDSA key on the curve P-256.")
    return key


_PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def public_pem(private_pem: bytes) -> bytes:
    """The public half of a private key. Raises EvidenceError as `private_key` does."""
    return private_key(private_pem).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's DER SubjectPublicKeyInfo, as 64 hex digits."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def public_path(path: Path) -> Path:
    """Where the public half of the private key at `path` lies: `signing.pem` -> `signing.pub.pem`."""
    return path.with_suffix(".pub.pem")


def load_key(path: Path) -> bytes:
    """The private key (PEM) at `path`. Raises EvidenceError where there is none that can be used."""
    try:
        private = path.read_bytes()
    except OSError as error:
        raise EvidenceError(f"The signing key {path} cannot be used: {error.strerror}.") from None
    public_pem(private)
    return private


def load_or_create_key(path: Path) -> bytes:
    """The private key (PEM) at `path`, made there with mode 0600 if there is none; its public half is put beside it.

    Processes that start at once end with the same key. Raises EvidenceError where the file cannot be read, written or
    understood.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(path, new_key())
        private = path.read_bytes()
        public = public_pem(private)
        # A mounted secret lies on a read-only disk, and its public half can be had from it at any time.
        if os.access(path.parent, os.W_OK):
            _replace(public_path(path), public)
    except OSError as error:
        raise EvidenceError(f"The signing key {path} cannot be used: {error.strerror}.") from None
    return private


def _create(path: Path, content: bytes) -> None:
    """Whoever is first wins, and nobody ever sees half a file: a link is made whole or not at all."""
    whole = _written_beside(path, content, 0o600)
    try:
        with suppress(FileExistsError):
            os.link(whole, path)
    finally:
        whole.unlink()


def _replace(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        _written_beside(path, content, 0o644).replace(path)


def _written_beside(path: Path, content: bytes, mode: int) -> Path:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return beside
