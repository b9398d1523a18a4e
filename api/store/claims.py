"""A worker takes a job: the attempt begins, under a lease, with all that is needed to carry it out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from api.store import (
    adopted,
    aliases,
    artifacts,
    batches,
    checkpoints,
    references,
    sealed,
    turn,
    wrapped,
)
from api.store.checkpoints import Checkpoint
from api.store.errors import Conflict, InvalidSetting, NotFound
from api.store.life import transition
from api.store.lookup import by_id
from api.store.records import Attempt
from api.store.session import now
from api.store.tables import Dataset, Job, Model
from api.store.vault import Vault


@dataclass(frozen=True)
class Claim:
    """One attempt at a job, and all that is needed to carry it out. `attempt` is the fencing token."""

    job_id: str
    attempt: int
    worker: str
    spec: Mapping[str, Any]  # as it was resolved; another version of Lethe may have written it
    spec_digest: str
    model: Model | None  # to be changed; absent where the spec names a path
    models: Mapping[str, Model]  # by id: that one, and every other that the spec names
    datasets: Mapping[str, Dataset] = field(repr=False)  # by id
    keys: Mapping[str, bytes] = field(repr=False)  # what opens each of them, unwrapped
    key: bytes = field(repr=False)  # seals whatever is derived from the forget set alone
    checkpoint: Checkpoint | None  # to go on from
    request_id: str | None = None  # of the call that asked, for logs
    closed: InvalidSetting | None = None  # why keys do not open: there are none then, and the job can only be failed
    unused: Sequence[str] = ()  # blobs of checkpoints that are of no use: delete them after commit
    others: Sequence["Claim"] = ()  # jobs that share the run; each is reported on and ended under its own claim

    @property
    def everyone(self) -> Sequence["Claim"]:
        """The claims of all jobs of this run, this one first."""
        return (self, *self.others)

    @property
    def seal(self) -> bytes:
        """Seals the checkpoints: of a shared run under all its jobs' keys, so that none opens them once one is gone."""
        if not self.others:
            return self.key
        return batches.joint_key([each.key for each in sorted(self.everyone, key=lambda each: each.job_id)])

    @property
    def actor(self) -> str:
        """Who acts, as the audit log writes it."""
        return f"worker:{self.worker}"


def claim_next(session: Session, *, worker: str, lease: float, vault: Vault, most: int = 1) -> Claim | None:
    """Take the queued job whose turn it is for `lease` seconds, and at most so many that share its run, itself counted;
    None where none waits that could begin now.

    Workers that ask at once get different jobs, and do not wait for each other. Raises InvalidSetting where the vault
    opens nothing of what is stored.
    """
    begun: list[str] = []  # aliases on which others have just begun
    while job := turn.first(session, or_(Job.alias.is_(None), Job.alias.not_in(begun)), lock=True):
        if claimed := _begin(session, job, worker, lease, vault, most):
            return claimed
        assert job.alias is not None
        begun.append(job.alias)
    return None


def claim(session: Session, job_id: str, *, worker: str, lease: float, vault: Vault) -> Claim | None:
    """Take this job, out of turn; None if it is not queued, or if somebody else was faster."""
    try:
        job = by_id(session, Job, job_id)
        return _begin(session, job, worker, lease, vault, 1) if job.status == "queued" else None
    except (NotFound, Conflict):
        return None


def _begin(session: Session, job: Job, worker: str, lease: float, vault: Vault, most: int) -> Claim | None:
    """The claim, or None where another job on the same alias was faster."""
    adopted.adopt_job(session, job)
    model_id = job.model_id
    if job.alias is not None:
        # With its row held, no other job on it begins or ends.
        model_id = aliases.get(session, job.alias, lock=True).model_id
        if turn.waits_for(session, job):
            return None
    (leader, *others), unused = batches.gathered(session, job, most)
    if model_id != leader.model_id:
        # The alias has moved on since: what was trained on another model is of no use.
        stale = {checkpoint.step for checkpoint in checkpoints.of(session, leader.id)}
        unused += artifacts.unreferenced(session, checkpoints.remove(session, leader.id, stale))
    newest = next(iter(checkpoints.of(session, leader.id)), None)
    led_by = leader.id if others else None
    begin = partial(_begun, session, worker, lease, vault, newest, {"model_id": model_id, "led_by": led_by})
    return replace(begin(leader), unused=unused, others=[begin(other) for other in others])


def _begun(
    session: Session,
    worker: str,
    lease: float,
    vault: Vault,
    newest: Checkpoint | None,
    changes: Mapping[str, Any],
    job: Job,
) -> Claim:
    until = now(session) + timedelta(seconds=lease)
    job = transition(
        session,
        job,
        "running",
        actor=f"worker:{worker}",
        changes={"attempt": Job.attempt + 1, "leased_by": worker, "lease_until": until, **changes},
        facts={
            "worker": worker,
            "resumes_from": newest.step if newest else None,
            **({"model": changes["model_id"]} if job.alias else {}),
            **({"led_by": changes["led_by"]} if changes["led_by"] else {}),
        },
    )
    session.add(
        Attempt(
            job_id=job.id,
            number=job.attempt,
            worker=worker,
            resumed_from=newest.step if newest else None,
            started_at=now(session),
        )
    )
    registered = {model["id"] for model in references.models(job.spec).values() if "id" in model}
    registered |= {job.model_id} if job.model_id else set()
    named = {m.id: m for m in session.scalars(select(Model).where(Model.id.in_(registered)))}
    uploads = references.uploads(job.spec).values()
    datasets = {d.id: d for d in session.scalars(select(Dataset).where(Dataset.id.in_(uploads)))}
    opened: Mapping[str, bytes] = {}
    own, closed = b"", None
    try:
        opened = {d.id: vault.unwrap(d.key, d.id) for d in datasets.values()}
        own = opened[job.forget_id] if job.forget_id else _own_key(job, vault)
    except InvalidSetting as error:
        # One job's damaged key must not hold up those behind it. A worker with another master key would fail them all.
        if not wrapped.opens_any(session, vault):
            raise
        opened, closed = {}, error
    return Claim(
        job_id=job.id,
        attempt=job.attempt,
        worker=worker,
        spec=job.spec,
        spec_digest=job.spec_digest,
        model=named[job.model_id] if job.model_id else None,
        models=named,
        datasets=datasets,
        keys=opened,
        key=own,
        checkpoint=newest,
        request_id=job.request_id,
        closed=closed,
    )


def _own_key(job: Job, vault: Vault) -> bytes:
    """The job's own key, made at its first attempt. The caller holds the job's lock."""
    if job.key is None:
        job.key = vault.wrap(sealed.new_key(), job.id)
    return vault.unwrap(job.key, job.id)
