"""Which set of a report a proof leads to."""

from pathlib import Path

from pydantic import ValidationError

from core.report import exact
from core.report.envelope import Verification, check_signature, opened
from core.report.keys import EvidenceError, public_key
from core.report.merkle import Proof
from core.report.schema import Absent, Report


def in_report(proof: Proof, file: Path, signed_by: Path | None = None) -> tuple[str | None, str]:
    """The name of the set whose commitment is the proof's root, or None, and a sentence.

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
            check_signature(envelope, public_key(pem), found)
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
    for name, used in sets.items():
        if isinstance(used, Absent) or used.commitment != proof.root:
            continue
        if proof.index >= used.rows:
            return None, f"The record is in the set {name}, but the job used only its first {used.rows} records."
        signed = "" if pem is not None else " Whether the report is genuine says `lethe verify`."
        return name, f"The record was in the set {name} that the report commits to.{signed}"
    return None, "The record is in a set that this report does not speak of."
