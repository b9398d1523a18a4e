"""Recovery: jobs whose worker fell silent, and jobs whose message got lost. Any number of sweeps may run at once."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.store.life import DEFAULT_CAP, give_back
from api.store.session import now
from api.store.tables import Job


def expired(session: Session, *, cap: int = DEFAULT_CAP, limit: int = 100) -> Sequence[Job]:
    """Take running jobs whose lease has passed away from their workers. Returns them as they now are.

    Each is queued again (and is to be rung for), cancelled where that was asked for, or failed at the cap.
    """
    # Skipping locked rows: whoever holds one is renewing the lease, or is another sweep.
    late = (
        select(Job)
        .where(Job.status == "running", Job.lease_until < now(session))
        .order_by(Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    return [
        give_back(session, job, actor="sweep", reason=f"the lease of {job.leased_by} ran out", counts=True, cap=cap)
        for job in session.scalars(late).all()
    ]


def waiting(session: Session, *, older_than: float, limit: int = 100) -> Sequence[str]:
    """Ids of queued jobs that no worker was told of for `older_than` seconds: ring for them again after commit.

    They count as rung for from now on, so that sweeps at once, or a long queue, do not flood the broker.
    """
    moment = now(session)
    silent = (
        select(Job.id)
        .where(Job.status == "queued", Job.rung_at < moment - timedelta(seconds=older_than))
        .order_by(Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = session.scalars(silent).all()
    session.execute(update(Job).where(Job.id.in_(ids)).values(rung_at=moment))
    return ids
