"""Jobs as a requester sees them: create, read, list. What happens to them afterwards is in `life` and `attempts`."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

from sqlalchemy import Select, bindparam, func, select
from sqlalchemy.orm import Session, defer

from api.store import deadlines, entering, turn
from api.store.errors import NotFound
from api.store.ids import plausible
from api.store.lookup import absent, by_id, newest, storable
from api.store.session import now
from api.store.tables import ApiKey, Job, Status
from api.store.turn import PRIORITIES, Priority
from core.errors import LetheError, Problem, SpecError
from core.spec.job import JobSpec

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
    request = entering.Request(
        spec,
        key_id=key_id,
        principal_id=principal_id or session.get_one(ApiKey, key_id).principal_id,
        body_digest=body_digest or spec.digest(),
        idempotency_key=storable(idempotency_key, "Idempotency-Key"),
        request_id=request_id,
        needs_approval=needs_approval,
    )
    (entered,) = entering.enter(session, [request])
    if isinstance(entered, LetheError):
        raise entered
    job, created = entered
    return session.get_one(Job, job.id), created


def checked(session: Session, spec: JobSpec, moment: datetime, principal_id: str, key_id: str) -> dict[str, Any]:
    """The spec as it is stored. Raises SpecError for what the service cannot carry out, as `create` says."""
    named = entering.Named.hold(session, [spec])
    (found,) = named.check(session, moment, [(principal_id, key_id)])
    if isinstance(found, SpecError):
        raise found
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


def among(session: Session, job_ids: Iterable[str]) -> dict[str, Job]:
    """Those of the jobs that there are, by id, read afresh."""
    wanted = [job_id for job_id in job_ids if plausible(job_id)]
    if not wanted:
        return {}
    query = select(Job).where(Job.id.in_(wanted)).execution_options(populate_existing=True)
    return {job.id: job for job in session.scalars(query)}


def absent_job(job_id: str) -> NotFound:
    """The error that says so."""
    return absent(Job, job_id)


def queue_positions(session: Session, queued: Sequence[Job]) -> dict[str, int]:
    """1 for the job that is next; a job that more than `COUNTED` are ahead of is not among them."""
    if not queued:
        return {}
    found = session.execute(_POSITIONS, {"ids": [job.id for job in queued]})
    return {row.id: row.position for row in found}


def _positions() -> Select[Any]:
    """One walk along the index serves all who ask, and goes no further than the limit however long the queue is."""
    position = func.row_number().over(order_by=turn.ORDER).label("position")
    queue = select(Job.id, position).where(Job.status == "queued").order_by(*turn.ORDER).limit(COUNTED + 1).subquery()
    return select(queue.c.id, queue.c.position).where(queue.c.id.in_(bindparam("ids", expanding=True)))


_POSITIONS = _positions()  # asked with every look at a job that waits, so it is put together once
