"""Models: register a folder that jobs may start from, look at what there is and where it comes from, delete."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from api import schemas
from api.body import json_body, read_as
from api.deps import ModelWriter, PageQuery, Parts
from api.folder import inspect
from api.model_schemas import Line, ModelInLine, NewModel
from api.model_schemas import Model as Seen
from api.openapi import MODEL_BODY
from api.store import artifacts, lineage, models
from api.store.tables import Model

router = APIRouter(prefix="/models", tags=["models"])


@router.post(
    "",
    status_code=201,
    openapi_extra={"requestBody": MODEL_BODY},
    responses={200: {"model": Seen, "description": "The folder was registered before, with the same content"}},
)
async def register(
    service: Parts, caller: ModelWriter, body: Annotated[Any, Depends(json_body)], response: Response
) -> Seen:
    """Register a folder on the service's machine. It is hashed whole, so a large one takes its time."""
    new = read_as(NewModel, body)
    roots = service.settings.model_roots
    folder = await to_thread.run_sync(inspect, new.path, roots, limiter=service.hashing)

    def save() -> tuple[Seen, bool]:
        with service.database.transaction() as session:
            model, created = models.register(
                session,
                path=str(folder.path),
                digest=folder.digest,
                files=folder.files,
                architecture=folder.architecture,
                parameters=folder.parameters,
                key_id=caller.id,
                name=new.name,
            )
            return _seen(session, [model])[0], created

    model, created = await run_in_threadpool(save)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/models/{model.id}"
    return model


@router.get("")
def listing(service: Parts, query: Annotated[PageQuery, Query()]) -> schemas.Page[Seen]:
    """Models that are not deleted, the newest first."""
    with service.database.reading() as session:
        rows, more = models.page(session, **query.model_dump())
        data = _seen(session, rows)
    return schemas.Page(data=data, has_more=more, after=data[-1].id if data else None)


@router.get("/{model_id}")
def one(service: Parts, model_id: str) -> ModelInLine:
    """What is recorded about a model, also a deleted one: what it was made from, and what was made from it."""
    with service.database.reading() as session:
        row = models.get(session, model_id)
        more = {
            "aliases": lineage.aliases(session, [row.id]).get(row.id, []),
            "children": list(lineage.children(session, row.id)),
        }
        return ModelInLine.model_validate(row).model_copy(update=more)


@router.get("/{model_id}/lineage")
def line(service: Parts, model_id: str) -> Line:
    """The line of a model from the registered folder on: each was made by its `job` from the one ahead of it."""
    with service.database.reading() as session:
        return Line(data=_seen(session, lineage.line(session, models.get(session, model_id))[::-1]))


@router.delete("/{model_id}")
def delete(service: Parts, caller: ModelWriter, model_id: str) -> ModelInLine:
    """Forget a registered folder, whose files stay, or delete the files of a model that a job has left; its report
    stays. 409 while an alias stands for it, a job that has not ended names it, or that job is under legal hold."""
    with service.database.transaction() as session:
        _, unused = models.delete(session, model_id, actor=caller.principal_id, key_id=caller.id)
    if unused:
        with service.database.transaction() as session:
            artifacts.delete_plain(session, service.blobs, unused)
    return one(service, model_id)


def _seen(session: Session, rows: Sequence[Model]) -> list[Seen]:
    named: Mapping[str, Sequence[str]] = lineage.aliases(session, [row.id for row in rows])
    return [Seen.model_validate(row).model_copy(update={"aliases": named.get(row.id, [])}) for row in rows]
