"""What the API says about webhooks and their messages."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.store.outbox import Kind
from api.store.records import DeliveryStatus
from core.spec.base import Spec

_HOOK = {
    "id": "whk_01k9h3v2q8m4x7c5b6n1r0t9wz",
    "principal": "prn_01k9h3v2q8m4x7c5b6n1r0t9wz",
    "url": "https://hooks.example.org/lethe",
    "kinds": ["job.succeeded", "job.failed"],
    "every_job": False,
    "created_at": "2026-01-31T12:00:00Z",
    "disabled_at": None,
}


def _example(**value: Any) -> ConfigDict:
    return ConfigDict(from_attributes=True, populate_by_name=True, json_schema_extra={"examples": [value]})


class NewWebhook(Spec):
    """Where to be told, and of what."""

    url: str = Field(
        min_length=1,
        max_length=2000,
        description="https, and no host whose addresses are private, unless the service's settings allow it",
        examples=["https://hooks.example.org/lethe"],
    )
    kinds: list[Kind] = Field(default_factory=list, max_length=20, description="kinds of event; none: all of them")


class Webhook(BaseModel):
    """A URL that is told of events."""

    model_config = _example(**_HOOK)

    id: str
    principal: str = Field(validation_alias="principal_id", description="whose it is")
    url: str
    kinds: list[Kind] = Field(description="kinds of event; empty: all of them")
    every_job: bool = Field(description="whether it tells of everybody's jobs, not of its principal's own only")
    created_at: datetime
    disabled_at: datetime | None = Field(None, description="since its receiver answered 410 Gone")


class RegisteredWebhook(Webhook):
    """A new webhook with its secret."""

    model_config = _example(**_HOOK, secret="whsec_" + "A" * 43 + "=")

    secret: str = Field(description="for checking signatures; it cannot be had again")


class Webhooks(BaseModel):
    """Webhooks, the newest first."""

    data: list[Webhook]


class Delivery(BaseModel):
    """One message to one webhook. A receiver knows it by `id`, which is the header webhook-id at every try."""

    model_config = _example(
        id="dlv_01k9h3v2q8m4x7c5b6n1r0t9wz",
        webhook="whk_01k9h3v2q8m4x7c5b6n1r0t9wz",
        kind="job.succeeded",
        payload={
            "type": "job.succeeded",
            "timestamp": "2026-01-31T12:00:00.000Z",
            "data": {"id": "job_01k9h3v2q8m4x7c5b6n1r0t9wz", "status": "succeeded", "verdict": "passed"},
        },
        status="dead",
        tries=10,
        next_at="2026-02-03T12:00:00Z",
        answered=500,
        error="answered 500",
        created_at="2026-01-31T12:00:00Z",
        delivered_at=None,
    )

    id: str
    webhook: str = Field(validation_alias="webhook_id")
    kind: str
    payload: dict[str, Any] = Field(description="the body as it is sent")
    status: DeliveryStatus = Field(description="dead: given up after the last try, or nobody is there to be told")
    tries: int = Field(description="begun so far")
    next_at: datetime = Field(description="when it is tried next, while it is pending")
    answered: int | None = Field(None, description="status code of the last answer")
    error: str | None = Field(None, description="what went wrong at the last try, in one word")
    created_at: datetime
    delivered_at: datetime | None = None
