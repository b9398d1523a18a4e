"""The audit log's chain: each entry's hash covers the entry and the hash before it, so none changes unseen.

Whoever writes an entry leaves it unsealed. A sealer, one at a time, puts committed entries in their order. The chain's
end is signed from time to time (a head): entries that are cut off later, or a chain that was made anew, then do not
match it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, Select, func, select, update
from sqlalchemy.orm import Session

from api.store.records import AuditEntry, AuditHead
from api.store.session import now

BEGINNING: Final = "0" * 64  # what stands in the place of the hash before the first entry
SIGNED_EVERY = timedelta(minutes=1)
_SEALERS = 0x1E7E  # the lock of all sealers on PostgreSQL; any number that nothing else uses
_AT_ONCE = 1000


@dataclass(frozen=True)
class Head:
    """The end of the chain: how many entries it has, and the hash of the last."""

    position: int
    hash: str


def columns() -> Select[Any]:
    """Everything of an entry that its hash covers, and what was noted as its place and hash."""
    entry = AuditEntry
    return select(
        entry.id,
        entry.at,
        entry.actor,
        entry.key_id,
        entry.action,
        entry.subject,
        entry.facts,
        entry.position,
        entry.hash,
    )


def link(before: str, position: int, entry: Row[Any]) -> str:
    """The hash, in hex, of the entry at this position: SHA-256 of the hash before it and of the entry as JSON."""
    told = {
        "position": position,
        "id": entry.id,
        "at": entry.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": entry.actor,
        "key_id": entry.key_id,
        "action": entry.action,
        "subject": entry.subject,
        "facts": entry.facts,
    }
    return hashlib.sha256(
        before.encode() + json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def head(session: Session) -> Head:
    """The end of the chain as it is now; position 0 before anything was sealed."""
    last = select(AuditEntry.position, AuditEntry.hash).where(AuditEntry.position.is_not(None))
    found = session.execute(last.order_by(AuditEntry.position.desc()).limit(1)).one_or_none()
    return Head(found.position, found.hash) if found else Head(0, BEGINNING)


def seal(session: Session) -> Head:
    """Put every committed entry, and this transaction's own, into the chain. Returns its end.

    Other sealers wait until this transaction ends, so it must take no lock afterwards that one of them may hold.
    """
    session.flush()
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_SEALERS)))
    end = head(session)
    unsealed = columns().where(AuditEntry.position.is_(None)).order_by(AuditEntry.id).limit(_AT_ONCE)
    while entries := session.execute(unsealed).all():
        places = []
        for entry in entries:
            end = Head(end.position + 1, link(end.hash, end.position + 1, entry))
            places.append({"id": entry.id, "position": end.position, "hash": end.hash})
        session.execute(update(AuditEntry), places)
    return end


def sign_head(session: Session, end: Head, sign: Callable[[Head, datetime], str]) -> bool:
    """Keep the chain's end, just sealed in this transaction, with a signature; True if it was worth one.

    It is where something was sealed since the last head, which is at least a minute old.
    """
    last = session.scalars(select(AuditHead).order_by(AuditHead.position.desc()).limit(1)).one_or_none()
    moment = now(session)
    if end.position == 0 or (last and (last.position >= end.position or moment - last.at < SIGNED_EVERY)):
        return False
    session.add(AuditHead(position=end.position, hash=end.hash, at=moment, signature=sign(end, moment)))
    return True


def newest_head(session: Session) -> AuditHead | None:
    """The last head that was signed."""
    return session.scalars(select(AuditHead).order_by(AuditHead.position.desc()).limit(1)).one_or_none()
