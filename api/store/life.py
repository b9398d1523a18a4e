"""A job's life: which status may follow which, and the one function through which every change of status goes."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.store import audit, events, outbox
from api.store.errors import AttemptsExhausted, Conflict, DataDestroyed
from api.store.lookup import by_id
from api.store.records import Attempt
from api.store.session import now
from api.store.tables import Dataset, Job, JobDataset, Status

MOVES: dict[Status, frozenset[Status]] = {
    "awaiting_approval": frozenset({"queued", "rejected", "cancelled"}),
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"succeeded", "failed", "cancelled", "queued"}),
    "failed": frozenset({"queued", "awaiting_approval"}),
    "cancelled": frozenset({"queued", "awaiting_approval"}),
    "succeeded": frozenset(),
    "rejected": frozenset(),
}
TERMINAL: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled", "rejected"})
DEFAULT_CAP = 3  # attempts that may die before the job fails


def transition(
    session: Session,
    job: Job,
    to: Status,
    *,
    actor: str,
    key_id: str | None = None,
    reason: str | None = None,
    changes: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Job:
    """Move the job, if it still is as `job` says, and write history and audit with it.

    `changes` are further columns of the row; `facts` go into history and audit; `key_id` is the actor's. Raises
    Conflict if the move is not allowed, or if the job's status or attempt was changed in the meantime.
    """
    before = job.status
    if to not in MOVES[before]:
        raise Conflict(f"Job {job.id} is {before} and cannot become {to}. Allowed: {_listed(MOVES[before])}.")
    moment = now(session)
    values = {"status": to, **_arriving(job, to, moment), **(changes or {})}
    moved = session.scalars(
        update(Job)
        .where(Job.id == job.id, Job.status == before, Job.attempt == job.attempt)
        .values(values)
        .returning(Job),
        execution_options={"synchronize_session": False, "populate_existing": True},
    ).one_or_none()
    if moved is None:
        raise Conflict(f"Job {job.id} is no longer {before}: somebody else changed it first.")
    told = {"from": before, "to": to, **({"reason": reason} if reason else {}), **(facts or {})}
    if before == "running":
        _close_attempt(session, moved, reason, moment)
    events.append(session, moved, "status", told, moment)
    facts = {**told, "attempt": moved.attempt}
    audit.append(session, actor=actor, key_id=key_id, action=f"job.{to}", subject=job.id, facts=facts, at=moment)
    outbox.tell_of_job(session, moved)
    return moved


def request_cancel(session: Session, job_id: str, actor: str, key_id: str | None = None) -> Job:
    """Cancel a job that waits, or ask the worker of a running one to stop; asking twice changes nothing.

    Raises NotFound, or Conflict where the job has already ended.
    """
    job = by_id(session, Job, job_id, lock=True)
    if job.status in TERMINAL:
        raise Conflict(f"Job {job.id} is {job.status}; it can be cancelled only until it has ended.")
    if job.status != "running":
        return transition(session, job, "cancelled", actor=actor, key_id=key_id, reason="cancel requested")
    if not job.cancel_requested:
        job.cancel_requested = True
        events.append(session, job, "cancel_requested", {})
        audit.append(session, actor=actor, key_id=key_id, action="job.cancel_requested", subject=job.id)
    return job


def retry(session: Session, job_id: str, actor: str, key_id: str | None = None, *, needs_approval: bool = False) -> Job:
    """Queue a failed or cancelled job again. It goes on from its last checkpoint, with all attempts to spare.

    With `needs_approval` a job that nobody but its submitter has approved yet awaits that first: cancelling is no way
    around it. Raises NotFound, DataDestroyed, or Conflict in every other status.
    """
    job = by_id(session, Job, job_id, lock=True)
    if job.status not in ("failed", "cancelled"):
        raise Conflict(f"Job {job.id} is {job.status}; only a failed or cancelled job can be retried.")
    if destroyed(session, [job]):
        raise DataDestroyed(
            f"The data of job {job.id} was destroyed, so it cannot run again. Upload it, and submit anew."
        )
    changes: dict[str, Any] = {"counted": 0, "cancel_requested": False, "error": None}
    to: Status = "queued"
    if needs_approval and job.approved_by in (None, job.principal_id):
        to = "awaiting_approval"
        changes |= {"approved_by": None, "approved_at": None}
    return transition(session, job, to, actor=actor, key_id=key_id, reason="retry requested", changes=changes)


def destroyed(session: Session, jobs: Sequence[Job]) -> set[str]:
    """Ids of those of the jobs that could not run again, because data of theirs was destroyed."""
    ended = [job.id for job in jobs if job.status in TERMINAL]  # the data of the others is kept
    if not ended:
        return set()
    gone = select(JobDataset.job_id).join(Dataset, Dataset.id == JobDataset.dataset_id)
    found = set(session.scalars(gone.where(JobDataset.job_id.in_(ended), Dataset.destroyed_at.is_not(None))))
    return found | {job.id for job in jobs if job.destroyed_at is not None}


def give_back(
    session: Session, job: Job, *, actor: str, reason: str, counts: bool, cap: int, apart: bool = False
) -> Job:
    """End a running attempt without an answer: queued again, cancelled where that was asked for, or failed at the cap.

    `apart`: it shares no run any more. A job that shared this one is not failed at the cap, since another may be to
    blame: it has one more attempt by itself. The caller holds the row's lock.
    """
    if job.cancel_requested:
        return transition(session, job, "cancelled", actor=actor, reason=reason)
    counted = job.counted + counts
    if counted >= cap and job.led_by is not None:
        apart, counted = True, cap - 1
    if counted < cap:
        again: dict[str, Any] = {"counted": counted, **({"batch": None} if apart else {})}
        return transition(session, job, "queued", actor=actor, reason=reason, changes=again)
    error = AttemptsExhausted(f"{counted} attempts ended without a result (at most {cap}). The last one: {reason}.")
    changes = {"counted": counted, "error": error.as_dict()}
    return transition(session, job, "failed", actor=actor, reason=reason, changes=changes, facts={"code": error.code})


def _arriving(job: Job, to: Status, moment: datetime) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if to != "running":
        values |= {"lease_until": None, "leased_by": None}
    if to == "running":
        values |= {"started_at": job.started_at or moment}
    elif to in ("queued", "awaiting_approval"):
        values |= {"queued_at": moment, "rung_at": moment, "finished_at": None, "progress": {}}
    elif to in TERMINAL:
        values |= {"finished_at": moment}
    return values


def _close_attempt(session: Session, job: Job, reason: str | None, moment: datetime) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job.id, Attempt.number == job.attempt)
        .values(ended_at=moment, outcome=job.status, reason=reason)
    )


def _listed(statuses: frozenset[Status]) -> str:
    return ", ".join(sorted(statuses)) or "nothing, it is final"
