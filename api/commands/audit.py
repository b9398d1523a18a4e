"""`lethe audit`: the log, and whether it is still what was written. It reads the service's database itself, so that it
need not believe the service."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from api.commands.asked import AsJson, Most
from api.commands.books import opened

if TYPE_CHECKING:
    from api.store.chain_check import Claim, Finding, Verified

app = typer.Typer(help="The audit log: list, verify.", no_args_is_help=True)


@app.command("list")
def listing(
    subject: Annotated[str | None, typer.Option(help="the id of what something was done to")] = None,
    actor: Annotated[str | None, typer.Option(help="who did it: a principal's id, worker:..., cli, ...")] = None,
    action: Annotated[str | None, typer.Option(help="such as job.approved, access.refused")] = None,
    limit: Most = 50,
    as_json: AsJson = False,
) -> None:
    """Entries, the newest first. With --json one document a line."""
    from api.store import audit
    from api.store.settings import DatabaseSettings
    from core.spec.base import nearest

    with opened(DatabaseSettings) as (database, _), database.reading() as session:
        entries, _more = audit.page(session, subject=subject, actor=actor, action=action, limit=limit)
        known = [] if entries or action is None else audit.actions(session)
    if not entries:
        meant = nearest(action, known) if action is not None and known and action not in known else ""
        print(f"There are none.{meant}", file=sys.stderr)
    for entry in entries:
        told = {name: value for name, value in vars(entry).items() if not name.startswith("_")}
        told["at"] = entry.at.isoformat(timespec="milliseconds")
        if as_json:
            print(json.dumps(told))
        else:
            place = "-" if entry.position is None else entry.position
            print(place, told["at"], entry.actor, entry.action, entry.subject, json.dumps(entry.facts), sep="  ")


@app.command("verify")
def verify(
    key: Annotated[
        Path | None, typer.Option(help="public key (PEM) of the workers: heads must be signed by it")
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(help="a signed report; the log must hold what it did then. Several may be given"),
    ] = None,
    as_json: AsJson = False,
) -> NoReturn:
    """Recompute the log's chain. Exit 0: all matches; 1: something does not; 2: something cannot be read.

    Without --key nobody can tell a log that was made anew, heads and all, by someone who has the database.
    """
    from api.store import chain_check
    from api.store.settings import DatabaseSettings
    from core.errors import LetheError

    try:
        signed = _signed_by(key) if key else None
        claims, false = _claims(report or [], key)
        with opened(DatabaseSettings) as (database, _), database.snapshot() as session:
            found = chain_check.verify(session, claims=claims, signed=signed)
        for finding in false:
            found.add(finding)
    except LetheError as error:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "error": error.as_dict()}, indent=2))
        sys.exit(2)
    if as_json:
        shown = {**vars(found), "ok": found.ok, "head": vars(found.head)}
        print(json.dumps({**shown, "findings": [vars(finding) for finding in found.findings]}, indent=2))
    else:
        _print(found, claims, signed is not None)
    sys.exit(0 if found.ok else 1)


def _print(found: "Verified", claims: "list[Claim]", checked: bool) -> None:
    print(f"ok     {found.entries} entries read; the last has the hash {found.head.hash}")
    print(f"{'ok' if found.ok else '--':<7}{found.heads} heads and {len(claims)} reports compared")
    if (found.heads or claims) and not checked:
        print("--     the signatures of heads and reports: not checked, no --key was given")
    if found.unsealed:
        print(f"--     {found.unsealed} entries are not in the chain yet")
    if found.overdue:
        print(
            f"--     {found.overdue} of them for over ten minutes, from entry {found.overdue_first} on: no worker looks"
        )
    for finding in found.findings:
        print(f"FAILED {finding.message}")
    if found.found > len(found.findings):
        print(f"FAILED {found.found - len(found.findings)} more.")
    print("The audit log matches." if found.ok else "The audit log does not match.")


def _signed_by(path: Path) -> Any:
    from core.report.heads import is_signed
    from core.report.keys import public_key

    key = public_key(_read(path), path)
    return lambda head: is_signed(head.position, head.hash, head.at, head.signature, key)


def _claims(reports: list[Path], key: Path | None) -> "tuple[list[Claim], list[Finding]]":
    """What the reports say of the log, and a finding of each that the key has not signed so."""
    from api.store.chain_check import Claim, Finding
    from core.report.heads import told_by
    from core.report.keys import EvidenceError

    claims, false = [], []
    pem = _read(key) if key else None
    for path in reports:
        content = _read(path)
        try:
            job, head, failures = told_by(content, pem)
        except EvidenceError as error:
            raise EvidenceError(f"{path}: {error.message} --report takes report.dsse.json.") from None
        if failures:
            said = f"{path} is not what was signed: {'; '.join(failures)}."
            false.append(Finding("signature", head.position, None, said))
        else:
            claims.append(Claim(head.position, head.hash, f"the report of {job}"))
    return claims, false


def _read(path: Path) -> bytes:
    from core.report.keys import EvidenceError

    try:
        return path.read_bytes()
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read: {error.strerror}.") from None
