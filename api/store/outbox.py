"""The outbox: messages to webhooks, written in the transaction of the event that they tell of, so that neither is there
without the other; and the tries at delivering them, of which any number of processes take theirs.

A message is thin. It says what happened to which thing, and never holds a spec, data, or the text of an error.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

from sqlalchemy import bindparam, delete, or_, select, update
from sqlalchemy.orm import Session

from api.store import audit, events
from api.store.records import Delivery, Event, Webhook
from api.store.session import now, written
from api.store.tables import Dataset, Job, Model, Principal, Status

PING = "ping"
Kind = Literal[
    "job.awaiting_approval",
    "job.queued",
    "job.running",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "job.rejected",
    "job.due_soon",
    "job.late",
    "dataset.destroyed",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Seconds before the next try, as Standard Webhooks proposes them; after the last the message is dead.
WAITS = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
_SPREAD = 0.2  # a wait is longer by up to this share, so that what failed together is not tried together again
KEPT = timedelta(days=30)  # after the last try, of a message that is delivered or dead
LEASE = 60.0  # seconds: a try takes ten at most, and a process that is killed in one never says how it ended
_UNDER_WAY: tuple[Status, ...] = ("awaiting_approval", "queued", "running")
# Asked at every event, so it is put together once.
_LISTENING = (
    select(Webhook)
    .join(Principal, Principal.id == Webhook.principal_id)
    .where(
        Webhook.deleted_at.is_(None),
        Webhook.disabled_at.is_(None),
        Principal.disabled_at.is_(None),
        or_(Webhook.every_job, Webhook.principal_id == bindparam("owner")),
    )
)


@dataclass(frozen=True)
class Try:
    """One try at one message, which is this process's until its lease has passed."""

    id: str
    number: int  # from 1: the fencing token of its outcome
    webhook_id: str
    principal_id: str  # whose webhook it is
    url: str
    wrapped: bytes  # the webhook's secret, as the vault wrapped it
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a try ended: the status that was answered, if any, and what went wrong, in a word of ours."""

    answered: int | None
    error: str | None


def tell_of_job(session: Session, job: Job, kind: str | None = None) -> None:
    """Tell whoever may see the job that it has come into its status, or of another event of this kind."""
    kind = kind or f"job.{job.status}"
    hooks = listening(session, kind, job.principal_id)
    if not hooks:
        return
    made = session.scalar(select(Model.id).where(Model.job_id == job.id)) if job.status == "succeeded" else None
    told = {
        "id": job.id,
        "status": job.status,
        "verdict": job.verdict,
        "attempt": job.attempt,
        "reference": job.reference,
        "model": job.model_id,
        "output_model": made,
        "due_at": written(job.due_at),
        "error": job.error["code"] if job.error else None,
    }
    _tell(session, hooks, kind, told)


def tell_of_dataset(session: Session, dataset: Dataset) -> None:
    """Tell whoever may see the data set that it was destroyed."""
    hooks = listening(session, "dataset.destroyed", dataset.principal_id)
    destroyed = written(dataset.destroyed_at) if dataset.destroyed_at else None
    _tell(session, hooks, "dataset.destroyed", {"id": dataset.id, "destroyed_at": destroyed})


def tell_of_due_dates(session: Session, *, soon: timedelta, limit: int = 100) -> Sequence[str]:
    """Note jobs that became late, or will soon, in their history, and tell of them: once each, and once more where the
    due date was extended. Returns their ids."""
    moment = now(session)
    told = []
    for kind, until in (("late", moment), ("due_soon", moment + soon)):
        before = select(Event.id).where(
            Event.job_id == Job.id,
            # Whoever was told that a job is late need not hear that it will be.
            Event.kind.in_(("late", kind)),
            or_(Job.extended_at.is_(None), Event.at > Job.extended_at),
        )
        due = (
            select(Job)
            .where(Job.status.in_(_UNDER_WAY), Job.due_at < until, ~before.exists())
            .order_by(Job.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        for job in session.scalars(due).all():
            events.append(session, job, kind, {"due_at": written(job.due_at)})
            tell_of_job(session, job, f"job.{kind}")
            told.append(job.id)
    return told


def ping(session: Session, webhook: Webhook) -> Delivery:
    """A message that tells of nothing: does the receiver get it, and does it accept the signature?"""
    return _tell(session, [webhook], PING, {"webhook": webhook.id})[0]


def take(session: Session, *, busy: Iterable[str] = ()) -> Try | None:
    """The message that has waited longest for its next try, unless its webhook or its principal is among the `busy`."""
    names = list(busy)
    left_out = select(Webhook.id).where(or_(Webhook.id.in_(names), Webhook.principal_id.in_(names)))
    query = (
        select(Delivery)
        .where(Delivery.status == "pending", Delivery.next_at <= now(session), Delivery.webhook_id.not_in(left_out))
        .order_by(Delivery.next_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    while delivery := session.scalars(query).one_or_none():
        hook = session.get_one(Webhook, delivery.webhook_id)
        if _alive(session, hook):
            delivery.tries += 1
            delivery.next_at = now(session) + timedelta(seconds=LEASE)
            return Try(delivery.id, delivery.tries, hook.id, hook.principal_id, hook.url, hook.secret, delivery.payload)
        # Removed between the event and now, or its principal disabled: there is nobody to tell.
        delivery.status, delivery.error = "dead", "webhook_removed"
    return None


def any_due(session: Session) -> bool:
    """Whether there is something to take: reading, so that an idle process locks nothing."""
    due = select(Delivery.id).where(Delivery.status == "pending", Delivery.next_at <= now(session)).limit(1)
    return session.scalar(due) is not None


def ended(session: Session, tried: Try, outcome: Outcome) -> str | None:
    """Write down how a try ended; the message's status from now on, or None where the try was no longer this one's."""
    query = select(Delivery).where(
        Delivery.id == tried.id, Delivery.tries == tried.number, Delivery.status == "pending"
    )
    delivery = session.scalars(query.with_for_update()).one_or_none()
    if delivery is None:
        return None
    moment = now(session)
    delivery.answered, delivery.error = outcome.answered, outcome.error
    if outcome.error is None:
        delivery.status, delivery.delivered_at = "delivered", moment
    elif outcome.answered == 410:
        delivery.status = "dead"
        _disable(session, tried.webhook_id)
    elif tried.number > len(WAITS):
        delivery.status = "dead"
    else:
        wait = WAITS[tried.number - 1] * (1 + _SPREAD * random.random())
        delivery.next_at = moment + timedelta(seconds=wait)
    return delivery.status


def prune(session: Session, *, limit: int = 1000) -> None:
    """Remove messages that nobody will ask about any more; they name cases."""
    old = (Delivery.status.in_(("delivered", "dead")), Delivery.next_at < now(session) - KEPT)
    found = session.scalars(select(Delivery.id).where(*old).limit(limit)).all()
    # Asked again: one may be sent anew at this moment.
    session.execute(delete(Delivery).where(Delivery.id.in_(found), *old))


def listening(session: Session, kind: str, principal_id: str) -> list[Webhook]:
    """The webhooks that want events of this kind and may see what belongs to the principal."""
    hooks = session.scalars(_LISTENING, {"owner": principal_id})
    return [hook for hook in hooks if not hook.kinds or kind in hook.kinds]


def _alive(session: Session, hook: Webhook) -> bool:
    owner = session.get_one(Principal, hook.principal_id)
    return hook.deleted_at is None and hook.disabled_at is None and owner.disabled_at is None


def _tell(session: Session, hooks: Sequence[Webhook], kind: str, data: Mapping[str, Any]) -> list[Delivery]:
    if not hooks:
        return []
    moment = now(session)
    payload = {"type": kind, "timestamp": written(moment), "data": dict(data)}
    messages = [
        Delivery(webhook_id=hook.id, kind=kind, payload=payload, status="pending", next_at=moment, created_at=moment)
        for hook in hooks
    ]
    session.add_all(messages)
    session.flush()
    return messages


def _disable(session: Session, webhook_id: str) -> None:
    hook = session.scalars(select(Webhook).where(Webhook.id == webhook_id).with_for_update()).one()
    if hook.disabled_at is None:
        hook.disabled_at = now(session)
        audit.append(session, actor="webhooks", action="webhook.disabled", subject=hook.id, facts={"answered": 410})
    others = update(Delivery).where(Delivery.webhook_id == webhook_id, Delivery.status == "pending")
    session.execute(others.values(status="dead", error="webhook_disabled"))
