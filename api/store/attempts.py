"""What a worker does with the job that it has claimed: report on it, and end the attempt.

Every write is fenced: it holds only while the job still runs under the attempt that the worker claimed, and raises
LeaseLost, with nothing written, once another attempt or a cancellation has taken the job away.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.store import (
    aliases,
    artifacts,
    checkpoints,
    events,
    metrics,
    models,
)
from api.store.artifacts import StoredFile
from api.store.claims import Claim
from api.store.life import DEFAULT_CAP, give_back, transition
from api.store.lookup import by_id
from api.store.metrics import Measurement
from api.store.records import ArtifactKind, Attempt
from api.store.session import now
from api.store.tables import Job, Verdict
from core.errors import LeaseLost


@dataclass(frozen=True)
class Note:
    """A line for the job's history."""

    kind: str
    data: Mapping[str, Any]


def record(
    session: Session,
    claim: Claim,
    *,
    lease: float,
    progress: Mapping[str, Any] | None = None,
    notes: Iterable[Note] = (),
    measurements: Iterable[Measurement] = (),
) -> bool:
    """Renew the lease by `lease` seconds from now and write what happened; True if the job is to be cancelled.

    `progress` replaces the earlier one. Raises LeaseLost.
    """
    values: dict[str, Any] = {"lease_until": now(session) + timedelta(seconds=lease)}
    if progress is not None:
        values["progress"] = dict(progress)
    job = session.scalars(
        update(Job)
        .where(Job.id == claim.job_id, Job.attempt == claim.attempt, Job.status == "running")
        .values(values)
        .returning(Job),
        execution_options={"synchronize_session": False, "populate_existing": True},
    ).one_or_none()
    if job is None:
        raise _lost(claim)
    for note in notes:
        events.append(session, job, note.kind, note.data)
    metrics.upsert(session, job.id, job.attempt, measurements)
    return job.cancel_requested


def save_checkpoint(session: Session, claim: Claim, step: int, files: Sequence[StoredFile]) -> list[str]:
    """Make the files, all sealed under `claim.seal`, the checkpoint of this step; older ones than two are dropped.

    Returns the digests of blobs that nothing refers to any more: delete them after commit. Raises LeaseLost.
    """
    return checkpoints.write(session, _held(session, claim), step, files)


def discard_checkpoint(session: Session, claim: Claim, step: int) -> list[str]:
    """Forget a checkpoint that turned out damaged. Returns blobs to delete after commit. Raises LeaseLost."""
    job = _held(session, claim)
    removed = checkpoints.remove(session, job.id, {step})
    events.append(session, job, "checkpoint_discarded", {"step": step})
    return artifacts.unreferenced(session, removed)


def release(
    session: Session, claim: Claim, *, reason: str, counts: bool, cap: int = DEFAULT_CAP, apart: bool = False
) -> Job:
    """End the attempt without an answer, so that another may go on: queued, or cancelled where that was asked for.

    `counts` says whether it is the job's fault (its engine died) or not (the worker leaves); when `cap` attempts have
    counted, the job fails with `attempts_exhausted`. `apart`: from now on it shares no run. Raises LeaseLost.
    """
    job = _held(session, claim)
    return give_back(session, job, actor=claim.actor, reason=reason, counts=counts, cap=cap, apart=apart)


def cancelled(session: Session, claim: Claim) -> Job:
    """The engine has stopped as the requester asked. Raises LeaseLost."""
    return transition(session, _held(session, claim), "cancelled", actor=claim.actor, reason="cancel requested")


def fail(session: Session, claim: Claim, error: Mapping[str, Any]) -> Job:
    """The job cannot succeed; `error` is `{code, message, param, retryable}` as `LetheError.as_dict` gives it.

    Raises LeaseLost.
    """
    job = _held(session, claim)
    facts = {"code": error["code"]}
    return transition(session, job, "failed", actor=claim.actor, changes={"error": dict(error)}, facts=facts)


def finish(
    session: Session,
    claim: Claim,
    *,
    verdict: Verdict,
    files: Mapping[ArtifactKind, Sequence[StoredFile]],
    sign: Callable[[Session, Job], Mapping[ArtifactKind, StoredFile]],
    model_digest: str | None = None,
    promotes: bool = True,
) -> list[str]:
    """The job has succeeded. `files` are already stored; `sign` makes and stores the report and its signed envelope.

    The files of kind `model`, whose digest is `model_digest`, become a model that jobs may start from, and a job on an
    alias that has passed lets the alias stand for it, if it `promotes`: of several that share a run one does, for all.

    `sign` is called only once the fence has held, so an attempt that lost its lease never signs. The checkpoints go:
    they know the forget set, and nothing resumes a job that has succeeded. Returns the digests of blobs that nothing
    refers to any more: delete them after commit. Raises LeaseLost.
    """
    job = _held(session, claim)
    removed = checkpoints.remove(session, job.id, {checkpoint.step for checkpoint in checkpoints.of(session, job.id)})
    artifacts.keep_plain(session)
    for kind, stored in files.items():
        artifacts.add(session, job, kind, stored)
    signed = sign(session, job)
    for kind, file in signed.items():
        artifacts.add(session, job, kind, [file])
    made = models.made_by(session, job, model_digest, files.get("model", ())) if model_digest else None
    if made and job.alias and verdict == "passed" and promotes:
        aliases.move_on(session, job, made, actor=claim.actor)
    facts = {"verdict": verdict, "envelope": signed["envelope"].digest}
    transition(session, job, "succeeded", actor=claim.actor, changes={"verdict": verdict}, facts=facts)
    return artifacts.unreferenced(session, removed)


def outcome(session: Session, claim: Claim) -> str | None:
    """The status that the job came into when this attempt ended; None while it has not."""
    query = select(Attempt.outcome).where(Attempt.job_id == claim.job_id, Attempt.number == claim.attempt)
    return session.scalar(query)


def left_over(session: Session, job_id: str, digests: Iterable[str]) -> list[str]:
    """Those of the blobs that no row refers to, once whatever is being written about the job has been written."""
    by_id(session, Job, job_id, lock=True)
    return artifacts.unreferenced(session, digests)


def _held(session: Session, claim: Claim) -> Job:
    query = select(Job).where(Job.id == claim.job_id, Job.attempt == claim.attempt, Job.status == "running")
    job = session.scalars(query.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if job is None:
        raise _lost(claim)
    return job


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"Attempt {claim.attempt} no longer holds job {claim.job_id}.")
