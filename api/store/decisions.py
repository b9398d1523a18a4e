"""What people decide about a job besides ending and repeating it: approval, more time, legal hold.

Each is written with its history and its audit entry in one transaction, also where the status stays as it is.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from api.store import audit, due, events
from api.store.errors import Conflict, OwnRequest
from api.store.life import TERMINAL, transition
from api.store.lookup import by_id, storable
from api.store.session import now, written
from api.store.tables import Job


def approve(session: Session, job_id: str, actor: str, key_id: str | None = None, *, four_eyes: bool = True) -> Job:
    """Queue a job that awaits approval: ring for it after commit.

    Raises NotFound, Conflict in every other status, and under `four_eyes` OwnRequest where the actor has submitted it.
    """
    job = by_id(session, Job, job_id, lock=True)
    if four_eyes and job.principal_id == actor:
        said = "four eyes are asked for (LETHE_FOUR_EYES), so another principal than the one who submitted it approves."
        raise OwnRequest(f"Job {job.id} is your own request: {said}")
    _only_awaiting(job, "approved")
    changes = {"approved_by": actor, "approved_at": now(session)}
    return transition(session, job, "queued", actor=actor, key_id=key_id, reason="approved", changes=changes)


def reject(session: Session, job_id: str, actor: str, key_id: str | None = None, *, reason: str) -> Job:
    """End a job that awaits approval; the reason is kept as its error. Raises NotFound, or Conflict otherwise."""
    storable(reason, "reason")
    job = by_id(session, Job, job_id, lock=True)
    _only_awaiting(job, "rejected")
    changes = {"error": {"code": "rejected", "message": reason, "param": None, "retryable": False}}
    return transition(session, job, "rejected", actor=actor, key_id=key_id, reason=reason, changes=changes)


def extend(session: Session, job_id: str, actor: str, key_id: str | None = None, *, reason: str) -> Job:
    """Move the due date by two calendar months, once (GDPR art. 12(3)).

    Raises NotFound, or Conflict where it was extended before or the job has ended.
    """
    storable(reason, "reason")
    job = by_id(session, Job, job_id, lock=True)
    if job.status in TERMINAL:
        raise Conflict(f"Job {job.id} is {job.status}; only a job that has not ended can be extended.")
    if job.extended_at is not None:
        raise Conflict(f"Job {job.id} was extended at {written(job.extended_at)}; that is possible once.")
    before, job.due_at = job.due_at, due.months_after(job.due_at, due.EXTENSION)
    job.extended_at = now(session)
    facts = {"reason": reason, "from": before.isoformat(), "to": job.due_at.isoformat()}
    return _noted(session, job, "extended", facts, actor, key_id)


def hold(session: Session, job_id: str, actor: str, key_id: str | None = None, *, reason: str) -> Job:
    """Put the job under legal hold, in whatever status: its data is not destroyed until it is released.

    Raises NotFound, or Conflict where it is held already.
    """
    storable(reason, "reason")
    job = by_id(session, Job, job_id, lock=True)
    if job.held_at is not None:
        raise Conflict(f"Job {job.id} is under legal hold since {written(job.held_at)}.")
    job.held_at = now(session)
    return _noted(session, job, "held", {"reason": reason}, actor, key_id)


def release(session: Session, job_id: str, actor: str, key_id: str | None = None, *, reason: str) -> Job:
    """End the legal hold. Raises NotFound, or Conflict where there is none."""
    storable(reason, "reason")
    job = by_id(session, Job, job_id, lock=True)
    if job.held_at is None:
        raise Conflict(f"Job {job.id} is not under legal hold.")
    since, job.held_at = job.held_at, None
    return _noted(session, job, "released", {"reason": reason, "held_since": since.isoformat()}, actor, key_id)


def _only_awaiting(job: Job, what: str) -> None:
    if job.status != "awaiting_approval":
        raise Conflict(f"Job {job.id} is {job.status}; only a job that awaits approval can be {what}.")


def _noted(session: Session, job: Job, kind: str, facts: Mapping[str, Any], actor: str, key_id: str | None) -> Job:
    events.append(session, job, kind, facts)
    audit.append(session, actor=actor, key_id=key_id, action=f"job.{kind}", subject=job.id, facts=facts)
    return job
