"""What can be done to a job: cancel, retry, approve, reject, extend, hold, release."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from api import job_schemas
from api.asked_jobs import seen
from api.body import json_body, read_as
from api.deps import Approver, Parts, Writer
from api.errors import BadJson
from api.openapi import REASON_BODY
from api.sight import its_owner
from api.store import decisions, life

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])


async def _reason(request: Request) -> str:
    try:
        body = await json_body(request)
    except BadJson as error:
        # These are called by hand, and often without a body: they seem to need none.
        raise BadJson(f'{error.message} Allowed: {{"reason": "why"}}.') from None
    return read_as(job_schemas.Reason, body).reason


Reason = Annotated[str, Depends(_reason)]
_GIVEN: dict[str, Any] = {"requestBody": REASON_BODY}


@router.post("/cancel")
def cancel(service: Parts, caller: Writer, job_id: str) -> job_schemas.Job:
    """End a job that waits at once, and one that runs at its next batch. 409 where it has ended already."""
    with service.database.transaction() as session:
        its_owner(session, caller, job_id)
        return seen(session, life.request_cancel(session, job_id, caller.principal_id, caller.id))


@router.post("/retry")
def retry(service: Parts, caller: Writer, job_id: str) -> job_schemas.Job:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint. 409 in every other status, and
    `data_destroyed` where its data is gone. Under four eyes a job that nobody approved awaits that first."""
    with service.database.transaction() as session:
        its_owner(session, caller, job_id)
        four_eyes = service.settings.four_eyes
        job = life.retry(session, job_id, caller.principal_id, caller.id, needs_approval=four_eyes)
        answer = seen(session, job)
    if answer.status == "queued":
        service.queue.ring_soon(job_id)
    return answer


@router.post("/approve")
def approve(service: Parts, caller: Approver, job_id: str) -> job_schemas.Job:
    """Queue a job that awaits approval. Under four eyes 403 for whoever submitted it. 409 in every other status."""
    with service.database.transaction() as session:
        four_eyes = service.settings.four_eyes
        answer = seen(session, decisions.approve(session, job_id, caller.principal_id, caller.id, four_eyes=four_eyes))
    service.queue.ring_soon(job_id)
    return answer


@router.post("/reject", openapi_extra=_GIVEN)
def reject(service: Parts, caller: Approver, job_id: str, reason: Reason) -> job_schemas.Job:
    """End a job that awaits approval; the reason is its `error`. 409 in every other status."""
    with service.database.transaction() as session:
        return seen(session, decisions.reject(session, job_id, caller.principal_id, caller.id, reason=reason))


@router.post("/extend", openapi_extra=_GIVEN)
def extend(service: Parts, caller: Writer, job_id: str, reason: Reason) -> job_schemas.Job:
    """Move the due date by two calendar months. 409 the second time, and where the job has ended."""
    with service.database.transaction() as session:
        its_owner(session, caller, job_id)
        return seen(session, decisions.extend(session, job_id, caller.principal_id, caller.id, reason=reason))


@router.post("/hold", openapi_extra=_GIVEN)
def hold(service: Parts, caller: Approver, job_id: str, reason: Reason) -> job_schemas.Job:
    """Put a job under legal hold, in whatever status: its data is kept until it is released. 409 where it is held."""
    with service.database.transaction() as session:
        return seen(session, decisions.hold(session, job_id, caller.principal_id, caller.id, reason=reason))


@router.post("/release", openapi_extra=_GIVEN)
def release(service: Parts, caller: Approver, job_id: str, reason: Reason) -> job_schemas.Job:
    """End a legal hold. 409 where there is none."""
    with service.database.transaction() as session:
        return seen(session, decisions.release(session, job_id, caller.principal_id, caller.id, reason=reason))
