"""Models: register a folder that jobs may start from, and read what is registered."""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Response
from fastapi.concurrency import run_in_threadpool

from api import schemas
from api.body import json_body, read_as
from api.deps import Caller, PageQuery, Parts
from api.folder import inspect
from api.openapi import MODEL_BODY
from api.store import models
from api.store.tables import Model

router = APIRouter(prefix="/models", tags=["models"])


@router.post(
    "",
    status_code=201,
    openapi_extra={"requestBody": MODEL_BODY},
    responses={200: {"model": schemas.Model, "description": "The folder was registered before, with the same content"}},
)
async def register(
    service: Parts, caller: Caller, body: Annotated[Any, Depends(json_body)], response: Response
) -> schemas.Model:
    """Register a folder on the service's machine. It is hashed whole, so a large one takes its time."""
    new = read_as(schemas.NewModel, body)
    roots = service.settings.model_roots
    folder = await to_thread.run_sync(inspect, new.path, roots, limiter=service.hashing)

    def save() -> tuple[Model, bool]:
        with service.database.transaction() as session:
            return models.register(
                session,
                path=str(folder.path),
                digest=folder.digest,
                files=folder.files,
                architecture=folder.architecture,
                key_id=caller.id,
                name=new.name,
            )

    model, created = await run_in_threadpool(save)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/models/{model.id}"
    return _seen(model)


@router.get("")
def listing(service: Parts, query: Annotated[PageQuery, Query()]) -> schemas.Page[schemas.Model]:
    """Models, the newest first."""
    with service.database.reading() as session:
        rows, more = models.page(session, **query.model_dump())
    data = [_seen(row) for row in rows]
    return schemas.Page(data=data, has_more=more, after=data[-1].id if data else None)


@router.get("/{model_id}")
def one(service: Parts, model_id: str) -> schemas.Model:
    """What is recorded about a model."""
    with service.database.reading() as session:
        return _seen(models.get(session, model_id))


def _seen(model: Model) -> schemas.Model:
    return schemas.Model.model_validate(model)
