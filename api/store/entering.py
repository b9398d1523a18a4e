"""Entering jobs: any number of requests in one transaction, each judged by itself.

A statement serves all of them, so that many requests at once cost little more than one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Table, insert, select, tuple_
from sqlalchemy.orm import Session

from api.store import aliases, audit, batches, datasets, duplicates, keys, models, outbox, references
from api.store import due as dates
from api.store.columns import INSERT
from api.store.errors import IdempotencyMismatch
from api.store.ids import new_id
from api.store.lookup import storable
from api.store.records import AuditEntry, Event
from api.store.session import now
from api.store.tables import ApiKey, Dataset, Job, JobDataset, Model
from api.store.turn import PRIORITIES
from core.errors import LetheError, Problem, SpecError
from core.spec.job import JobSpec, digest_of


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
Asker = tuple[str, str]  # ids of a principal and of the key that it uses
# What a new job does not have yet.
_NOT_YET = {column.name: None for column in Job.__table__.columns if column.nullable}


def enter(session: Session, requests: Sequence[Request]) -> list[Entered | LetheError]:
    """For each request its job, and True if it is new; or what is wrong with it, as `jobs.create` raises it.

    New jobs are told as plain objects with the columns of `Job`: they are no rows of the session's.
    """
    moment = now(session)
    # Before anything is judged: what was taken once is answered the same, also where a set was destroyed since.
    before = _taken(session, requests)
    fresh = [i for i in range(len(requests)) if i not in before]
    named = Named.hold(session, [requests[i].spec for i in fresh])
    askers = {i: (requests[i].principal_id, requests[i].key_id) for i in fresh}
    checked = dict(zip(fresh, named.check(session, moment, list(askers.values())), strict=True))
    good = {i: spec for i, spec in checked.items() if not isinstance(spec, LetheError)}
    warned = duplicates.warnings(session, list(good.values()), [askers[i] for i in good])
    rows = {i: _row(requests[i], good[i], said, moment) for i, said in zip(good, warned, strict=True)}
    new = _insert(session, list(rows.values()))
    _follow(session, [row for row in rows.values() if row["id"] in new], moment)
    # Of those that were not entered somebody has committed the job by now, or it stands before in this turn.
    late = [i for i, row in rows.items() if row["id"] not in new]
    before |= {late[k]: answer for k, answer in _taken(session, [requests[i] for i in late]).items()}
    entered: dict[int, Entered | LetheError] = {i: spec for i, spec in checked.items() if isinstance(spec, LetheError)}
    entered |= {i: (cast(Job, SimpleNamespace(**(_NOT_YET | row))), True) for i, row in rows.items()} | before
    return [entered[i] for i in range(len(requests))]


@dataclass(frozen=True)
class Named:
    """Specs as they are stored, and what they name of the service's: neither is destroyed nor deleted until the
    transaction ends."""

    specs: Sequence[JobSpec]
    resolved: Sequence[dict[str, Any]]
    datasets: Mapping[str, Dataset]
    models: Mapping[str, Model]

    @classmethod
    def hold(cls, session: Session, specs: Sequence[JobSpec]) -> "Named":
        """Look all of it up, and keep it."""
        resolved = [spec.model_dump(mode="json") for spec in specs]
        sets = {upload for spec in resolved for upload in references.uploads(spec).values()}
        ids = {model["id"] for spec in resolved for model in references.models(spec).values() if "id" in model}
        return cls(specs, resolved, datasets.keep(session, sets), models.hold(session, ids))

    def check(self, session: Session, moment: datetime, askers: Sequence[Asker]) -> list[dict[str, Any] | SpecError]:
        """Each spec as it is stored, or what of it the service cannot carry out for whoever asks."""
        answers: list[dict[str, Any] | SpecError] = []
        for spec, stored, asker in zip(self.specs, self.resolved, askers, strict=True):
            try:
                storable(spec.reference, "reference")
                dates.check(spec.received_at, moment)
                if problems := list(_unknown(session, stored, self, asker)):
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
        raise _mismatch(found)
    return found


def _taken(session: Session, requests: Sequence[Request]) -> dict[int, Entered | LetheError]:
    """By position, what becomes of requests whose Idempotency-Key has made a job already."""
    answers: dict[int, Entered | LetheError] = {}
    wanted: dict[tuple[str, str], list[int]] = {}
    for i, request in enumerate(requests):
        try:
            if (key := storable(request.idempotency_key, "Idempotency-Key")) is not None:
                wanted.setdefault((request.principal_id, key), []).append(i)
        except SpecError as error:
            answers[i] = error
    if not wanted:
        return answers
    query = select(Job).where(tuple_(Job.principal_id, Job.idempotency_key).in_(list(wanted)))
    for job in session.scalars(query, execution_options={"populate_existing": True}):
        assert job.idempotency_key is not None
        for i in wanted[job.principal_id, job.idempotency_key]:
            answers[i] = (job, False) if job.body_digest == requests[i].body_digest else _mismatch(job)
    return answers


def _mismatch(job: Job) -> IdempotencyMismatch:
    return IdempotencyMismatch(
        f"Idempotency-Key {job.idempotency_key!r} was used for job {job.id} with another body. "
        "Use a new key for a new request.",
        param="Idempotency-Key",
    )


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
        "spec_digest": digest_of(spec),
        "reason": request.spec.reason,
        "reference": request.spec.reference,
        "rank": PRIORITIES.index(request.spec.priority),
        "received_at": received,
        "due_at": dates.of(received),
        "warnings": [*request.spec.foreseen(), *warnings],
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
    ids = {row["id"] for row in rows}
    # Nearly always all of them are; asking the statement itself which ones would make it one long text to be parsed.
    if session.connection().execute(entered, list(rows)).rowcount == len(rows):
        return ids
    return set(session.scalars(select(Job.id).where(Job.id.in_(ids))))


# On the tables themselves: objects would be made of rows that nobody looks at.
_LINK, _TELL, _NOTE = (insert(cast(Table, kind.__table__)) for kind in (JobDataset, Event, AuditEntry))


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
        session.execute(_LINK, links)
    told = {"from": None}
    session.execute(
        _TELL,
        [
            {"job_id": row["id"], "attempt": 0, "kind": "status", "data": told | {"to": row["status"]}, "at": moment}
            for row in rows
        ],
    )
    session.execute(_NOTE, [_entry(row, moment) for row in rows])
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


def _unknown(session: Session, spec: Mapping[str, Any], named: Named, asker: Asker) -> Iterator[Problem]:
    for field, model in references.models(spec).items():
        if "id" in model and model["id"] not in named.models:
            said = f"There is no model '{model['id']}', or it is deleted. GET /models lists them."
            yield Problem(f"{field}.id", model["id"], said)
        if "alias" in model and (missing := aliases.unknown(session, model["alias"])):
            yield Problem(f"{field}.alias", model["alias"], missing)
    for name, upload in references.uploads(spec).items():
        found = named.datasets.get(upload)
        if found is None or _hidden(session, found, *asker):
            said = f"There is no data set '{upload}'. GET /datasets lists them."
            yield Problem(f"data.{name}.dataset", upload, said)
        elif found.destroyed_at is not None:
            said = f"The data set '{upload}' was destroyed. Upload its records again."
            yield Problem(f"data.{name}.dataset", upload, said)


def _hidden(session: Session, dataset: Dataset, principal_id: str, key_id: str) -> bool:
    """Whether it is another principal's, and the key does not see everybody's."""
    # The key is looked at only where it matters: nearly every request names sets of its own.
    return dataset.principal_id != principal_id and not keys.may(session.get_one(ApiKey, key_id), "jobs:read")
