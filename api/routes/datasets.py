"""Data sets: upload records as JSON lines, read what is known about them, prove that a record is among them. The
records never come back."""

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
from api.deps import DataWriter, PageQuery, Parts
from api.errors import Busy, Forbidden, TooLarge, UnsupportedType
from api.proof import prove
from api.sight import Seen
from api.store import datasets, keys, retention, sealed
from api.store.tables import Dataset
from api.upload import Received, receive
from core.report.merkle import Proof

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
    caller: DataWriter,
    name: Annotated[str | None, Query(min_length=1, max_length=200, pattern=r"^[^\x00]+$")] = None,
) -> schemas.Uploaded:
    """Upload a set. It is encrypted while it comes in. A bad line refuses the whole: the first 100 bad lines are named,
    the rest counted. 503 while too many uploads are under way."""
    settings = service.settings
    _check(request, settings.upload_max_bytes)
    chunks = arriving(request)

    async def next_chunk() -> bytes:
        return await anext(chunks, b"")

    def receive_all() -> Received:
        with service.receiving:
            return receive(service.blobs, service.vault, settings, partial(from_thread.run, next_chunk))

    async with _slot(service.uploads):
        received = await to_thread.run_sync(receive_all, limiter=CapacityLimiter(1))

    def register() -> Dataset:
        try:
            with service.database.transaction() as session:
                return datasets.register(session, service.vault, **vars(received), key_id=caller.id, name=name)
        except Exception:
            # Their key is lost with the row: nobody could ever read them.
            service.blobs.delete([received.blob, received.leaves])
            raise

    dataset = await run_in_threadpool(register)
    response.headers["Location"] = f"/datasets/{dataset.id}"
    known = schemas.Dataset.model_validate(dataset).model_dump(by_alias=False)
    return schemas.Uploaded.model_construct(**known, commitment_key=sealed.commitment_key(received.key).hex())


@router.get("")
def listing(service: Parts, sight: Seen, query: Annotated[PageQuery, Query()]) -> schemas.Page[schemas.Dataset]:
    """Data sets, the newest first: all of them for a key that sees all jobs, else the principal's own."""
    with service.database.reading() as session:
        rows, more = datasets.page(session, only=sight.only, **query.model_dump())
    data = [schemas.Dataset.model_validate(row) for row in rows]
    return schemas.Page(data=data, has_more=more, after=data[-1].id if data else None)


@router.get("/{dataset_id}")
def one(service: Parts, sight: Seen, dataset_id: str) -> schemas.Dataset:
    """What is known about a data set."""
    with service.database.reading() as session:
        return schemas.Dataset.model_validate(datasets.get(session, dataset_id, only=sight.only))


@router.get("/{dataset_id}/proof")
async def proof(
    service: Parts,
    sight: Seen,
    dataset_id: str,
    leaf: Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="HMAC-SHA256 of the record")],
) -> Proof:
    """The way from a record's leaf to the set's commitment; `lethe prove` asks for it and checks it. 404 where no
    record has this leaf, 409 where the set was destroyed."""

    def found() -> Proof:
        with service.database.reading() as session:
            dataset = datasets.get(session, dataset_id, only=sight.only)
        return prove(service.blobs, service.vault, dataset, bytes.fromhex(leaf))

    # A tree of a million leaves takes a second to build.
    return await to_thread.run_sync(found, limiter=service.hashing)


@router.delete("/{dataset_id}")
def destroy(service: Parts, caller: DataWriter, sight: Seen, dataset_id: str) -> schemas.Dataset:
    """Destroy a set's key, and with it the set, whatever was derived from it, and its commitment's key: nothing brings
    them back. 409, naming the job, while one on it has not ended or is under legal hold. Destroying again changes
    nothing. Of another principal's set only with the scope admin."""
    with service.database.transaction() as session:
        dataset = datasets.get(session, dataset_id, only=sight.only)
        if dataset.principal_id != caller.principal_id and not keys.may(caller, "admin"):
            raise Forbidden(f"Data set {dataset_id} is another principal's: this call needs the scope admin there.")
        gone = retention.destroy(session, dataset_id, actor=caller.principal_id, key_id=caller.id, why="request")
        answer = schemas.Dataset.model_validate(dataset)
    service.blobs.delete(gone)
    return answer


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
