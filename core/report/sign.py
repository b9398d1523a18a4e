"""The signed form of a report: an in-toto Statement v1 about the output model, in a DSSE envelope, ECDSA on P-256.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://github.com/secure-systems-lab/dsse
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]  # exported without saying so

from core.report.keys import key_id, load_or_create_key, new_key, private_key, public_pem
from core.report.schema import VERSION, Report

__all__ = ["load_or_create_key", "new_key", "public_pem", "sign"]

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = f"urn:lethe:report:v{VERSION}"
# Folders are copied and renamed, so a name would say nothing that lasts; the digest says which model is meant.
SUBJECT_NAME: Final = "model"


def sign(report: Report, private_pem: bytes) -> bytes:
    """The report as a signed envelope (JSON). Raises EvidenceError where the key is none on P-256."""
    return sign_statement(statement(report), private_pem)


def sign_statement(statement: Mapping[str, Any], private_pem: bytes) -> bytes:
    """An in-toto statement as a signed envelope (JSON). Raises EvidenceError where the key is none on P-256."""
    key = private_key(private_pem)
    signer = CryptoSigner(key, dsse_key(key.public_key()))
    envelope = Envelope(canonical(statement), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=1).encode() + b"\n"


def dsse_key(key: EllipticCurvePublicKey) -> SSlibKey:
    """The public key as the envelope's library wants it, under our key id."""
    return SSlibKey.from_crypto(key, keyid=key_id(key))


def statement(report: Report) -> dict[str, Any]:
    """The statement whose subject is the report's output model and whose predicate is the report."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": SUBJECT_NAME, "digest": {"sha256": report.output_model}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": report.model_dump(mode="json"),
    }


def canonical(value: Any) -> bytes:
    """JSON in ASCII with sorted keys and no spaces: two values give the same bytes only if they are equal, types too.

    Raises ValueError for NaN and infinities.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
