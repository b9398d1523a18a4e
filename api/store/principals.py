"""Principals: the people and programs that act through keys. Four eyes are two of these, however many keys each has."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.store import audit
from api.store.errors import Conflict
from api.store.lookup import by_id, newest, storable
from api.store.session import now
from api.store.tables import Principal


def create(session: Session, name: str, *, actor: str, key_id: str | None = None) -> Principal:
    """Enter a new principal. Raises Conflict where there is one of this name."""
    storable(name, "name")
    made = Principal(name=name, created_at=now(session))
    try:
        with session.begin_nested():
            session.add(made)
    except IntegrityError:
        raise Conflict(f"There is a principal {name!r} already. GET /principals lists them.", param="name") from None
    audit.append(session, actor=actor, key_id=key_id, action="principal.created", subject=made.id, facts={"name": name})
    return made


def named(session: Session, name: str, *, actor: str, key_id: str | None = None) -> Principal:
    """The principal of this name, entered where there is none yet."""
    found = session.scalars(select(Principal).where(Principal.name == storable(name, "name"))).one_or_none()
    return found or create(session, name, actor=actor, key_id=key_id)


def get(session: Session, principal_id: str) -> Principal:
    """Raises NotFound."""
    return by_id(session, Principal, principal_id)


def page(session: Session, *, after: str | None = None, limit: int = 50) -> tuple[Sequence[Principal], bool]:
    """Principals, the newest first, and whether there are more."""
    return newest(session, select(Principal), Principal.id, after, limit)


def every(session: Session) -> Sequence[Principal]:
    """All of them, the newest first."""
    return session.scalars(select(Principal).order_by(Principal.id.desc())).all()


def disable(session: Session, principal_id: str, *, actor: str, key_id: str | None = None) -> Principal:
    """From now on none of its keys opens anything; disabling again changes nothing. Raises NotFound."""
    found = by_id(session, Principal, principal_id, lock=True)
    if found.disabled_at is None:
        found.disabled_at = now(session)
        audit.append(session, actor=actor, key_id=key_id, action="principal.disabled", subject=found.id)
    return found
