"""Which set of a report a proof leads to."""

from pathlib import Path

from pydantic import ValidationError

from core.report import exact
from core.report.envelope import Verification, check_signature, opened
from core.report.keys import EvidenceError, public_key
from core.report.merkle import Proof
from core.report.schema import Absent, DataUsed, Report


def in_report(proof: Proof, file: Path, signed_by: Path | None = None) -> tuple[str | None, str]:
    """The name of a set of which the job used the proof's record, or None, and a sentence.

    With `signed_by`, a public key, the report must be an envelope that this key has signed.

    Raises EvidenceError where a file cannot be read as what it should be.
    """
    try:
        content = file.read_bytes()
        pem = None if signed_by is None else signed_by.read_bytes()
    except OSError as error:
        raise EvidenceError(f"{error.filename} cannot be read: {error.strerror}.") from None
    value = exact.read(content, str(file))
    if isinstance(value, dict) and "payload" in value:
        envelope = opened(content)
        if pem is not None:
            found = Verification()
            check_signature(envelope, public_key(pem, signed_by), found)
            if not found.ok:
                return None, found.failures[0]
        statement = exact.read(envelope.payload, "The signed statement")
        value = statement.get("predicate") if isinstance(statement, dict) else None
    elif pem is not None:
        raise EvidenceError(f"{file} is not signed; give the envelope, report.dsse.json.")
    try:
        report = Report.model_validate(exact.plain(value))
    except ValidationError:
        raise EvidenceError(f"{file} is no report that this Lethe knows.") from None
    sets = {"forget": report.forget, "retain": report.retain, **report.beside}
    led_to = {name: used for name, used in sets.items() if isinstance(used, DataUsed) and used.commitment == proof.root}
    reason = None
    for name, used in led_to.items():
        reason = _unused(proof, name, used)
        if reason is None:
            signed = "" if pem is not None else " Whether the report is genuine says `lethe verify`."
            return name, f"The record was in the set {name} that the report commits to, and the job used it.{signed}"
    return None, reason or "The record is in a set that this report does not speak of."


def _unused(proof: Proof, name: str, used: DataUsed) -> str | None:
    """Why nobody can say that the job used the proof's record as one of this set; None where it did."""
    if isinstance(used.committed, Absent):
        return f"It cannot be told: of how many records the set {name} is, the report does not say."
    # Along the same path a tree of another size would have the record at another place.
    if proof.rows != used.committed:
        return f"The proof is of a set of {proof.rows} records, and the set {name} is of {used.committed}: altered."
    if used.uses(proof.index):
        return None
    place = f"The upload of the set {name} holds the record at place {proof.index} (from 0)"
    if proof.index in used.too_long:
        return f"{place}, where it did not fit into data.max_length: the job left it out."
    return f"{place}, which is none of the {used.records} of {used.committed} records that the job took of it."
