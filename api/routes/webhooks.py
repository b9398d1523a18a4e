"""Webhooks: be told of events, see what could not be delivered, and have it sent again."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy.orm import Session

from api.body import json_body, read_as
from api.deps import PageQuery, Parts, Writer
from api.errors import Forbidden
from api.openapi import WEBHOOK_BODY
from api.schemas import Page
from api.store import keys, webhooks
from api.store.records import DeliveryStatus, Webhook
from api.store.tables import ApiKey
from api.webhooks import schemas

router = APIRouter(tags=["webhooks"])


class DeliveryQuery(PageQuery):
    """Which messages, and from where on."""

    status: DeliveryStatus | None = None


@router.post("/webhooks", status_code=201, openapi_extra={"requestBody": WEBHOOK_BODY})
def register(
    service: Parts, caller: Writer, body: Annotated[Any, Depends(json_body)], response: Response
) -> schemas.RegisteredWebhook:
    """Have events POSTed to a URL, signed as Standard Webhooks says. The secret is shown this once.

    It tells of the jobs that the key may see: of everybody's with the scope jobs:read, else of its principal's own.
    """
    new = read_as(schemas.NewWebhook, body)
    service.guard.check(new.url)
    with service.database.transaction() as session:
        hook, secret = webhooks.register(session, service.vault, caller, url=new.url, kinds=new.kinds)
    response.headers["Location"] = f"/webhooks/{hook.id}"
    return schemas.RegisteredWebhook(**_seen(hook).model_dump(), secret=secret)


@router.get("/webhooks")
def listing(service: Parts, caller: Writer) -> schemas.Webhooks:
    """The principal's webhooks, and with the scope admin everybody's; the newest first."""
    with service.database.reading() as session:
        found: Sequence[Webhook] = webhooks.every(session, caller)
    return schemas.Webhooks(data=[_seen(hook) for hook in found])


@router.get("/webhooks/{webhook_id}")
def one(service: Parts, caller: Writer, webhook_id: str) -> schemas.Webhook:
    """What is known about a webhook; never its secret."""
    with service.database.reading() as session:
        return _seen(webhooks.get(session, caller, webhook_id))


@router.delete("/webhooks/{webhook_id}", status_code=204)
def remove(service: Parts, caller: Writer, webhook_id: str) -> None:
    """Send nothing there any more, also what still waits."""
    with service.database.transaction() as session:
        webhooks.remove(session, caller, webhook_id)


@router.post("/webhooks/{webhook_id}/ping", status_code=202)
def ping(service: Parts, caller: Writer, webhook_id: str) -> schemas.Delivery:
    """Send a message of type `ping`, to see whether it arrives. 409 where the webhook is disabled."""
    with service.database.transaction() as session:
        return schemas.Delivery.model_validate(webhooks.ping(session, caller, webhook_id))


@router.get("/webhooks/{webhook_id}/deliveries")
def deliveries(
    service: Parts, caller: Writer, webhook_id: str, query: Annotated[DeliveryQuery, Query()]
) -> Page[schemas.Delivery]:
    """Messages of the last 30 days, the newest first. `?status=dead` lists those that were given up. Where they tell of
    everybody's jobs the key needs jobs:read, too."""
    with service.database.reading() as session:
        _sees_its_messages(session, caller, webhook_id)
        rows, more = webhooks.deliveries(session, caller, webhook_id, **query.model_dump())
    data = [schemas.Delivery.model_validate(row) for row in rows]
    return Page(data=data, has_more=more, after=data[-1].id if data else None)


@router.post("/deliveries/{delivery_id}/replay", status_code=202)
def replay(service: Parts, caller: Writer, delivery_id: str) -> schemas.Delivery:
    """Send a message again, under its old id and with all tries to spare. 409 while it is still being tried."""
    with service.database.transaction() as session:
        delivery = webhooks.replay(session, caller, delivery_id)
        _sees_its_messages(session, caller, delivery.webhook_id)
        return schemas.Delivery.model_validate(delivery)


def _sees_its_messages(session: Session, caller: ApiKey, webhook_id: str) -> None:
    """Raises Forbidden where the webhook tells of jobs that the key does not see: it may be a stronger key's."""
    if webhooks.get(session, caller, webhook_id).every_job and not keys.may(caller, "jobs:read"):
        said = f"Webhook {webhook_id} tells of everybody's jobs; this call needs the scope jobs:read there."
        raise Forbidden(said, param="Authorization", reason="needs jobs:read")


def _seen(hook: Webhook) -> schemas.Webhook:
    return schemas.Webhook.model_validate(hook)
