"""Webhooks: where principals want to be told of events, and what became of each message."""

import base64
import secrets
from collections.abc import Sequence
from typing import get_args

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.store import audit, keys, outbox
from api.store.errors import Conflict, NotFound
from api.store.ids import new_id
from api.store.lookup import absent, by_id, newest
from api.store.records import Delivery, DeliveryStatus, Webhook
from api.store.session import now
from api.store.tables import ApiKey
from api.store.vault import Vault
from core.errors import Problem, SpecError

MOST = 20  # of one principal: every event is written once for each
STATUSES: tuple[DeliveryStatus, ...] = get_args(DeliveryStatus)


def register(session: Session, vault: Vault, key: ApiKey, *, url: str, kinds: Sequence[str]) -> tuple[Webhook, str]:
    """A new webhook of the key's principal, and its secret (`whsec_...`), which is shown this once.

    It tells of everybody's jobs where the key may see them now. Raises Conflict where the principal has too many.
    """
    owner = key.principal_id
    held = session.scalars(select(Webhook.id).where(Webhook.principal_id == owner, Webhook.deleted_at.is_(None))).all()
    if len(held) >= MOST:
        raise Conflict(f"This principal has {len(held)} webhooks. Allowed: {MOST}; delete one first.")
    name, secret = new_id("whk"), secrets.token_bytes(32)
    hook = Webhook(
        id=name,
        principal_id=owner,
        url=url,
        secret=vault.wrap(secret, name),
        kinds=sorted(set(kinds)),
        every_job=keys.may(key, "jobs:read"),
        created_at=now(session),
    )
    session.add(hook)
    session.flush()
    _note(session, key, "registered", hook)
    return hook, "whsec_" + base64.b64encode(secret).decode()


def every(session: Session, key: ApiKey) -> Sequence[Webhook]:
    """The principal's webhooks, or for an admin's key all of them; the newest first."""
    query = select(Webhook).where(Webhook.deleted_at.is_(None)).order_by(Webhook.id.desc())
    if not keys.may(key, "admin"):
        query = query.where(Webhook.principal_id == key.principal_id)
    return session.scalars(query).all()


def get(session: Session, key: ApiKey, webhook_id: str, *, lock: bool = False) -> Webhook:
    """The webhook. Raises NotFound for another principal's, too, unless the key is an admin's."""
    hook = by_id(session, Webhook, webhook_id, lock=lock)
    seen = hook.principal_id == key.principal_id or keys.may(key, "admin")
    if not seen or hook.deleted_at is not None:
        raise absent(Webhook, webhook_id)
    return hook


def remove(session: Session, key: ApiKey, webhook_id: str) -> None:
    """From now on nothing is sent there; what still waited is dead. Raises NotFound."""
    hook = get(session, key, webhook_id, lock=True)
    hook.deleted_at = now(session)
    waiting = update(Delivery).where(Delivery.webhook_id == hook.id, Delivery.status == "pending")
    session.execute(waiting.values(status="dead", error="webhook_removed"))
    _note(session, key, "removed", hook)


def ping(session: Session, key: ApiKey, webhook_id: str) -> Delivery:
    """Send a message that tells of nothing. Raises NotFound, and Conflict where the webhook is disabled."""
    hook = get(session, key, webhook_id)
    _usable(hook)
    return outbox.ping(session, hook)


def deliveries(
    session: Session,
    key: ApiKey,
    webhook_id: str,
    *,
    status: DeliveryStatus | None = None,
    after: str | None = None,
    limit: int = 50,
) -> tuple[Sequence[Delivery], bool]:
    """Messages to the webhook, the newest first, and whether there are more. Raises NotFound and SpecError."""
    hook = get(session, key, webhook_id)
    query = select(Delivery).where(Delivery.webhook_id == hook.id)
    if status is not None:
        if status not in STATUSES:
            raise SpecError([Problem("status", status, f"Allowed: {', '.join(STATUSES)}.")])
        query = query.where(Delivery.status == status)
    return newest(session, query, Delivery.id, after, limit)


def replay(session: Session, key: ApiKey, delivery_id: str) -> Delivery:
    """Send a message again, with all tries to spare and under the same id, so that a receiver that has had it knows.

    Raises NotFound, and Conflict where it still waits for a try, or its webhook is disabled.
    """
    delivery = by_id(session, Delivery, delivery_id, lock=True)
    try:
        hook = get(session, key, delivery.webhook_id)
    except NotFound:
        raise absent(Delivery, delivery_id) from None
    _usable(hook)
    if delivery.status == "pending":
        raise Conflict(f"Delivery {delivery.id} is still being tried. Allowed: delivered and dead ones.")
    delivery.status, delivery.tries, delivery.next_at = "pending", 0, now(session)
    delivery.error = delivery.answered = delivery.delivered_at = None
    _note(session, key, "replayed", hook, delivery=delivery.id)
    return delivery


def _usable(hook: Webhook) -> None:
    if hook.disabled_at is not None:
        raise Conflict(f"Webhook {hook.id} is disabled: its receiver answered 410 Gone. Register it again.")


def _note(session: Session, key: ApiKey, what: str, hook: Webhook, **more: str) -> None:
    # The URL is not repeated: its path or query may be a secret between its owner and the receiver.
    facts = {"kinds": hook.kinds, "every_job": hook.every_job, **more}
    audit.append(session, actor=key.principal_id, key_id=key.id, action=f"webhook.{what}", subject=hook.id, facts=facts)
