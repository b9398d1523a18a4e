"""Data sets: upload records as JSON lines, and read what is known about them. The records never come back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api import schemas
from api.body import arriving
from api.deps import Caller, PageQuery, Parts
from api.errors import Busy, TooLarge, UnsupportedType
from api.store import datasets
from api.store.tables import Dataset
from api.upload import receive

router = APIRouter(prefix="/datasets", tags=["data sets"])

TYPES = ("application/jsonl", "application/x-ndjson", "application/octet-stream")
SLOT_WITHIN = 1.0  # seconds
_LINES = {
    "required": True,
    "description": 'A record a line: `{"question": ..., "answer": ...}`, `{"prompt": ..., "response": ...}` '
    'or `{"text": ...}`.',
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES},
}


@router.post("", status_code=201, openapi_extra={"requestBody": _LINES})
async def upload(
    request: Request,
    response: Response,
    service: Parts,
    caller: Caller,
    name: Annotated[str | None, Query(min_length=1, max_length=200, pattern=r"^[^\x00]+$")] = None,
) -> schemas.Dataset:
    """Upload a set. It is encrypted while it comes in. A bad line refuses the whole: the first 100 bad lines are named,
    the rest counted. 503 while too many uploads are under way."""
    settings = service.settings
    _check(request, settings.upload_max_bytes)
    chunks = arriving(request)

    async def next_chunk() -> bytes:
        return await anext(chunks, b"")

    async with _slot(service.uploads):
        received = await to_thread.run_sync(
            partial(receive, service.blobs, settings, partial(from_thread.run, next_chunk)), limiter=CapacityLimiter(1)
        )

    def register() -> Dataset:
        try:
            with service.database.transaction() as session:
                return datasets.register(session, service.vault, **vars(received), key_id=caller.id, name=name)
        except Exception:
            service.blobs.delete([received.blob])  # Its key is lost with the row: nobody could ever read it.
            raise

    dataset = await run_in_threadpool(register)
    response.headers["Location"] = f"/datasets/{dataset.id}"
    return schemas.Dataset.model_validate(dataset)


@router.get("")
def listing(service: Parts, query: Annotated[PageQuery, Query()]) -> schemas.Page[schemas.Dataset]:
    """Data sets, the newest first."""
    with service.database.reading() as session:
        rows, more = datasets.page(session, **query.model_dump())
    data = [schemas.Dataset.model_validate(row) for row in rows]
    return schemas.Page(data=data, has_more=more, after=data[-1].id if data else None)


@router.get("/{dataset_id}")
def one(service: Parts, dataset_id: str) -> schemas.Dataset:
    """What is known about a data set."""
    with service.database.reading() as session:
        return schemas.Dataset.model_validate(datasets.get(session, dataset_id))


@asynccontextmanager
async def _slot(slots: CapacityLimiter) -> AsyncIterator[None]:
    """Raises Busy where none gets free soon: whoever sends slowly must not keep all others waiting."""
    holder = object()
    try:
        with anyio.fail_after(SLOT_WITHIN):
            await slots.acquire_on_behalf_of(holder)
    except TimeoutError:
        raise Busy(f"{int(slots.total_tokens)} uploads are under way, and no more are taken. Try again.") from None
    try:
        yield
    finally:
        slots.release_on_behalf_of(holder)


def _check(request: Request, limit: int) -> None:
    kind = request.headers.get("content-type", TYPES[0]).partition(";")[0].strip().lower()
    if kind not in TYPES:
        raise UnsupportedType(
            f"Send the lines themselves as the body, with Content-Type {', '.join(TYPES)}; no form, no JSON list.",
            param="Content-Type",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise TooLarge(f"The upload is larger than the {limit} bytes allowed.")
