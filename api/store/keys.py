"""API keys, `lethe_<prefix>_<secret and checksum>`: shown once, kept only as an HMAC under the deployment's secret.
A key acts for its principal and can do what its scopes say; `admin` is all of them."""

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

from api.store import audit, principals
from api.store.errors import Conflict
from api.store.ids import base32
from api.store.lookup import by_id, newest, storable
from api.store.session import Database, now
from api.store.tables import ApiKey, Principal

_FORM = re.compile(r"(lethe_([0-9a-z]{8})_[0-9a-z]{32})([0-9a-z]{7})")
USE_NOTED_EVERY = timedelta(minutes=1)
Scope = Literal["jobs:read", "jobs:write", "jobs:approve", "datasets:write", "models:write", "audit:read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_SEE_ALL: tuple[Scope, ...] = ("jobs:read", "jobs:approve", "audit:read")
# Why a text opens nothing. Callers are not told which; the audit log is.
Fault = Literal["malformed", "unknown", "revoked", "expired", "disabled"]


def create(
    session: Session,
    secret: bytes,
    *,
    name: str,
    actor: str,
    principal: str | None = None,
    scopes: Sequence[Scope] = ("admin",),
    expires_at: datetime | None = None,
    key_id: str | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its text, which cannot be had again. `secret` is the deployment's; without it no key verifies.

    `principal` is the name of whoever it is for, the key's own where none is given; one that is new is entered. Raises
    Conflict where that one is disabled. `key_id` is the key by which `actor` acts.
    """
    storable(name, "name")
    owner = principals.named(session, principal or name, actor=actor, key_id=key_id)
    if owner.disabled_at is not None:
        raise Conflict(f"Principal {owner.id} is disabled: no key of its own would open anything.", param="principal")
    prefix = base32(secrets.randbits(40), 8)
    body = f"lethe_{prefix}_{base32(secrets.randbits(160), 32)}"
    text = body + _checksum(body)
    key = ApiKey(
        principal_id=owner.id,
        scopes=sorted(set(scopes)),
        name=name,
        prefix=prefix,
        hash=_hash(text, secret),
        created_at=now(session),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    facts = {"name": name, "principal": owner.id, "scopes": key.scopes}
    audit.append(session, actor=actor, key_id=key_id, action="key.created", subject=key.id, facts=facts)
    return key, text


def examine(database: Database, presented: str, secret: bytes) -> tuple[ApiKey | None, Fault | None]:
    """The key whose text `presented` is, and why it opens nothing, if it does not. No key: nobody knows the text."""
    form = formed(presented)
    if form is None:
        return None, "malformed"
    with database.reading() as session:
        disabled = select(Principal.disabled_at).where(Principal.id == ApiKey.principal_id).scalar_subquery()
        row = session.execute(select(ApiKey, disabled).where(ApiKey.prefix == form)).one_or_none()
        moment = now(session)
    # An unknown prefix takes as long as a wrong secret.
    right = hmac.compare_digest(_hash(presented, secret), row[0].hash if row else "0" * 64)
    if row is None or not right:
        return None, "unknown"
    key, disabled_at = row
    if key.revoked_at is not None:
        return key, "revoked"
    if key.expires_at is not None and key.expires_at <= moment:
        return key, "expired"
    if disabled_at is not None:
        return key, "disabled"
    _note_use(database, key, moment)
    return key, None


def verify(database: Database, presented: str, secret: bytes) -> ApiKey | None:
    """The key that `presented` is the text of, where it opens something: neither it nor its principal was shut out.

    Its use is noted at most once a minute; otherwise nothing is written, so that reading requests stay readers.
    """
    key, fault = examine(database, presented, secret)
    return key if fault is None else None


def formed(presented: str) -> str | None:
    """The prefix, of a text that has a key's form. The checksum keeps typing errors from the database. It protects
    nothing: the HMAC does."""
    form = _FORM.fullmatch(presented)
    return form[2] if form and _checksum(form[1]) == form[3] else None


def _note_use(database: Database, key: ApiKey, moment: datetime) -> None:
    stale = moment - USE_NOTED_EVERY
    if key.last_used_at is None or key.last_used_at <= stale:
        with database.transaction() as session:
            session.execute(
                update(ApiKey)
                .where(ApiKey.id == key.id, or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= stale))
                .values(last_used_at=moment)
            )


def may(key: ApiKey, scope: Scope) -> bool:
    """Whether the key's scopes cover this one."""
    return scope in key.scopes or "admin" in key.scopes


def sees_all(key: ApiKey) -> bool:
    """Whether the key sees every job; any other sees those of its own principal."""
    return any(may(key, scope) for scope in _SEE_ALL)


def any_exists(session: Session) -> bool:
    """Whether a key was ever made: a new service makes its first one by itself."""
    return session.scalars(select(ApiKey.id).limit(1)).first() is not None


def get(session: Session, key_id: str) -> ApiKey:
    """Raises NotFound."""
    return by_id(session, ApiKey, key_id)


def revoke(session: Session, key_id: str, *, actor: str, by: str | None = None) -> ApiKey:
    """From now on the key opens nothing; revoking again changes nothing. `by` is the id of the key that `actor` used.

    Raises NotFound.
    """
    key = by_id(session, ApiKey, key_id, lock=True)
    if key.revoked_at is None:
        key.revoked_at = now(session)
        audit.append(session, actor=actor, key_id=by, action="key.revoked", subject=key.id)
    return key


def leave_an_admin(session: Session, *, without_key: str | None = None, without_principal: str | None = None) -> None:
    """Raises Conflict where no usable key with the scope `admin` would be left without this key, or this principal's.

    The keys stay locked until the transaction ends: two that revoke one another's would leave none.
    """
    enabled = select(Principal.id).where(Principal.disabled_at.is_(None))
    usable = select(ApiKey).where(ApiKey.revoked_at.is_(None), ApiKey.principal_id.in_(enabled))
    moment = now(session)
    left = [
        key
        for key in session.scalars(usable.order_by(ApiKey.id).with_for_update()).all()
        if may(key, "admin") and (key.expires_at is None or key.expires_at > moment)
        if key.id != without_key and key.principal_id != without_principal
    ]
    if not left:
        raise Conflict(
            "No key with the scope admin would be left, and nobody could make one through the API. Make another first; "
            "`lethe keys` on the service's machine asks nothing."
        )


def page(session: Session, *, after: str | None = None, limit: int = 50) -> tuple[Sequence[ApiKey], bool]:
    """Keys, the newest first, and whether there are more."""
    return newest(session, select(ApiKey), ApiKey.id, after, limit)


def every(session: Session) -> Sequence[ApiKey]:
    """All keys ever made, the newest first."""
    return session.scalars(select(ApiKey).order_by(ApiKey.id.desc())).all()


def usable(session: Session, key_id: str) -> bool:
    """Whether the key still opens something: for whoever was let in with it and stays."""
    key = by_id(session, ApiKey, key_id)
    owner = principals.get(session, key.principal_id)
    open_until = key.expires_at is None or key.expires_at > now(session)
    return key.revoked_at is None and owner.disabled_at is None and open_until


def _hash(text: str, secret: bytes) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    return base32(zlib.crc32(body.encode()), 7)
