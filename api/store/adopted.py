"""Rows that an API of the first version enters while it still runs on migrated tables: given what ours have.

That version knows no principals, due dates, or table of which job names which set; the columns then hold what the
migration gave them by default.
"""

from sqlalchemy import ColumnElement, literal_column, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import ForUpdateArg

from api.store import due, principals, references
from api.store.tables import ApiKey, Dataset, Job, JobDataset

_AT_ONCE = 500
_BESIDE = ForUpdateArg(key_share=True)  # whoever enters rows that refer to the key does not wait
_NOBODY = ""  # in the place of a principal
_UNSAID: ColumnElement[str] = literal_column("''")  # the same, in the words of the partial index


def adopt(session: Session) -> int:
    """Adopt what nobody has adopted yet, passing over what others hold; returns how many rows it was."""
    found = 0
    for table in (ApiKey, Dataset, Job):
        lacking = select(table).where(table.principal_id == _UNSAID).order_by(table.id).limit(_AT_ONCE)
        lacking = lacking.with_for_update(skip_locked=True, key_share=True)
        lacking = lacking.execution_options(populate_existing=True)
        rows = session.scalars(lacking).all()
        for row in rows:
            if isinstance(row, ApiKey):
                _own_principal(session, row)
            elif isinstance(row, Dataset):
                row.principal_id = _principal_of(session, row.key_id)
            elif isinstance(row, Job):
                adopt_job(session, row)
        found += len(rows)
    session.flush()
    return found


def adopt_job(session: Session, job: Job) -> None:
    """Adopt this job, whose row the caller holds; one that has a principal stays as it is."""
    if job.principal_id != _NOBODY:
        return
    owner = _principal_of(session, job.key_id)
    same = select(Job.id).where(Job.principal_id == owner, Job.idempotency_key == job.idempotency_key)
    if job.idempotency_key is not None and session.scalar(same):
        job.idempotency_key = None  # Another key of the principal has used it meanwhile.
    job.principal_id, job.due_at = owner, due.of(job.created_at)
    for role, upload in references.uploads(job.spec).items():
        session.add(JobDataset(job_id=job.id, role=role, dataset_id=upload))
    session.flush()


def _principal_of(session: Session, key_id: str) -> str:
    key = session.get_one(ApiKey, key_id, with_for_update=_BESIDE, populate_existing=True)
    return key.principal_id if key.principal_id != _NOBODY else _own_principal(session, key)


def _own_principal(session: Session, key: ApiKey) -> str:
    """A principal of the key's own, as the migration gives one; but the key opens nothing more than it says."""
    key.principal_id = principals.named(session, f"{key.name} ({key.id})", actor="sweep").id
    session.flush()
    return key.principal_id
