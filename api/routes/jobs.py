"""Jobs: submit a forget request, and look at those there are."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field
from sqlalchemy.orm import Session

from api import job_schemas, schemas
from api.admission import admit, names_paths
from api.asked_jobs import Earlier, Wanted
from api.body import json_body
from api.deps import PageQuery, Parts, Writer
from api.openapi import JOB_BODY
from api.preview import lines_in_files, preview
from api.problems import REQUEST_ID
from api.sight import Seen
from api.store import deadlines, entering, jobs, life
from api.store.tables import Job, Status
from api.store.turn import Priority
from core.errors import SpecError
from core.spec.job import parse

router = APIRouter(prefix="/jobs", tags=["jobs"])


class JobQuery(PageQuery):
    """Which jobs, and from where on."""

    status: Status | None = None
    model: str | None = None
    reference: str | None = None
    priority: Priority | None = None
    due: deadlines.Due | None = Field(
        None, description="of those that have not ended: late ones, or those due within LETHE_DUE_SOON_DAYS"
    )


@router.post(
    "",
    status_code=201,
    response_model=job_schemas.Job,
    openapi_extra={"requestBody": JOB_BODY},
    responses={200: {"model": job_schemas.Job, "description": "The job that this Idempotency-Key already made"}},
)
async def submit(
    request: Request,
    service: Parts,
    caller: Writer,
    body: Annotated[Any, Depends(json_body)],
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Response:
    """Ask for something to be forgotten. With the same Idempotency-Key and body it is done once, however often sent,
    by whichever key of the principal. Under four eyes the job awaits approval."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    asker = caller.principal_id
    try:
        spec = parse(body)
        # Paths are looked up in a thread: a file system may take its time.
        admitted = await run_in_threadpool(admit, spec, service.settings.data_roots) if names_paths(spec) else spec
    except SpecError:
        # What was taken once is answered the same, also where a file is gone since.
        known = idempotency_key and await service.together.find(Earlier(asker, idempotency_key, digest))
        if not known:
            raise
        return _written(known, 200, {"Location": f"/jobs/{known.id}"})
    answer, created = await service.together.enter(
        entering.Request(
            admitted,
            key_id=caller.id,
            principal_id=asker,
            body_digest=digest,
            idempotency_key=idempotency_key,
            request_id=request.scope[REQUEST_ID],
            needs_approval=service.settings.four_eyes,
        )
    )
    if created and answer.status == "queued":
        # Only now: a worker must find the row.
        service.queue.ring_soon(answer.id)
    return _written(answer, 201 if created else 200, {"Location": f"/jobs/{answer.id}"})


@router.post("/validate", openapi_extra={"requestBody": JOB_BODY})
def validate(service: Parts, caller: Writer, body: Annotated[Any, Depends(json_body)]) -> job_schemas.Validation:
    """What the same body would be as a job, how many records it would use, and what it may cost. Nothing is written;
    what POST /jobs would refuse is refused here alike."""
    spec = admit(parse(body), service.settings.data_roots)
    lines = lines_in_files(spec)
    # Nothing is written, but what is named is held until all of it has been looked at, as when a job is made.
    with service.database.transaction() as session:
        return preview(session, spec, caller, lines)


@router.get("")
def listing(service: Parts, sight: Seen, query: Annotated[JobQuery, Query()]) -> schemas.Page[job_schemas.JobSummary]:
    """Jobs, the newest first: one's own, and with jobs:read, jobs:approve, audit:read or admin everybody's."""
    within = timedelta(days=service.settings.due_soon_days)
    with service.database.reading() as session:
        rows, more = jobs.page(session, **query.model_dump(), within=within, only=sight.only)
        data = _summaries(session, rows)
    return schemas.Page(data=data, has_more=more, after=data[-1].id if data else None)


@router.get("/counts")
def counts(service: Parts, sight: Seen) -> job_schemas.Counts:
    """How many jobs there are in each status, and how many are late or due soon."""
    within = timedelta(days=service.settings.due_soon_days)
    with service.database.reading() as session:
        return job_schemas.Counts.model_validate(vars(deadlines.counts(session, within, only=sight.only)))


@router.get("/{job_id}", response_model=job_schemas.Job)
async def one(service: Parts, sight: Seen, job_id: str) -> Response:
    """Where a job stands, and what was asked."""
    return _written(await service.together.see(Wanted(job_id, sight.only)))


def _written(job: job_schemas.Job, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The answer, written here: FastAPI would check once more what was checked already, in another thread."""
    return Response(job.model_dump_json(by_alias=True), status, headers, "application/json")


def _summaries(session: Session, rows: Sequence[Job]) -> list[job_schemas.JobSummary]:
    destroyed = life.destroyed(session, rows)
    told = [job_schemas.JobSummary.model_validate(row) for row in rows]
    return [job.model_copy(update={"data_destroyed": job.id in destroyed}) for job in told]
