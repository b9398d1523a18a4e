"""A signed envelope (DSSE) opened and checked, whatever its statement is about."""

import base64
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError

from core.report import exact
from core.report.keys import EvidenceError, key_id
from core.report.sign import PAYLOAD_TYPE, dsse_key


@dataclass
class Verification:
    """A line for each thing that was compared and matches, was compared and does not match, or was not compared."""

    checked: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that was compared matches."""
        return not self.failures

    @property
    def exit_code(self) -> int:
        """0 where everything that was compared matches, 1 where something does not."""
        return 0 if self.ok else 1

    def expect(self, holds: bool, line: str, failure: str) -> None:
        """Note one comparison."""
        if holds:
            self.checked.append(line)
        else:
            self.failures.append(failure)


class _Signature(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    keyid: str
    sig: str


class _Envelope(BaseModel):
    # An unknown field would be a place to hide what nobody signed.
    model_config = ConfigDict(extra="forbid", strict=True)
    payload: str
    payloadType: str
    signatures: list[_Signature] = Field(min_length=1)


def opened(content: bytes) -> Envelope:
    """Raises EvidenceError where this is no DSSE envelope."""
    try:
        form = _Envelope.model_validate(exact.read(content, "The envelope"))
        for text in (form.payload, *(signature.sig for signature in form.signatures)):
            # Base64 has several spellings for the same bytes; the others would be altered bytes that nobody finds.
            if base64.b64encode(base64.b64decode(text, validate=True)).decode() != text:
                raise ValueError("a value is not canonical base64")
        return Envelope.from_dict(form.model_dump())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = exact.shown(".".join(map(str, first["loc"])))
        raise EvidenceError(f"The envelope is not a DSSE envelope: {where}: {first['msg']}.") from None
    except ValueError as error:
        raise EvidenceError(f"The envelope is not a DSSE envelope: {error}.") from None


def check_signature(signed: Envelope, key: EllipticCurvePublicKey, result: Verification) -> None:
    """Note whether this key has signed it."""
    own = key_id(key)
    others = sorted(exact.shown(other) for other in signed.signatures if other != own)
    if own not in signed.signatures:
        result.failures.append(f"signature: the key {own} has not signed this; the envelope names {', '.join(others)}")
        return
    try:
        signed.verify([dsse_key(key)], threshold=1)
        result.checked.append(f"signature: made by the key {own}")
    except VerificationError:
        result.failures.append(f"signature: not that of the key {own} over this content; one of the two was altered")
    result.unchecked += [f"signature: that of the key {other}, which was not given" for other in others]
    result.expect(
        signed.payload_type == PAYLOAD_TYPE,
        f"payload type: {PAYLOAD_TYPE}",
        f"payload type: {exact.shown(signed.payload_type)}, expected {PAYLOAD_TYPE}",
    )
