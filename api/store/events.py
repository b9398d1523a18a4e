"""A job's history, read forward from any point: what a reconnecting stream asks for."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store.records import Event
from api.store.session import now
from api.store.tables import Job


def append(session: Session, job: Job, kind: str, data: Mapping[str, Any], at: datetime | None = None) -> None:
    """Add an event, of now unless the caller knows the time. The caller must have inserted, updated or locked the job's
    row in this transaction.

    That lock orders the writers of one job, so that ids ascend in the order of commit and a reader of `since` who has
    seen one id never misses a smaller one.
    """
    session.add(Event(job_id=job.id, attempt=job.attempt, kind=kind, data=dict(data), at=at or now(session)))
    session.flush()


def since(session: Session, job_id: str, after_id: int = 0, limit: int = 500) -> Sequence[Event]:
    """Up to `limit` events of the job with an id above `after_id`, oldest first."""
    query = select(Event).where(Event.job_id == job_id, Event.id > after_id).order_by(Event.id).limit(limit)
    return session.scalars(query).all()
