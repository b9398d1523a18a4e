"""Entering jobs: any number of requests in one transaction, each judged by itself.

A statement serves all of them, so that many requests at once cost little more than one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from api.store import aliases, audit, batches, datasets, duplicates, models, outbox, references
from api.store import due as dates
from api.store.columns import INSERT
from api.store.errors import IdempotencyMismatch
from api.store.ids import new_id
from api.store.lookup import storable
from api.store.records import AuditEntry, Event
from api.store.session import now
from api.store.tables import Dataset, Job, JobDataset, Model
from api.store.turn import PRIORITIES
from core.errors import LetheError, Problem, SpecError
from core.spec.job import JobSpec


@dataclass(frozen=True)
class Request:
    """What is to become a job, and who asks. `body_digest` tells bodies apart under one Idempotency-Key."""

    spec: JobSpec
    key_id: str
    principal_id: str
    body_digest: str
    idempotency_key: str | None = None
    request_id: str | None = None
    needs_approval: bool = False


Entered = tuple[Job, bool]


def enter(session: Session, requests: Sequence[Request]) -> list[Entered | LetheError]:
    """For each request its job, and True if it is new; or what is wrong with it, as `jobs.create` raises it.

    New jobs are not the session's own: what is changed in them is not written.
    """
    moment = now(session)
    checked = check(session, [request.spec for request in requests], moment)
    warned = duplicates.warnings(session, [spec for spec in checked if not isinstance(spec, LetheError)])
    rows: dict[int, dict[str, Any]] = {}
    for i, (request, spec) in enumerate(zip(requests, checked, strict=True)):
        if not isinstance(spec, LetheError):
            rows[i] = _row(request, spec, warned[len(rows)], moment)
    new = _insert(session, list(rows.values()))
    _follow(session, [row for row in rows.values() if row["id"] in new], moment)
    answers: list[Entered | LetheError] = []
    for i, (request, spec) in enumerate(zip(requests, checked, strict=True)):
        if isinstance(spec, LetheError):
            answers.append(spec)
        elif rows[i]["id"] in new:
            answers.append((Job(**rows[i]), True))
        else:
            answers.append(_faster(session, request))
    return answers


def check(session: Session, specs: Sequence[JobSpec], moment: datetime) -> list[dict[str, Any] | SpecError]:
    """Each spec as it is stored, or what of it the service cannot carry out.

    What they name is neither destroyed nor deleted until this transaction ends.
    """
    resolved = [spec.model_dump(mode="json") for spec in specs]
    kept = datasets.keep(session, {upload for spec in resolved for upload in references.uploads(spec).values()})
    named = {model["id"] for spec in resolved for model in references.models(spec).values() if "id" in model}
    held = models.hold(session, named)
    answers: list[dict[str, Any] | SpecError] = []
    for spec, stored in zip(specs, resolved, strict=True):
        try:
            storable(spec.reference, "reference")
            dates.check(spec.received_at, moment)
            if problems := list(_unknown(session, stored, kept, held)):
                raise SpecError(problems)
        except SpecError as error:
            answers.append(error)
        else:
            answers.append(stored)
    return answers


def earlier(session: Session, *, principal_id: str, idempotency_key: str | None, body_digest: str) -> Job | None:
    """The job that this principal already made with this `idempotency_key`, by whichever key of theirs.

    Raises IdempotencyMismatch for another body.
    """
    if storable(idempotency_key, "Idempotency-Key") is None:
        return None
    query = select(Job).where(Job.principal_id == principal_id, Job.idempotency_key == idempotency_key)
    found = session.scalars(query).one_or_none()
    if found is not None and found.body_digest != body_digest:
        raise IdempotencyMismatch(
            f"Idempotency-Key {idempotency_key!r} was used for job {found.id} with another body. "
            "Use a new key for a new request.",
            param="Idempotency-Key",
        )
    return found


def _faster(session: Session, request: Request) -> Entered | LetheError:
    """The job of somebody with the same Idempotency-Key who has committed by now, or stands before in this turn."""
    try:
        found = earlier(
            session,
            principal_id=request.principal_id,
            idempotency_key=request.idempotency_key,
            body_digest=request.body_digest,
        )
    except IdempotencyMismatch as error:
        return error
    assert found is not None
    return found, False


def _row(request: Request, spec: dict[str, Any], warnings: list[str], moment: datetime) -> dict[str, Any]:
    """All columns of the job."""
    received = request.spec.received_at or moment
    uploads, model = references.uploads(spec), references.models(spec)["model"]
    asked = {
        "model_id": model.get("id"),
        "alias": model.get("alias"),
        "forget_id": uploads.get("forget"),
        "retain_id": uploads.get("retain"),
        "batch": batches.in_common(spec),
        "spec": spec,
        "spec_digest": request.spec.digest(),
        "reason": request.spec.reason,
        "reference": request.spec.reference,
        "rank": PRIORITIES.index(request.spec.priority),
        "received_at": received,
        "due_at": dates.of(received),
        "warnings": warnings,
        "key_id": request.key_id,
        "principal_id": request.principal_id,
        "request_id": request.request_id,
        "idempotency_key": request.idempotency_key,
        "body_digest": request.body_digest,
    }
    begin: dict[str, Any] = {
        "id": new_id("job"),
        "status": "awaiting_approval" if request.needs_approval else "queued",
        "attempt": 0,
        "counted": 0,
        "progress": {},
        "cancel_requested": False,
        "created_at": moment,
        "queued_at": moment,
        "rung_at": moment,
    }
    return asked | begin


def _insert(session: Session, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Ids of the rows that were entered: none of those with whose Idempotency-Key somebody was faster."""
    if not rows:
        return set()
    entered = INSERT[session.get_bind().dialect.name](Job.__table__).on_conflict_do_nothing()
    return set(session.connection().execute(entered.returning(Job.__table__.c.id), list(rows)).scalars())


