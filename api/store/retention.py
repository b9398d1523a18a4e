"""The end of what is kept: keys of data sets and jobs are destroyed, and with them all that was sealed under them.

A set is kept while a job on it has not ended or is under legal hold, and for a while after one last ran. A job that
ended without running is no reason to keep anything, or else asking and taking back would put the end off for ever.
Jobs are locked before data sets, as everywhere, and a new job locks the sets that it names (`datasets.keep`), so that
none is destroyed while a job on it is made.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, delete, func, or_, select, text
from sqlalchemy.orm import Session, defer

from api.store import adopted, artifacts, audit, events, outbox
from api.store.errors import Conflict
from api.store.life import TERMINAL
from api.store.lookup import by_id
from api.store.records import Artifact, Attempt
from api.store.session import now
from api.store.tables import Dataset, Job, JobDataset

Why = Literal["retention", "request"]
# In a job's `key`: destroyed, and the record of it is not signed yet.
UNRECORDED = b""
# In the words of the partial indexes, so that nothing that is long gone is read through.
_KEPT = text("datasets.blob <> ''")
_KEYED = text("jobs.key IS NOT NULL")


def due(session: Session, before: datetime, limit: int = 100) -> Sequence[str]:
    """Ids of data sets from earlier than `before` that no job has needed since: each of their jobs has ended and last
    ran earlier, none is held."""
    needing = select(JobDataset.job_id).join(Job, Job.id == JobDataset.job_id)
    needing = needing.where(JobDataset.dataset_id == Dataset.id, _needed(before))
    query = select(Dataset.id).where(_KEPT, Dataset.created_at < before, ~needing.exists())
    return session.scalars(query.order_by(Dataset.created_at).limit(limit)).all()


def jobs_due(session: Session, before: datetime, limit: int = 100) -> Sequence[str]:
    """Ids of jobs with a key of their own that have ended, last ran before `before` and are not held."""
    query = select(Job.id).where(_KEYED, func.length(Job.key) > 0, ~_needed(before))
    return session.scalars(query.limit(limit)).all()


def unrecorded(session: Session, limit: int = 100) -> Sequence[str]:
    """Ids of jobs with a report whose data was destroyed without a signed record of it so far."""
    return session.scalars(select(Job.id).where(_KEYED, func.length(Job.key) == 0).limit(limit)).all()


def destroy(
    session: Session,
    dataset_id: str,
    *,
    actor: str,
    why: Why,
    key_id: str | None = None,
    before: datetime | None = None,
) -> list[str]:
    """Destroy the set's key, and what its jobs have kept sealed. Returns blobs to delete after commit.

    Destroying again changes nothing. Raises NotFound, and Conflict, naming the job, while one has not ended, is held,
    or ran after `before`.
    """
    adopted.adopt(session)  # or a job of the first version's that names the set is not seen
    jobs = _locked(session, select(JobDataset.job_id).where(JobDataset.dataset_id == dataset_id))
    dataset = by_id(session, Dataset, dataset_id, lock=True)
    if dataset.destroyed_at is not None:
        return []
    named = set(session.scalars(select(JobDataset.job_id).where(JobDataset.dataset_id == dataset_id)))
    lately = _ran_since(session, named, before)
    for job_id in sorted(named):
        _check(jobs.get(job_id), job_id, job_id in lately, f"Data set {dataset_id}")
    moment = now(session)
    removed = [digest for digest in (dataset.blob, dataset.leaves) if digest]
    dataset.key, dataset.blob, dataset.leaves, dataset.fingerprint, dataset.destroyed_at = b"", "", None, None, moment
    session.flush()
    outbox.tell_of_dataset(session, dataset)
    facts = {"why": why, "commitment": dataset.commitment, "jobs": len(named)}
    audit.append(session, actor=actor, key_id=key_id, action="dataset.destroyed", subject=dataset_id, facts=facts)
    for job in jobs.values():
        removed += _end(session, job, moment, actor=actor, key_id=key_id, why=why)
    return removed


def destroy_own(session: Session, job_id: str, *, actor: str, before: datetime) -> list[str]:
    """As `destroy`, of a job's own key. Raises Conflict where the job must be kept."""
    jobs = _locked(session, select(Job.id).where(Job.id == job_id))
    job = jobs.get(job_id)
    _check(job, job_id, bool(_ran_since(session, [job_id], before)), f"The key of job {job_id}")
    assert job is not None
    if not job.key:
        return []
    return _end(session, job, now(session), actor=actor, key_id=None, why="retention")


def _needed(before: datetime) -> ColumnElement[bool]:
    lately = select(Attempt.job_id).where(Attempt.job_id == Job.id, Attempt.ended_at >= before)
    return or_(Job.status.not_in(TERMINAL), Job.held_at.is_not(None), lately.exists())


def _ran_since(session: Session, ids: Iterable[str], before: datetime | None) -> set[str]:
    if before is None:
        return set()
    query = select(Attempt.job_id).where(Attempt.job_id.in_([*ids]), Attempt.ended_at >= before)
    return set(session.scalars(query))


def _locked(session: Session, ids: object) -> dict[str, Job]:
    query = select(Job).where(Job.id.in_(ids)).order_by(Job.id).options(defer(Job.spec))  # type: ignore[arg-type]
    query = query.with_for_update().execution_options(populate_existing=True)
    return {job.id: job for job in session.scalars(query)}


def _check(job: Job | None, job_id: str, lately: bool, what: str) -> None:
    """Raises Conflict where the job is a reason to keep its data."""
    if job is None:
        reason = "was made in this moment"
    elif job.status not in TERMINAL:
        reason = f"is {job.status}"
    elif job.held_at is not None:
        reason = "is under legal hold"
    elif lately:
        reason = "ran only lately"
    else:
        return
    raise Conflict(f"{what} cannot be destroyed: job {job_id} {reason}.")


def _end(session: Session, job: Job, moment: datetime, *, actor: str, key_id: str | None, why: Why) -> list[str]:
    sealed = select(Artifact.digest).where(Artifact.job_id == job.id, Artifact.sealed)
    removed = list(session.scalars(sealed))
    session.execute(delete(Artifact).where(Artifact.job_id == job.id, Artifact.sealed))
    job.key = UNRECORDED if artifacts.of(session, job.id, "envelope") else None
    job.destroyed_at = job.destroyed_at or moment
    session.flush()
    facts = {"why": why, "files": len(removed)}
    events.append(session, job, "data_destroyed", {**facts, "by": actor})
    audit.append(session, actor=actor, key_id=key_id, action="job.data_destroyed", subject=job.id, facts=facts)
    return removed
