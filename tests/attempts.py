"""The attempts at a job, which the service itself never lists."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store.records import Attempt


def attempts_of(session: Session, job_id: str) -> Sequence[Attempt]:
    """All of them, the first one first."""
    return session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).all()
