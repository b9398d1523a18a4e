"""Metrics for Prometheus. With a key, unless the settings open it: numbers of jobs are nobody else's business."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from api.deps import Parts, authenticated, bearer, requires

router = APIRouter(tags=["health"])

_READER = requires("jobs:read")
_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


async def _allowed(
    request: Request, service: Parts, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> None:
    if not service.settings.metrics_open:
        await authenticated(request, credentials)
        await _READER(request)


@router.get("/metrics", response_class=Response, responses=_TEXT, dependencies=[Depends(_allowed)])
def numbers(service: Parts) -> Response:
    """Requests, queue, due dates, leases, webhooks and audit log, in Prometheus' text format. Scope jobs:read."""
    return Response(service.meter.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
