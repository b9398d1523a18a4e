"""The files a job leaves, and which blobs nothing refers to any more."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.store.blobs import Blobs
from api.store.errors import NotFound
from api.store.records import Artifact, ArtifactKind
from api.store.session import now
from api.store.tables import Dataset, Job

# The lock on the blobs that are addressed by their plain content, where two rows may mean one blob.
_PLAIN = 0x4C65746865


@dataclass(frozen=True)
class StoredFile:
    """A file already in the artifact store: its path below the job, its address there, and its size in bytes there."""

    name: str
    digest: str
    size: int
    sealed: bool = False


def add(session: Session, job: Job, kind: ArtifactKind, files: Iterable[StoredFile], step: int | None = None) -> None:
    """Note files as belonging to the job. The caller holds the job's lock."""
    moment = now(session)
    session.add_all(
        Artifact(
            job_id=job.id,
            kind=kind,
            name=file.name,
            step=step,
            digest=file.digest,
            size=file.size,
            sealed=file.sealed,
            attempt=job.attempt,
            created_at=moment,
        )
        for file in files
    )
    session.flush()


def of(session: Session, job_id: str, kind: ArtifactKind | None = None) -> Sequence[Artifact]:
    """The job's files, by name."""
    query = select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.name)
    return session.scalars(query if kind is None else query.where(Artifact.kind == kind)).all()


def named(session: Session, job_id: str, name: str) -> Artifact:
    """One file of the job. Raises NotFound."""
    # A NUL character, which no stored name holds, would be refused by PostgreSQL with an error of its own.
    query = select(Artifact).where(Artifact.job_id == job_id, Artifact.name == name)
    row = session.scalars(query).one_or_none() if "\0" not in job_id + name else None
    if row is None:
        raise NotFound(f"Job {job_id!r} has no artifact {name!r}.")
    return row


def unreferenced(session: Session, digests: Iterable[str]) -> list[str]:
    """Those of the blobs that no artifact and no data set refers to."""
    wanted = set(digests)
    used = set(session.scalars(select(Artifact.digest).where(Artifact.digest.in_(wanted))))
    for column in (Dataset.blob, Dataset.leaves):
        used |= set(session.scalars(select(column).where(column.in_(wanted))))
    return sorted(wanted - used)


def keep_plain(session: Session) -> None:
    """Until this transaction ends no blob of plain content is deleted, so that one seen here can be referred to."""
    if session.get_bind().dialect.name == "postgresql":  # On SQLite whoever writes is alone.
        session.execute(select(func.pg_advisory_xact_lock_shared(_PLAIN)))


def delete_plain(session: Session, blobs: Blobs, digests: Iterable[str]) -> None:
    """Delete those blobs of plain content that nothing refers to. To be called after the commit that let them go, in a
    transaction of its own: somebody may have stored the same content since."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_PLAIN)))
    blobs.delete(unreferenced(session, digests))
