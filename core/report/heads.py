"""Heads of the audit log: where its chain ended at one time, signed alone or in a report."""

import base64
import binascii
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from pydantic import ValidationError

from core.report import exact
from core.report.envelope import opened
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


def told_by(envelope: bytes, public_pem: bytes | None) -> tuple[str, AuditHead, list[str]]:
    """The id of the job that a signed report is of, the log's end as the report has it, and, where a key is given, what
    of the report does not match: the head is worth nothing then.

    Raises EvidenceError where it is no signed report, or has no such head.
    """
    signed = opened(envelope)
    try:
        statement = exact.plain(exact.read(signed.payload, "The signed statement"))
        request = Report.model_validate(statement["predicate"]).request
    except (KeyError, TypeError, ValidationError):
        raise EvidenceError("This is no signed report that this Lethe knows.") from None
    if not isinstance(request, Requested) or not isinstance(request.audit_head, AuditHead):
        raise EvidenceError("The report tells nothing of an audit log: it was made without the service.")
    failures = [] if public_pem is None else verify(envelope, public_pem).failures
    return request.job, request.audit_head, failures


def _text(position: int, head: str, at: datetime) -> bytes:
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    return f"lethe audit head\nposition: {position}\nhash: {head}\nat: {moment}\n".encode()
