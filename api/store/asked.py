"""Who asked for a job, who agreed, and until when: what its report says of the request besides the spec."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store.tables import Job, Principal


def of(session: Session, job: Job) -> Mapping[str, Any]:
    """By the names of the report's fields; what there is not is None."""
    named = select(Principal.id, Principal.name).where(Principal.id.in_({job.principal_id, job.approved_by}))
    names = {row.id: row.name for row in session.execute(named)}
    return {
        "job": job.id,
        "reason": job.reason,
        "reference": job.reference,
        "submitted_by": {"id": job.principal_id, "name": names[job.principal_id]},
        "approved_by": {"id": job.approved_by, "name": names[job.approved_by]} if job.approved_by else None,
        "approved_at": job.approved_at,
        "received_at": job.received_at or job.created_at,
        "due_at": job.due_at,
    }
