"""Jobs: submit a forget request, look at it, cancel it, try it again."""

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Query, Response
from sqlalchemy.orm import Session

from api import schemas
from api.admission import admit
from api.body import json_body
from api.deps import Caller, PageQuery, Parts
from api.openapi import JOB_BODY
from api.store import jobs, life, models, turn
from api.store.tables import Job, Status
from core.spec.job import parse

router = APIRouter(prefix="/jobs", tags=["jobs"])


class JobQuery(PageQuery):
    """Which jobs, and from where on."""

    status: Status | None = None
    model: str | None = None
    reference: str | None = None


@router.post(
    "",
    status_code=201,
    openapi_extra={"requestBody": JOB_BODY},
    responses={200: {"model": schemas.Job, "description": "The job that this Idempotency-Key already made"}},
)
def submit(
    service: Parts,
    caller: Caller,
    body: Annotated[Any, Depends(json_body)],
    after: BackgroundTasks,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> schemas.Job:
    """Ask for something to be forgotten. With the same Idempotency-Key and body it is done once, however often sent."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    # Before anything is judged: what was taken once is answered the same, also where a file is gone since.
    with service.database.reading() as session:
        known = jobs.earlier(session, key_id=caller.id, idempotency_key=idempotency_key, body_digest=digest)
        answer = _seen(session, known) if known else None
    created = False
    if answer is None:
        spec = admit(parse(body), service.settings.data_roots)
        with service.database.transaction() as session:
            job, created = jobs.create(
                session, spec, key_id=caller.id, idempotency_key=idempotency_key, body_digest=digest
            )
            answer = _seen(session, job)
    if created:
        # Only now: a worker must find the row. After the answer: a broker that is away must not delay it.
        after.add_task(service.queue.ring, answer.id)
    else:
        response.status_code = 200
    response.headers["Location"] = f"/jobs/{answer.id}"
    return answer


@router.get("")
def listing(service: Parts, query: Annotated[JobQuery, Query()]) -> schemas.Page[schemas.JobSummary]:
    """Jobs, the newest first."""
    with service.database.reading() as session:
        rows, more = jobs.page(session, **query.model_dump())
    data = [schemas.JobSummary.model_validate(row) for row in rows]
    return schemas.Page(data=data, has_more=more, after=data[-1].id if data else None)


@router.get("/{job_id}")
def one(service: Parts, job_id: str) -> schemas.Job:
    """Where a job stands, and what was asked."""
    with service.database.reading() as session:
        return _seen(session, jobs.get(session, job_id))


@router.post("/{job_id}/cancel")
def cancel(service: Parts, caller: Caller, job_id: str) -> schemas.Job:
    """End a job that waits at once, and one that runs at its next batch. 409 where it has ended already."""
    with service.database.transaction() as session:
        return _seen(session, life.request_cancel(session, job_id, caller.id))


@router.post("/{job_id}/retry")
def retry(service: Parts, caller: Caller, job_id: str, after: BackgroundTasks) -> schemas.Job:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint. 409 in every other status."""
    with service.database.transaction() as session:
        answer = _seen(session, life.retry(session, job_id, caller.id))
    after.add_task(service.queue.ring, job_id)
    return answer


def _seen(session: Session, job: Job) -> schemas.Job:
    seen = schemas.Job.model_validate(job, from_attributes=True)
    made = models.of_job(session, job.id) if job.status == "succeeded" else None
    more = {
        "queue_position": jobs.queue_position(session, job),
        "waits_for": turn.waits_for(session, job),
        "output_model": made.id if made else None,
    }
    return seen.model_copy(update=more)