def _follow(session: Session, rows: Sequence[Mapping[str, Any]], moment: datetime) -> None:
    """What is written with every new job: its sets, its first event, an entry in the audit log, messages."""
    if not rows:
        return
    links = [
        {"job_id": row["id"], "role": role, "dataset_id": upload}
        for row in rows
        for role, upload in references.uploads(row["spec"]).items()
    ]
    if links:
        session.execute(insert(JobDataset), links)
    told = {"from": None}
    session.execute(
        insert(Event),
        [
            {"job_id": row["id"], "attempt": 0, "kind": "status", "data": told | {"to": row["status"]}, "at": moment}
            for row in rows
        ],
    )
    session.execute(insert(AuditEntry), [_entry(row, moment) for row in rows])
    heard = {(row["status"], row["principal_id"]) for row in rows}
    heard = {pair for pair in heard if outbox.listening(session, f"job.{pair[0]}", pair[1])}
    for row in rows:
        if (row["status"], row["principal_id"]) in heard:
            outbox.tell_of_job(session, Job(**row))


def _entry(row: Mapping[str, Any], moment: datetime) -> dict[str, Any]:
    facts = {"spec_digest": row["spec_digest"], "status": row["status"]}
    return audit.entry(
        actor=row["principal_id"],
        key_id=row["key_id"],
        action="job.created",
        subject=row["id"],
        facts=facts | ({"request_id": row["request_id"]} if row["request_id"] else {}),
        at=moment,
    )


def _unknown(
    session: Session, spec: Mapping[str, Any], kept: Mapping[str, Dataset], held: Mapping[str, Model]
) -> Iterator[Problem]:
    for field, model in references.models(spec).items():
        if "id" in model and model["id"] not in held:
            said = f"There is no model '{model['id']}', or it is deleted. GET /models lists them."
            yield Problem(f"{field}.id", model["id"], said)
        if "alias" in model and (missing := aliases.unknown(session, model["alias"])):
            yield Problem(f"{field}.alias", model["alias"], missing)
    for name, upload in references.uploads(spec).items():
        found = kept.get(upload)
        if found is None:
            said = f"There is no data set '{upload}'. GET /datasets lists them."
            yield Problem(f"data.{name}.dataset", upload, said)
        elif found.destroyed_at is not None:
            said = f"The data set '{upload}' was destroyed. Upload its records again."
            yield Problem(f"data.{name}.dataset", upload, said)
