"""Data sets: upload records as JSON lines, and read what is known about them. The records never come back."""

from functools import partial
from typing import Annotated

import anyio
from anyio import from_thread, to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api import schemas
from api.deps import Caller, PageQuery, Parts
from api.errors import TooLarge, UnsupportedType, UploadStalled
from api.store import datasets
from api.store.tables import Dataset
from api.upload import receive

router = APIRouter(prefix="/datasets", tags=["data sets"])

TYPES = ("application/jsonl", "application/x-ndjson", "application/octet-stream")
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
    """Upload a set. It is encrypted while it comes in; a bad line refuses the whole, and names every bad line."""
    settings = service.settings
    _check(request, settings.upload_max_bytes)
    chunks = aiter(request.stream())

    async def next_chunk() -> bytes:
        try:
            with anyio.fail_after(settings.upload_idle):
                # An empty chunk is no end yet.
                while not (chunk := await anext(chunks, None)) and chunk is not None:
                    continue
                return chunk or b""
        except TimeoutError:
            raise UploadStalled(f"Nothing came for {settings.upload_idle:g} seconds; nothing was stored.") from None

    received = await to_thread.run_sync(
        partial(receive, service.blobs, settings, partial(from_thread.run, next_chunk)), limiter=service.uploads
    )

    def register() -> Dataset:
        try:
            with service.database.transaction() as session:
                return datasets.register(session, **vars(received), key_id=caller.id, name=name)
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
