"""A job's history: a page of JSON, or a stream (server-sent events) that can be resumed where it broke off."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from api import schemas
from api.deps import MOST, Parts, Service
from api.errors import TooMany
from api.negotiation import VARY, preferred
from api.sight import Seen, Sight
from api.store import events, jobs, keys
from api.store.life import TERMINAL

router = APIRouter(prefix="/jobs/{job_id}/events", tags=["jobs"])

STREAM = "text/event-stream"
BATCH = 500
_FREE_AFTER = 5  # seconds: nobody knows when a stream ends
Position = Annotated[int, Query(ge=0, le=MOST, description="id of the last event already seen")]


@router.get(
    "",
    response_model=schemas.Events,
    responses={
        200: {"content": {STREAM: {"schema": {"type": "string"}}}},
        204: {"description": "The stream has ended, and nothing is left to be sent: do not reconnect"},
    },
)
async def history(
    request: Request,
    response: Response,
    service: Parts,
    sight: Seen,
    job_id: str,
    after: Position = 0,
    limit: Annotated[int, Query(ge=1, le=BATCH)] = BATCH,
    last_event_id: Annotated[int | None, Header(ge=0, le=MOST)] = None,
) -> Response | schemas.Events:
    """The history beyond an event. As `text/event-stream` it goes on until the job has ended; 429 where the key has
    LETHE_EVENTS_STREAMS of them open."""
    after = after if last_event_id is None else last_event_id
    if preferred(request.headers.getlist("accept"), ["application/json", STREAM]) == STREAM:
        found, ended = await run_in_threadpool(_look, service, sight, job_id, after)
        if ended and not found:
            return Response(status_code=204, headers=VARY)
        return _Stream(service, sight, job_id, after)
    found, _ = await run_in_threadpool(_look, service, sight, job_id, after, limit + 1)
    data = list(found[:limit])
    response.headers.update(VARY)
    return schemas.Events(data=data, has_more=len(found) > limit, after=data[-1].id if data else after)


class _Stream(StreamingResponse):
    """A stream that counts among its key's for as long as it is open. Raises TooMany where there are enough of them."""

    def __init__(self, service: Service, sight: Sight, job_id: str, after: int) -> None:
        self._open, self._key = service.streams, sight.key.id
        most = service.settings.events_streams
        if self._open[self._key] >= most:
            raise TooMany(
                f"This key has {most} event streams open. Allowed at once: {most}; end one first.", _FREE_AFTER
            )
        headers = {"X-Accel-Buffering": "no", **VARY}  # or nginx would keep events back
        super().__init__(_stream(service, sight, job_id, after), media_type=STREAM, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._open[self._key] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._open[self._key] -= 1


async def _stream(service: Service, sight: Sight, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Between two looks nothing is held: no thread and no connection."""
    spoke = time.monotonic()
    while True:
        found, ended = await run_in_threadpool(_look, service, sight, job_id, after)
        for event in found:
            after = event.id
            yield format_sse_event(data_str=event.model_dump_json(), event=event.kind, id=str(event.id))
        # Where the process is about to end, the caller is to come back for the rest, by the id of the last event.
        if service.leaving or (ended and len(found) < BATCH):
            return
        if found:
            spoke = time.monotonic()
        elif time.monotonic() - spoke >= service.settings.events_heartbeat:
            yield KEEPALIVE_COMMENT
            spoke = time.monotonic()
        if len(found) < BATCH:
            await asyncio.sleep(service.settings.events_poll)


def _look(
    service: Service, sight: Sight, job_id: str, after: int, limit: int = BATCH
) -> tuple[Sequence[schemas.Event], bool]:
    """Events beyond `after`, and whether no more will follow: the job has ended, or the key opens nothing any more."""
    with service.database.reading() as session:
        # The status first: whatever ended the job has then already written its event.
        ended = jobs.status_of(session, job_id, only=sight.only) in TERMINAL or not keys.usable(session, sight.key.id)
        rows = events.since(session, job_id, after, limit)
    return [schemas.Event.model_validate(row) for row in rows], ended
