"""Principals and their API keys, `lethe_<prefix>_<secret and checksum>`: shown once, kept only as an HMAC under the
deployment's secret. A key can do what its scopes say; `admin` is all of them."""

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from api.store import audit
from api.store.ids import base32
from api.store.lookup import by_id, storable
from api.store.session import Database, now
from api.store.tables import ApiKey, Principal

_FORM = re.compile(r"(lethe_([0-9a-z]{8})_[0-9a-z]{32})([0-9a-z]{7})")
USE_NOTED_EVERY = timedelta(minutes=1)
Scope = Literal["jobs:read", "jobs:write", "jobs:approve", "datasets:write", "models:write", "audit:read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


def create(
    session: Session,
    secret: bytes,
    *,
    name: str,
    actor: str,
    principal: str | None = None,
    scopes: Sequence[Scope] = ("admin",),
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its text, which cannot be had again. `secret` is the deployment's; without it no key verifies.

    `principal` is the name of whoever it is for, the key's own where none is given; one that is new is entered.
    """
    storable(name, "name")
    owner = principal_named(session, principal or name, actor=actor)
    prefix = base32(secrets.randbits(40), 8)
    body = f"lethe_{prefix}_{base32(secrets.randbits(160), 32)}"
    text = body + _checksum(body)
    key = ApiKey(
        principal_id=owner.id,
        scopes=sorted(scopes),
        name=name,
        prefix=prefix,
        hash=_hash(text, secret),
        created_at=now(session),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    facts = {"name": name, "principal": owner.id, "scopes": key.scopes}
    audit.append(session, actor=actor, action="key.created", subject=key.id, facts=facts)
    return key, text


def principal_named(session: Session, name: str, *, actor: str) -> Principal:
    """The principal of this name, entered where there is none yet."""
    found = session.scalars(select(Principal).where(Principal.name == name)).one_or_none()
    if found is None:
        found = Principal(name=name, created_at=now(session))
        session.add(found)
        session.flush()
        audit.append(session, actor=actor, action="principal.created", subject=found.id, facts={"name": name})
    return found


def verify(database: Database, presented: str, secret: bytes) -> ApiKey | None:
    """The key that `presented` is the text of, unless it is unknown, altered, revoked or expired.

    Its use is noted at most once a minute; otherwise nothing is written, so that reading requests stay readers.
    """
    form = _FORM.fullmatch(presented)
    # The checksum keeps typing errors from the database. It protects nothing: the HMAC does.
    if form is None or _checksum(form[1]) != form[3]:
        return None
    with database.reading() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.prefix == form[2])).one_or_none()
        moment = now(session)
    # An unknown prefix takes as long as a wrong secret.
    right = hmac.compare_digest(_hash(presented, secret), key.hash if key else "0" * 64)
    if key is None or not right or key.revoked_at is not None or (key.expires_at and key.expires_at <= moment):
        return None
    stale = moment - USE_NOTED_EVERY
    if key.last_used_at is None or key.last_used_at <= stale:
        with database.transaction() as session:
            session.execute(
                update(ApiKey)
                .where(ApiKey.id == key.id, or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= stale))
                .values(last_used_at=moment)
            )
    return key


def may(key: ApiKey, scope: Scope) -> bool:
    """Whether the key's scopes cover this one."""
    return scope in key.scopes or "admin" in key.scopes


def any_exists(session: Session) -> bool:
    """Whether a key was ever made: a new service makes its first one by itself."""
    return session.scalars(select(ApiKey.id).limit(1)).first() is not None


def revoke(session: Session, key_id: str, *, actor: str) -> ApiKey:
    """From now on the key opens nothing; revoking again changes nothing. Raises NotFound."""
    key = by_id(session, ApiKey, key_id, lock=True)
    if key.revoked_at is None:
        key.revoked_at = now(session)
        audit.append(session, actor=actor, action="key.revoked", subject=key.id)
    return key


def every(session: Session) -> Sequence[ApiKey]:
    """All keys ever made, the newest first."""
    return session.scalars(select(ApiKey).order_by(ApiKey.id.desc())).all()


def usable(session: Session, key_id: str) -> bool:
    """Whether the key still opens something: for whoever was let in with it and stays."""
    key = by_id(session, ApiKey, key_id)
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now(session))


def _hash(text: str, secret: bytes) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    return base32(zlib.crc32(body.encode()), 7)
