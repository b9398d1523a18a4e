"""Heads of the audit log: where its chain ended at one time, signed alone or in a report."""

import base64
import binascii
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from pydantic import ValidationError

from core.report import exact
from core.report.keys import EvidenceError, private_key
from core.report.schema import AuditHead, Report, Requested
from core.report.verify import verify


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


def told_by(envelope: bytes, public_pem: bytes | None) -> tuple[str, AuditHead]:
    """The id of the job that a signed report is of, and the log's end as the report has it.

    With a key the report is verified first. Raises EvidenceError where that fails, or the report has no such head.
    """
    checked = verify(envelope, public_pem) if public_pem is not None else None
    if checked is not None and not checked.ok:
        raise EvidenceError(f"The report does not match its signature: {'; '.join(checked.failures)}.")
    signed = exact.plain(exact.read(envelope, "The envelope"))
    try:
        statement = exact.plain(exact.read(base64.b64decode(signed["payload"]), "The signed statement"))
        request = Report.model_validate(statement["predicate"]).request
    except (KeyError, TypeError, ValueError, ValidationError):
        raise EvidenceError("This is no signed report that this Lethe knows.") from None
    if not isinstance(request, Requested) or not isinstance(request.audit_head, AuditHead):
        raise EvidenceError("The report tells nothing of an audit log: it was made without the service.")
    return request.job, request.audit_head


def _text(position: int, head: str, at: datetime) -> bytes:
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    return f"lethe audit head\nposition: {position}\nhash: {head}\nat: {moment}\n".encode()
