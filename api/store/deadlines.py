"""Which jobs are late, which are due soon, and how many of each there are."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from api.store.life import TERMINAL
from api.store.session import now
from api.store.tables import Job, Status

Due = Literal["late", "soon"]
_OPEN: tuple[Status, ...] = tuple(status for status in get_args(Status) if status not in TERMINAL)
RANKS = (0, 1, 2)


@dataclass(frozen=True)
class Counts:
    """How many jobs there are in each status, and of those that have not ended how many are late or due soon."""

    status: Mapping[Status, int]
    late: int
    soon: int


def among(which: Due, moment: datetime, within: timedelta) -> ColumnElement[bool]:
    """The condition for jobs that have not ended and are late, or else due within that time."""
    # The ranks are named so that the index of the queue serves, in which they stand between status and due date.
    waits = and_(Job.status.in_(_OPEN), Job.rank.in_(RANKS))
    if which == "late":
        return and_(waits, Job.due_at < moment)
    return and_(waits, Job.due_at >= moment, Job.due_at < moment + within)


def counts(session: Session, within: timedelta, *, only: str | None = None) -> Counts:
    """Of all jobs, or only of those that this principal has submitted."""
    mine = () if only is None else (Job.principal_id == only,)
    rows = session.execute(select(Job.status, func.count().label("number")).where(*mine).group_by(Job.status))
    by_status: dict[Status, int] = {row.status: row.number for row in rows}
    moment = now(session)

    def how_many(which: Due) -> int:
        query = select(func.count()).select_from(Job).where(among(which, moment, within), *mine)
        return session.execute(query).scalar_one()

    status: dict[Status, int] = {name: by_status.get(name, 0) for name in get_args(Status)}
    return Counts(status, how_many("late"), how_many("soon"))
