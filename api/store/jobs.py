"""Jobs as a requester sees them: create, read, list. What happens to them afterwards is in `life` and `attempts`."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session, defer

from api.store import aliases, audit, batches, datasets, deadlines, duplicates, events, models, outbox, references, turn
from api.store import due as dates
from api.store.columns import INSERT
from api.store.errors import IdempotencyMismatch
from api.store.ids import plausible
from api.store.lookup import absent, by_id, newest, storable
from api.store.session import now
from api.store.tables import ApiKey, Dataset, Job, JobDataset, Status
from core.errors import Problem, SpecError
from core.spec.job import JobSpec

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)  # each stands at its rank
COUNTED = 1000


def create(
    session: Session,
    spec: JobSpec,
    *,
    key_id: str,
    principal_id: str | None = None,
    idempotency_key: str | None = None,
    body_digest: str | None = None,
    request_id: str | None = None,
    needs_approval: bool = False,
) -> tuple[Job, bool]:
    """Queue a job, or find the one that this principal made with this `idempotency_key`; True if it is new.

    `body_digest` tells bodies apart; absent, the spec's digest does. With `needs_approval` it awaits that first. Raises
    SpecError for an unknown model or data set or a time at which no request came in, and IdempotencyMismatch where the
    earlier body was another one.
    """
    storable(idempotency_key, "Idempotency-Key")
    principal_id = principal_id or session.get_one(ApiKey, key_id).principal_id
    digest = spec.digest()
    body_digest = body_digest or digest
    moment = now(session)
    resolved = checked(session, spec, moment)
    received = spec.received_at or moment
    uploads = references.uploads(resolved)
    entered = INSERT[session.get_bind().dialect.name](Job).values(
        status="awaiting_approval" if needs_approval else "queued",
        model_id=references.models(resolved)["model"].get("id"),
        forget_id=uploads.get("forget"),
        retain_id=uploads.get("retain"),
        spec=resolved,
        spec_digest=digest,
        reason=spec.reason,
        reference=spec.reference,
        key_id=key_id,
        principal_id=principal_id,
        request_id=request_id,
        alias=references.models(resolved)["model"].get("alias"),
        rank=PRIORITIES.index(spec.priority),
        received_at=received,
        due_at=dates.of(received),
        batch=batches.in_common(resolved),
        warnings=duplicates.warnings(session, resolved),
        idempotency_key=idempotency_key,
        body_digest=body_digest,
        created_at=moment,
        queued_at=moment,
        rung_at=moment,
    )
    # Nothing is entered where somebody with the same idempotency key was faster, and has committed by now.
    job = session.scalars(entered.on_conflict_do_nothing().returning(Job)).one_or_none()
    if job is None:
        found = earlier(session, principal_id=principal_id, idempotency_key=idempotency_key, body_digest=body_digest)
        assert found is not None
        return found, False
    session.add_all(JobDataset(job_id=job.id, role=role, dataset_id=upload) for role, upload in uploads.items())
    events.append(session, job, "status", {"from": None, "to": job.status}, moment)
    facts = {"spec_digest": digest, "status": job.status}
    audit.append(
        session, actor=principal_id, key_id=key_id, action="job.created", subject=job.id, facts=facts, at=moment
    )
    outbox.tell_of_job(session, job)
    return job, True


def checked(session: Session, spec: JobSpec, moment: datetime) -> dict[str, Any]:
    """The spec as it is stored. Raises SpecError for what the service cannot carry out, as `create` says."""
    storable(spec.reference, "reference")
    dates.check(spec.received_at, moment)
    resolved = spec.model_dump(mode="json")
    kept = datasets.keep(session, references.uploads(resolved).values())
    if problems := list(_unknown(session, resolved, kept)):
        raise SpecError(problems)
    return resolved


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


def get(session: Session, job_id: str, *, only: str | None = None) -> Job:
    """The job. With `only`, another principal's is as absent as one that never was. Raises NotFound."""
    job = by_id(session, Job, job_id)
    if only is not None and job.principal_id != only:
        raise absent(Job, job_id)
    return job


def status_of(session: Session, job_id: str, *, only: str | None = None) -> Status:
    """The status alone, for whoever looks often; `only` as for `get`. Raises NotFound."""
    mine = () if only is None else (Job.principal_id == only,)
    found = session.scalar(select(Job.status).where(Job.id == job_id, *mine)) if plausible(job_id) else None
    if found is None:
        raise absent(Job, job_id)
    return found


def page(
    session: Session,
    *,
    status: str | None = None,
    model: str | None = None,
    reference: str | None = None,
    priority: Priority | None = None,
    due: deadlines.Due | None = None,
    within: timedelta = timedelta(days=7),
    only: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> tuple[Sequence[Job], bool]:
    """Jobs without their specs, the newest first, and whether there are more behind the last.

    `within` is how near a due date is soon; `only` as for `get`. Raises SpecError for an unknown status.
    """
    query = select(Job).options(defer(Job.spec), defer(Job.key))
    if only is not None:
        query = query.where(Job.principal_id == only)
    if priority is not None:
        query = query.where(Job.rank == PRIORITIES.index(priority))
    if due is not None:
        query = query.where(deadlines.among(due, now(session), within))
    if status is not None:
        allowed = get_args(Status)
        if status not in allowed:
            raise SpecError([Problem("status", status, f"Unknown status {status!r}. Allowed: {', '.join(allowed)}.")])
        query = query.where(Job.status == status)
    if model is not None:
        query = query.where(Job.model_id == storable(model, "model"))
    if reference is not None:
        query = query.where(Job.reference == storable(reference, "reference"))
    return newest(session, query, Job.id, after, limit)


def queue_position(session: Session, job: Job) -> int | None:
    """1 for the job that is next; None unless it is queued, and where more than `COUNTED` are ahead of it."""
    if job.status != "queued":
        return None
    earlier = tuple_(Job.rank, Job.due_at, Job.id) < tuple_(job.rank, job.due_at, job.id)
    # In the order of the index, so that nothing beyond the limit is looked at however long the queue is.
    ahead = select(Job.id).where(Job.status == "queued", earlier).order_by(*turn.ORDER).limit(COUNTED + 1)
    found = session.execute(select(func.count()).select_from(ahead.subquery())).scalar_one()
    return found + 1 if found <= COUNTED else None


def _unknown(session: Session, spec: Mapping[str, Any], kept: Mapping[str, Dataset]) -> Iterator[Problem]:
    for field, model in references.models(spec).items():
        if "id" in model and models.usable(session, model["id"]) is None:
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
