"""Checks a signed report offline, with only the public key and the files, and says exactly what does not match."""

from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from core.report import exact
from core.report.destruction import check_destruction
from core.report.digest import file_digests, ignored_in, model_digest
from core.report.envelope import Verification, check_signature, opened
from core.report.keys import EvidenceError, public_key
from core.report.schema import Report
from core.report.sign import PREDICATE_TYPE, STATEMENT_TYPE, SUBJECT_NAME
from core.spec.job import digest_of

ENVELOPE_NAME: Final = "report.dsse.json"
_MOST_DIFFERENCES = 20


def verify_files(report: Path, model: Path | None, key: Path, destruction: Path | None = None) -> Verification:
    """Verify `report`, which is an envelope, or a plain report with its envelope `report.dsse.json` beside it, and with
    it, where given, the record of the destruction of its data.

    Raises EvidenceError or ModelError (exit code 2) where a file cannot be read as what it should be.
    """
    public_pem = _content(key)
    public_key(public_pem, key)  # named by its file, where it is none
    record = None if destruction is None else _content(destruction)
    content = _content(report)
    value = exact.read(content, str(report))
    if isinstance(value, dict) and "payload" in value and "signatures" in value:
        return verify(content, public_pem, model=model, destruction=record)
    envelope = report.parent / ENVELOPE_NAME
    if not envelope.is_file() or envelope.samefile(report):
        raise EvidenceError(f"{report} is not a signed envelope, and no {ENVELOPE_NAME} lies beside it.")
    return verify(_content(envelope), public_pem, report=content, model=model, destruction=record)


def verify(
    envelope: bytes,
    public_pem: bytes,
    *,
    report: bytes | None = None,
    model: Path | None = None,
    destruction: bytes | None = None,
) -> Verification:
    """Verify an envelope (JSON), and with it, where given, the plain report, the folder of the output model, and the
    record of the destruction of its data.

    Raises EvidenceError or ModelError (exit code 2) where one of them cannot be read as what it should be.
    """
    key = public_key(public_pem)
    signed = opened(envelope)
    result = Verification()
    check_signature(signed, key, result)
    if not result.ok:
        result.unchecked.append("the content: it proves nothing while the signature does not hold")
        return result
    statement = exact.read(signed.payload, "The signed statement")
    predicate = statement.get("predicate") if isinstance(statement, dict) else None
    _check_statement(statement, result)
    try:
        said = Report.model_validate(exact.plain(predicate))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = exact.shown(".".join(map(str, first["loc"])) or "predicate")
        result.failures.append(f"report: what was signed is no report that this Lethe knows: {where}: {first['msg']}")
        result.unchecked.append("the content: nothing could be compared with it")
        return result
    _check_report(said, statement, result)
    if report is not None:
        _check_plain(exact.read(report, "The plain report"), predicate, result)
    if model is not None:
        _check_model(said, model, result)
    else:
        result.unchecked.append("model: no folder was given, so no weights were compared with their digests")
    if destruction is not None:
        check_destruction(destruction, key, said, {"report.json": report, ENVELOPE_NAME: envelope}, result)
    return result


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read: {error.strerror}.") from None


def _check_statement(statement: Any, result: Verification) -> None:
    fields = statement if isinstance(statement, dict) else {}
    for name, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        found = fields.get(name)
        result.expect(
            found == expected,
            f"statement: {name} {expected}",
            f"statement: {name} {exact.shown(found)}, not {expected}",
        )


def _check_report(report: Report, statement: dict[str, Any], result: Verification) -> None:
    subject = [{"name": SUBJECT_NAME, "digest": {"sha256": report.output_model}}]
    result.expect(
        statement.get("subject") == subject,
        f"subject: the model {report.output_model}",
        f"subject: {exact.shown(statement.get('subject'))} is not the report's output model {report.output_model}",
    )
    files = model_digest(report.output_files)
    result.expect(
        files == report.output_model,
        f"files: the digests of {len(report.output_files)} files give that of the model",
        f"files: the digests listed give the model {files}, the report says {report.output_model}",
    )
    spec = digest_of(report.spec)
    result.expect(
        spec == report.spec_digest,
        f"spec: its digest is {spec}",
        f"spec: its digest is {spec}, the report says {report.spec_digest}",
    )


def _check_plain(found: Any, signed: Any, result: Verification) -> None:
    lines = list(exact.differences(found, signed))
    result.failures += [f"plain report: {line}" for line in lines[:_MOST_DIFFERENCES]]
    if len(lines) > _MOST_DIFFERENCES:
        result.failures.append(f"plain report: {len(lines) - _MOST_DIFFERENCES} further differences")
    if not lines:
        result.checked.append("plain report: says what was signed")


def _check_model(report: Report, folder: Path, result: Verification) -> None:
    found, signed = file_digests(folder), report.output_files
    for name in sorted(found.keys() | signed.keys()):
        if name not in found:
            result.failures.append(f"model: {exact.printable(name)} is missing")
        elif name not in signed:
            result.failures.append(
                f"model: {exact.printable(name)} is extra, it was not there when the report was signed"
            )
        else:
            result.expect(
                found[name] == signed[name],
                f"model: {exact.printable(name)}",
                f"model: {exact.printable(name)} was altered",
            )
    whole = model_digest(found)
    result.expect(
        whole == report.output_model, f"model: its digest is {whole}", f"model: its digest is {whole}, not as signed"
    )
    if left_out := ignored_in(folder):
        result.unchecked.append(f"model: {', '.join(left_out)}: git's own, no part of a model's digest")
