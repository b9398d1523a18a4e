"""The audit log: written in the transaction of the deed itself, so that neither is there without the other.

Entries are chained afterwards (`chain`), so that writers never wait for each other.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store.lookup import storable
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
    at: datetime | None = None,
) -> None:
    """Note that `actor`, by the key `key_id`, did `action` to the thing with the id `subject`.

    `facts` must hold no data of a forget set. Where a request is being answered, its id is noted with them.
    """
    at = at or now(session)
    session.add(
        AuditEntry(**entry(actor=actor, action=action, subject=subject, facts=facts or {}, key_id=key_id, at=at))
    )


def entry(
    *, actor: str, action: str, subject: str, facts: Mapping[str, Any], key_id: str | None, at: datetime
) -> dict[str, Any]:
    """The columns of an entry, for whoever writes many at once."""
    told = dict(facts)
    request = structlog.contextvars.get_contextvars().get("request_id")
    if request is not None:
        told.setdefault("request_id", request)
    return {"at": at, "actor": actor, "key_id": key_id, "action": action, "subject": subject, "facts": told}


def about(session: Session, subject: str) -> Sequence[AuditEntry]:
    """Everything done to one thing, oldest first."""
    return session.scalars(select(AuditEntry).where(AuditEntry.subject == subject).order_by(AuditEntry.id)).all()


def actions(session: Session) -> Sequence[str]:
    """Every action of which there is an entry, by name. It reads the whole log."""
    return session.scalars(select(AuditEntry.action).distinct().order_by(AuditEntry.action)).all()


def page(
    session: Session,
    *,
    subject: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    after: int | None = None,
    limit: int = 50,
) -> tuple[Sequence[AuditEntry], bool]:
    """Entries, the newest first and older than `after`, and whether there are more."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit + 1)
    for name, wanted in (("subject", subject), ("actor", actor), ("action", action)):
        if wanted is not None:
            query = query.where(getattr(AuditEntry, name) == storable(wanted, name))
    if after is not None:
        query = query.where(AuditEntry.id < after)
    found = session.scalars(query).all()
    return found[:limit], len(found) > limit
