"""Destroys data whose time is up, and signs the record of whatever was destroyed, by whomever."""

from datetime import timedelta
from io import BytesIO

import structlog
from sqlalchemy.orm import Session

from api.store import artifacts, destroyed, retention
from api.store.artifacts import StoredFile
from api.store.blobs import Blobs
from api.store.errors import Conflict
from api.store.session import Database, now
from core.report.destruction import DestroyedSet, Destruction, sign_destruction
from worker.evidence import told

log = structlog.get_logger()

NAME = "destruction.dsse.json"


def destroy_due(database: Database, blobs: Blobs, days: float, worker: str) -> int:
    """Destroy what no job has needed for so many days; returns how many data sets and keys it was.

    Keys go first, all of them: the artifact store may be away, and what is sealed under a key that is gone is nothing.
    Files that could not be removed are orphans.
    """
    with database.reading() as session:
        before = now(session) - timedelta(days=days)
        sets, jobs = retention.due(session, before), retention.jobs_due(session, before)
    files: list[str] = []
    count = 0
    for due_id in (*sets, *jobs):
        try:
            with database.transaction() as session:
                if due_id in sets:
                    gone = retention.destroy(session, due_id, actor=worker, why="retention", before=before)
                else:
                    gone = retention.destroy_own(session, due_id, actor=worker, before=before)
        except Conflict:
            continue  # It is needed again: somebody was faster.
        files += gone
        count += 1
        log.info("data destroyed", subject=due_id, files=len(gone))
    blobs.delete(files)
    return count


def record_destroyed(database: Database, blobs: Blobs, signing_key: bytes) -> int:
    """Sign the record of every job with a report whose data was destroyed; returns how many."""
    with database.reading() as session:
        jobs = retention.unrecorded(session)
    for job_id in jobs:
        with database.transaction() as session:
            old = _record(session, blobs, job_id, signing_key)
        blobs.delete(old)
    return len(jobs)


def _record(session: Session, blobs: Blobs, job_id: str, signing_key: bytes) -> list[str]:
    """Returns the blob of an earlier record, which this one takes the place of: it tells of everything so far."""
    facts = destroyed.of(session, job_id)
    if facts is None:
        return []  # Another worker was faster.
    record = Destruction(
        job=job_id,
        why=facts.why,
        by=facts.by,
        sets=[
            DestroyedSet(name=name, commitment=commitment, destroyed_at=told(at)) for name, commitment, at in facts.sets
        ],
        own_key=facts.own_key,
        kept=facts.kept,
        recorded_at=told(now(session)),
    )
    report = {file.name: file.digest for kind in ("report", "envelope") for file in artifacts.of(session, job_id, kind)}
    blob = blobs.put(BytesIO(sign_destruction(record, report, signing_key)))
    return destroyed.recorded(session, job_id, StoredFile(NAME, blob.digest, blob.size))
