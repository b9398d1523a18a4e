"""Jobs that share one run: which may, which do, and what their checkpoints are worth.

`Job.batch` is a digest of all that such jobs must have in common, beside the principal that asks; `Job.led_by` is the
job whose run it is, also for that job itself. A run's checkpoints belong to its leader and hold the data of all: only
the same jobs go on from one. Where one of them has left, the checkpoints are dropped and the others are free to come
together anew.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from api.store import artifacts, checkpoints, turn
from api.store.records import Artifact
from api.store.tables import Job

# What each request of a run may have of its own, beside its forget set.
_OWN = frozenset({"batch", "gates", "profile", "reason", "reference", "received_at", "priority"})


def in_common(spec: Mapping[str, Any]) -> str | None:
    """Digest of what jobs must ask for alike to share a run; None for a job that is to be alone."""
    if not spec.get("batch"):
        return None
    common = {name: value for name, value in spec.items() if name not in _OWN}
    common["data"] = {name: value for name, value in spec["data"].items() if name != "forget"}
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()


def gathered(session: Session, job: Job, most: int) -> tuple[list[Job], list[str]]:
    """The queued jobs that begin with this one, held, the leader first; and blobs to delete after commit.

    Jobs that were interrupted together go on together, if none has left; else up to `most` that have begun nothing yet.
    The caller holds the job's lock.
    """
    if job.led_by is not None:
        together = _interrupted(session, job.led_by)
        if 1 < len(together) <= most:
            return sorted(together, key=lambda one: one.id != job.led_by), []
        unused = _parted(session, job.led_by)
    else:
        unused = []
    # A job with a checkpoint of its own goes on from there, alone. And whoever still counts as of its last run would be
    # taken for one of the next.
    if job.batch is None or most < 2 or checkpoints.of(session, job.id) or members(session, job.id):
        return [job], unused
    begun = exists().where(Artifact.job_id == Job.id, Artifact.kind == "checkpoint")
    alike = (
        select(Job)
        .where(Job.status == "queued", Job.batch == job.batch, Job.id != job.id, Job.led_by.is_(None), ~begun)
        .where(Job.model_id.is_(None) | (Job.model_id == job.model_id), Job.principal_id == job.principal_id)
        .order_by(*turn.ORDER)
        .limit(most - 1)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    return [job, *session.scalars(alike)], unused


def members(session: Session, job_id: str) -> list[str]:
    """Ids of the jobs in the run that this one leads, itself among them; none where it leads none."""
    return list(session.scalars(select(Job.id).where(Job.led_by == job_id).order_by(Job.id)))


def joint_key(keys: Sequence[bytes]) -> bytes:
    """The key that seals what a run leaves of several: without any one of theirs it cannot be had."""
    return HKDF(SHA256(), 32, None, b"lethe shared run").derive(b"".join(keys))


def _interrupted(session: Session, leader: str) -> list[Job]:
    """The jobs of that run, held, if every one of them waits; else none."""
    count = len(members(session, leader))
    waiting = select(Job).where(Job.led_by == leader, Job.status == "queued", Job.batch.is_not(None))
    held = waiting.order_by(Job.id).with_for_update(skip_locked=True).execution_options(populate_existing=True)
    found = list(session.scalars(held))
    return found if len(found) == count else []


def _parted(session: Session, leader: str) -> list[str]:
    """Free the jobs of a run that not all can go on with. Returns blobs that nothing refers to any more.

    A job that somebody else holds is left to whoever claims it, with the checkpoints where it is the leader: workers
    that each hold one of a run would wait for each other.
    """
    waiting = select(Job).where(Job.led_by == leader, Job.status.not_in(("running", "succeeded")))
    held = waiting.order_by(Job.id).with_for_update(skip_locked=True).execution_options(populate_existing=True)
    freed = list(session.scalars(held))
    for job in freed:
        job.led_by = None
    removed = []
    if leader in {job.id for job in freed}:
        removed = checkpoints.remove(session, leader, {kept.step for kept in checkpoints.of(session, leader)})
    session.flush()
    return artifacts.unreferenced(session, removed)
