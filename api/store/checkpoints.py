"""Checkpoints of a job: complete once their rows are committed, the newest two kept.

All their files are sealed. Half-trained weights still know the forget set; and a sealed file has an address of its own,
so that pruning can never take a blob that another job is about to refer to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store import artifacts, events
from api.store.artifacts import StoredFile
from api.store.records import Artifact
from api.store.tables import Job

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the optimizer step it was taken after, and its files, named as in its folder."""

    step: int
    files: tuple[StoredFile, ...]


def of(session: Session, job_id: str) -> list[Checkpoint]:
    """The job's checkpoints, the newest first."""
    query = select(Artifact).where(Artifact.job_id == job_id, Artifact.kind == "checkpoint").order_by(Artifact.name)
    by_step: dict[int, list[StoredFile]] = {}
    for row in session.scalars(query):
        assert row.step is not None
        name = row.name.removeprefix(_folder(row.step))
        by_step.setdefault(row.step, []).append(StoredFile(name, row.digest, row.size, row.sealed))
    return [Checkpoint(step, tuple(by_step[step])) for step in sorted(by_step, reverse=True)]


def write(session: Session, job: Job, step: int, files: Sequence[StoredFile]) -> list[str]:
    """Replace the checkpoint of this step, prune, and return the blobs to delete once this is committed.

    The caller holds the job's lock.
    """
    assert all(file.sealed for file in files), "a checkpoint's files must be sealed"
    removed = remove(session, job.id, {step})
    named = [replace(file, name=_folder(step) + file.name) for file in files]
    artifacts.add(session, job, "checkpoint", named, step)
    removed += remove(session, job.id, {checkpoint.step for checkpoint in of(session, job.id)[KEPT:]})
    events.append(session, job, "checkpoint", {"step": step, "size": sum(file.size for file in files)})
    return artifacts.unreferenced(session, removed)


def remove(session: Session, job_id: str, steps: set[int]) -> list[str]:
    """Delete the rows of these checkpoints and return the blobs they referred to. The caller holds the job's lock."""
    query = select(Artifact).where(Artifact.job_id == job_id, Artifact.kind == "checkpoint", Artifact.step.in_(steps))
    rows = session.scalars(query).all()
    for row in rows:
        session.delete(row)
    session.flush()
    return [row.digest for row in rows]


def _folder(step: int) -> str:
    return f"checkpoints/{step}/"
