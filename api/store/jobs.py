"""Jobs as a requester sees them: create, read, list. What happens to them afterwards is in `life` and `attempts`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from sqlalchemy import func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from api.store import aliases, audit, due, events, models, outbox, references
from api.store.errors import IdempotencyMismatch
from api.store.ids import plausible
from api.store.lookup import absent, by_id, newest, storable
from api.store.session import now
from api.store.tables import ApiKey, Dataset, Job, JobDataset, Status
from core.errors import Problem, SpecError
from core.spec.job import JobSpec

_RANKS = {"high": 0, "normal": 1, "low": 2}


def create(
    session: Session,
    spec: JobSpec,
    *,
    key_id: str,
    principal_id: str | None = None,
    idempotency_key: str | None = None,
    body_digest: str | None = None,
    request_id: str | None = None,
) -> tuple[Job, bool]:
    """Queue a job, or find the one that this key already made with this `idempotency_key`; True if it is new.

    `body_digest` tells bodies apart; absent, the spec's digest does. Raises SpecError for an unknown model or data set
    and IdempotencyMismatch where the earlier body was another one.
    """
    storable(spec.reference, "reference")
    principal_id = principal_id or session.get_one(ApiKey, key_id).principal_id
    digest = spec.digest()
    body_digest = body_digest or digest
    moment = now(session)
    resolved = spec.model_dump(mode="json")
    uploads = references.uploads(resolved)
    job = Job(
        status="queued",
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
        rank=_RANKS[spec.priority],
        received_at=spec.received_at,
        due_at=due.a_month_after(spec.received_at or moment),
        warnings=[],
        idempotency_key=idempotency_key,
        body_digest=body_digest,
        created_at=moment,
        queued_at=moment,
        rung_at=moment,
    )
    found = earlier(session, key_id=key_id, idempotency_key=idempotency_key, body_digest=body_digest)
    if found is None:
        if problems := list(_unknown(session, resolved)):
            raise SpecError(problems)
        try:
            with session.begin_nested():
                session.add(job)
                session.flush()
                session.add_all(JobDataset(job_id=job.id, role=role, dataset_id=d) for role, d in uploads.items())
        except IntegrityError:
            # Somebody with the same idempotency key was faster, and has committed by now.
            found = earlier(session, key_id=key_id, idempotency_key=idempotency_key, body_digest=body_digest)
            if found is None:
                raise
    if found is not None:
        return found, False
    events.append(session, job, "status", {"from": None, "to": "queued"})
    audit.append(session, actor=key_id, action="job.created", subject=job.id, facts={"spec_digest": digest})
    outbox.tell_of_job(session, job)
    return job, True


def earlier(session: Session, *, key_id: str, idempotency_key: str | None, body_digest: str) -> Job | None:
    """The job that this key already made with this `idempotency_key`. Raises IdempotencyMismatch for another body."""
    if storable(idempotency_key, "Idempotency-Key") is None:
        return None
    query = select(Job).where(Job.key_id == key_id, Job.idempotency_key == idempotency_key)
    found = session.scalars(query).one_or_none()
    if found is not None and found.body_digest != body_digest:
        raise IdempotencyMismatch(
            f"Idempotency-Key {idempotency_key!r} was used for job {found.id} with another body. "
            "Use a new key for a new request.",
            param="Idempotency-Key",
        )
    return found


def get(session: Session, job_id: str) -> Job:
    """Raises NotFound."""
    return by_id(session, Job, job_id)


def status_of(session: Session, job_id: str) -> Status:
    """The status alone, for whoever looks often. Raises NotFound."""
    found = session.scalar(select(Job.status).where(Job.id == job_id)) if plausible(job_id) else None
    if found is None:
        raise absent(Job, job_id)
    return found


def page(
    session: Session,
    *,
    status: str | None = None,
    model: str | None = None,
    reference: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> tuple[Sequence[Job], bool]:
    """Jobs without their specs, the newest first, and whether there are more behind the last.

    Raises SpecError for an unknown status.
    """
    query = select(Job).options(defer(Job.spec), defer(Job.key))
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
    """1 for the job that is next; None unless it is queued."""
    if job.status != "queued":
        return None
    earlier = tuple_(Job.rank, Job.due_at, Job.id) < tuple_(job.rank, job.due_at, job.id)
    ahead = select(func.count()).select_from(Job).where(Job.status == "queued", earlier)
    return session.execute(ahead).scalar_one() + 1


def _unknown(session: Session, spec: Mapping[str, Any]) -> Iterator[Problem]:
    for field, model in references.models(spec).items():
        if "id" in model and models.usable(session, model["id"]) is None:
            said = f"There is no model '{model['id']}', or it is deleted. GET /models lists them."
            yield Problem(f"{field}.id", model["id"], said)
        if "alias" in model and (missing := aliases.unknown(session, model["alias"])):
            yield Problem(f"{field}.alias", model["alias"], missing)
    for name, upload in references.uploads(spec).items():
        if session.get(Dataset, upload) is None:
            said = f"There is no data set '{upload}'. GET /datasets lists them."
            yield Problem(f"data.{name}.dataset", upload, said)
