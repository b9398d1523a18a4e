"""The destruction record: a second signed statement, about a job's report, that says which keys were destroyed.

Its subjects are the files of the report; nobody can put it beside another one.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from pydantic import ValidationError

from core.report import exact
from core.report.envelope import Verification, check_signature, opened
from core.report.schema import Absent, Part, Report, Sha256
from core.report.sign import STATEMENT_TYPE, sign_statement

VERSION: Final = "1"
PREDICATE_TYPE: Final = f"urn:lethe:destruction:v{VERSION}"


class DestroyedSet(Part):
    """A set whose key was destroyed, by its name in the request and its commitment. Time as in a report."""

    name: str
    commitment: Sha256
    destroyed_at: str


class Destruction(Part):
    """What of a job's data was destroyed. Records, and whatever was derived from them, were kept under these keys only.

    `by` is who did it, as the audit log names them; `why` is that the time was up, or that somebody asked. `own_key`
    tells of the key of a job whose forget set is no upload. `kept` names sets that other jobs still need.
    """

    version: Literal["1"] = VERSION
    job: str
    why: Literal["retention", "request"]
    by: str
    sets: list[DestroyedSet]
    own_key: bool
    kept: list[str]
    recorded_at: str


def sign_destruction(record: Destruction, report: Mapping[str, str], private_pem: bytes) -> bytes:
    """The record as a signed envelope (JSON); `report` maps the names of the report's files to their SHA-256."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(report.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": record.model_dump(mode="json"),
    }
    return sign_statement(statement, private_pem)


def check_destruction(
    content: bytes,
    key: EllipticCurvePublicKey,
    report: Report,
    files: Mapping[str, bytes | None],
    result: Verification,
) -> None:
    """Note whether this record is signed, and is about this report, whose `files` are given by name.

    Raises EvidenceError where it is no envelope.
    """
    signed, own = opened(content), Verification()
    check_signature(signed, key, own)
    if own.ok:
        _check_statement(exact.read(signed.payload, "The destruction record"), report, files, own)
    for name in ("checked", "failures", "unchecked"):
        getattr(result, name).extend(f"destruction: {line}" for line in getattr(own, name))


def _check_statement(statement: Any, report: Report, files: Mapping[str, bytes | None], result: Verification) -> None:
    fields = statement if isinstance(statement, dict) else {}
    for name, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        found = fields.get(name)
        result.expect(found == expected, f"{name} {expected}", f"{name} {exact.shown(found)}, not {expected}")
    try:
        record = Destruction.model_validate(exact.plain(fields.get("predicate")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = exact.shown(".".join(map(str, first["loc"])) or "predicate")
        result.failures.append(f"what was signed is no record that this Lethe knows: {where}: {first['msg']}")
        return
    subject = _digests(fields.get("subject"))
    for name, file in files.items():
        if file is None:
            continue
        digest = hashlib.sha256(file).hexdigest()
        result.expect(
            subject.get(name) == digest,
            f"is about {name} with the digest {digest}",
            f"is about {name} with the digest {exact.shown(subject.get(name))}, not {digest}: of another report",
        )
    if not isinstance(report.request, Absent):
        result.expect(
            record.job == report.request.job,
            f"of job {record.job}",
            f"of job {exact.shown(record.job)}, the report is of {report.request.job}",
        )
    _check_sets(record, report, result)


def _check_sets(record: Destruction, report: Report, result: Verification) -> None:
    used = {"forget": report.forget, "retain": report.retain, **report.beside}
    for destroyed in record.sets:
        part = used.get(destroyed.name)
        commitment = None if part is None or isinstance(part, Absent) else part.commitment
        result.expect(
            commitment == destroyed.commitment,
            f"the key of {destroyed.name}, whose commitment is {destroyed.commitment}, was destroyed at "
            f"{destroyed.destroyed_at}",
            f"{exact.shown(destroyed.name)} has the commitment {destroyed.commitment}, not that of the report",
        )
    if record.own_key:
        result.checked.append("the job's own key was destroyed")
    if record.kept:
        kept = ", ".join(map(exact.printable, record.kept))
        result.unchecked.append(f"{kept}: not destroyed yet, other jobs need it")


def _digests(subject: Any) -> dict[str, str]:
    entries = subject if isinstance(subject, list) else []
    found = {}
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("digest"), dict):
            found[str(entry.get("name"))] = str(entry["digest"].get("sha256"))
    return found
