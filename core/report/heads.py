"""Heads of the audit log: where its chain ended at one time, signed with the key that signs reports."""

import base64
import binascii
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from core.report.keys import private_key


def sign_head(position: int, head: str, at: datetime, private_pem: bytes) -> str:
    """The signature, in base64: ECDSA over SHA-256. Raises EvidenceError where the key is none on P-256."""
    return base64.b64encode(private_key(private_pem).sign(_text(position, head, at), ECDSA(SHA256()))).decode()


def is_signed(position: int, head: str, at: datetime, signature: str, key: EllipticCurvePublicKey) -> bool:
    """Whether the signature is this key's, over exactly this head."""
    try:
        key.verify(base64.b64decode(signature, validate=True), _text(position, head, at), ECDSA(SHA256()))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _text(position: int, head: str, at: datetime) -> bytes:
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    return f"lethe audit head\nposition: {position}\nhash: {head}\nat: {moment}\n".encode()
