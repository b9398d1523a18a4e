"""The audit log: written in the transaction of the deed itself, so that neither is there without the other."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store.records import AuditEntry
from api.store.session import now


def append(
    session: Session,
    *,
    actor: str,
    action: str,
    subject: str,
    facts: Mapping[str, Any] | None = None,
    key_id: str | None = None,
) -> None:
    """Note that `actor`, by the key `key_id`, did `action` to the thing with the id `subject`.

    `facts` must hold no data of a forget set.
    """
    session.add(
        AuditEntry(at=now(session), actor=actor, key_id=key_id, action=action, subject=subject, facts=dict(facts or {}))
    )


def about(session: Session, subject: str) -> Sequence[AuditEntry]:
    """Everything done to one thing, oldest first."""
    return session.scalars(select(AuditEntry).where(AuditEntry.subject == subject).order_by(AuditEntry.id)).all()
