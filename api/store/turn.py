"""Whose turn it is among the jobs that wait: by priority, then by due date, then by age."""

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from api.store.tables import Job

ORDER = (Job.rank, Job.due_at, Job.id)


def first(session: Session, *only: ColumnElement[bool], lock: bool = False) -> Job | None:
    """The job that is next among those that `only` holds for.

    With `lock` its row is held, and rows that others hold are passed over: whoever holds one is about to take that job.
    """
    query = select(Job).where(Job.status == "queued", *only).order_by(*ORDER).limit(1)
    if lock:
        query = query.with_for_update(skip_locked=True)
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()
