"""What of a job's data was destroyed, by whom and why: what its destruction record is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store import artifacts, events
from api.store.artifacts import StoredFile
from api.store.lookup import by_id
from api.store.records import Event
from api.store.retention import UNRECORDED, Why
from api.store.tables import Dataset, Job, JobDataset


@dataclass(frozen=True)
class Facts:
    """Everything that was destroyed so far; `why` and `by` are of the last time."""

    why: Why
    by: str
    sets: Sequence[tuple[str, str, datetime]]  # name in the request, commitment, when
    own_key: bool
    kept: list[str]  # names of uploads that are still there


def of(session: Session, job_id: str) -> Facts | None:
    """The facts of a job whose record is to be made; its row stays locked. None where there is nothing to record."""
    job = by_id(session, Job, job_id, lock=True)
    if job.key != UNRECORDED:
        return None
    query = select(JobDataset.role, Dataset.commitment, Dataset.destroyed_at)
    query = query.join(Dataset, Dataset.id == JobDataset.dataset_id).where(JobDataset.job_id == job_id)
    sets = session.execute(query.order_by(JobDataset.role)).all()
    told = select(Event.data).where(Event.job_id == job_id, Event.kind == "data_destroyed")
    last = session.scalars(told.order_by(Event.id.desc()).limit(1)).one()
    return Facts(
        why=last["why"],
        by=last["by"],
        sets=[(name, commitment, at) for name, commitment, at in sets if at is not None],
        own_key=job.forget_id is None,
        kept=[name for name, _, at in sets if at is None],
    )


def recorded(session: Session, job_id: str, file: StoredFile) -> list[str]:
    """Note the record, which is stored already, in place of an earlier one. Returns that one's blob."""
    job = by_id(session, Job, job_id, lock=True)
    old = artifacts.of(session, job_id, "destruction")
    digests = [row.digest for row in old]
    for row in old:
        session.delete(row)
    session.flush()
    artifacts.add(session, job, "destruction", [file])
    job.key = None
    events.append(session, job, "destruction_recorded", {"digest": file.digest})
    return artifacts.unreferenced(session, digests)
