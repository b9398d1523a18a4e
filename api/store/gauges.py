"""How much of what is waiting: numbers for whoever watches over the service, each found through an index."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.store.deadlines import Due, among
from api.store.records import AuditEntry, Delivery, DeliveryStatus
from api.store.session import now
from api.store.tables import Job, Status

_UNDER_WAY: tuple[Status, ...] = ("awaiting_approval", "queued", "running")
_UNDELIVERED: tuple[DeliveryStatus, ...] = ("pending", "dead")


@dataclass(frozen=True)
class Gauges:
    """Counts, and ages in seconds: 0 where nothing is there that could have one."""

    jobs: Mapping[Status, int]  # that have not ended
    late: int
    soon: int  # and not late
    queued_seconds: float
    overdue_seconds: float
    messages: Mapping[DeliveryStatus, int]  # that were not delivered
    unsealed: int


def read(session: Session, *, soon: timedelta) -> Gauges:
    """As it is now. `soon`: how long before its due date a job is due soon."""
    moment = now(session)

    def how_many(which: Due) -> int:
        query = select(func.count()).select_from(Job).where(among(which, moment, soon))
        return session.execute(query).scalar_one()

    not_ended = select(Job.status, func.count()).where(Job.status.in_(_UNDER_WAY))
    by_status = dict(session.execute(not_ended.group_by(Job.status)).tuples().all())
    undelivered = select(Delivery.status, func.count()).where(Delivery.status.in_(_UNDELIVERED))
    messages = dict(session.execute(undelivered.group_by(Delivery.status)).tuples().all())
    unsealed = select(func.count()).select_from(AuditEntry).where(AuditEntry.position.is_(None))
    queued = session.scalar(select(func.min(Job.queued_at)).where(Job.status == "queued"))
    lease = session.scalar(select(func.min(Job.lease_until)).where(Job.status == "running"))
    return Gauges(
        jobs={status: by_status.get(status, 0) for status in _UNDER_WAY},
        late=how_many("late"),
        soon=how_many("soon"),
        queued_seconds=_since(moment, queued),
        overdue_seconds=_since(moment, lease),
        messages={status: messages.get(status, 0) for status in _UNDELIVERED},
        unsealed=session.execute(unsealed).scalar_one(),
    )


def _since(moment: datetime, earliest: datetime | None) -> float:
    return max(0.0, (moment - earliest).total_seconds()) if earliest else 0.0
