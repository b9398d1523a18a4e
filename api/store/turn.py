"""Whose turn it is among the jobs that wait: by priority, then by due date, then by age.

Of the jobs on one alias only one runs at a time, since each begins at what the one before it has made. The others wait
without keeping jobs behind them from running.
"""

from typing import Literal, get_args

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from api.store.tables import Job

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)  # each stands at its rank
ORDER = (Job.rank, Job.due_at, Job.id)


def first(session: Session, *only: ColumnElement[bool], lock: bool = False) -> Job | None:
    """The job that is next among those that `only` holds for and that could begin now.

    With `lock` its row is held, and rows that others hold are passed over: whoever holds one is about to take that job.
    """
    busy = select(Job.alias).where(Job.status == "running", Job.alias.is_not(None))
    may_begin = or_(Job.alias.is_(None), Job.alias.not_in(busy))
    query = select(Job).where(Job.status == "queued", may_begin, *only).order_by(*ORDER).limit(1)
    if lock:
        query = query.with_for_update(skip_locked=True)
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def waits_for(session: Session, job: Job) -> str | None:
    """The running job whose end a queued one on the same alias waits for."""
    if job.status != "queued" or job.alias is None:
        return None
    running = select(Job.id).where(Job.alias == job.alias, Job.status == "running", Job.id != job.id)
    return session.scalars(running.order_by(Job.id).limit(1)).one_or_none()
