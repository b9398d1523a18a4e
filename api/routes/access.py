"""Who may: principals and their API keys. A key's text is shown once, when it is made. All of it needs the scope admin,
which holds every other, so nobody gives away more than they have."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from api import access_schemas as schemas
from api.body import json_body, read_as
from api.deps import Admin, PageQuery, Parts
from api.openapi import KEY_BODY, PRINCIPAL_BODY
from api.schemas import Page
from api.store import keys, principals
from api.store.session import now
from core.errors import Problem, SpecError

router = APIRouter(tags=["principals and keys"])
Body = Annotated[Any, Depends(json_body)]


@router.post("/principals", status_code=201, openapi_extra={"requestBody": PRINCIPAL_BODY})
def enter(service: Parts, caller: Admin, body: Body, response: Response) -> schemas.Principal:
    """Enter a person, or a program, that shall have keys. 409 where the name is taken."""
    new = read_as(schemas.NewPrincipal, body)
    with service.database.transaction() as session:
        made = principals.create(session, new.name, actor=caller.principal_id, key_id=caller.id)
    response.headers["Location"] = f"/principals/{made.id}"
    return schemas.Principal.model_validate(made)


@router.get("/principals")
def listing(service: Parts, caller: Admin, query: Annotated[PageQuery, Query()]) -> Page[schemas.Principal]:  # noqa: ARG001
    """Principals, the newest first."""
    with service.database.reading() as session:
        rows, more = principals.page(session, **query.model_dump())
    data = [schemas.Principal.model_validate(row) for row in rows]
    return Page(data=data, has_more=more, after=data[-1].id if data else None)


@router.get("/principals/{principal_id}")
def one(service: Parts, caller: Admin, principal_id: str) -> schemas.Principal:  # noqa: ARG001
    """A principal."""
    with service.database.reading() as session:
        return schemas.Principal.model_validate(principals.get(session, principal_id))


@router.post("/principals/{principal_id}/disable")
def disable(service: Parts, caller: Admin, principal_id: str) -> schemas.Principal:
    """Let none of its keys open anything any more. 409 where no usable key with the scope admin would be left."""
    with service.database.transaction() as session:
        keys.leave_an_admin(session, without_principal=principal_id)
        principals.disable(session, principal_id, actor=caller.principal_id, key_id=caller.id)
    service.known_keys.forget()
    return one(service, caller, principal_id)


@router.post("/api-keys", status_code=201, openapi_extra={"requestBody": KEY_BODY})
def issue(service: Parts, caller: Admin, body: Body, response: Response) -> schemas.IssuedKey:
    """Make a key for a principal. Its text is in this answer and nowhere else. 409 where the principal is disabled."""
    new = read_as(schemas.NewKey, body)
    with service.database.transaction() as session:
        if new.expires_at is not None and new.expires_at <= now(session):
            raise SpecError(
                [Problem("expires_at", new.expires_at, "This has passed. Allowed: a time to come, or null.")]
            )
        key, text = keys.create(
            session,
            service.settings.key_secret.encode(),
            name=new.name,
            principal=principals.get(session, new.principal).name,
            scopes=new.scopes,
            expires_at=new.expires_at,
            actor=caller.principal_id,
            key_id=caller.id,
        )
    response.headers["Location"] = f"/api-keys/{key.id}"
    shown = schemas.ApiKey.model_validate(key).model_dump()
    return schemas.IssuedKey(**shown, principal_id=key.principal_id, key=text)


@router.get("/api-keys")
def issued(service: Parts, caller: Admin, query: Annotated[PageQuery, Query()]) -> Page[schemas.ApiKey]:  # noqa: ARG001
    """Keys ever made, the newest first, without their texts."""
    with service.database.reading() as session:
        rows, more = keys.page(session, **query.model_dump())
    data = [schemas.ApiKey.model_validate(row) for row in rows]
    return Page(data=data, has_more=more, after=data[-1].id if data else None)


@router.get("/api-keys/{key_id}")
def key(service: Parts, caller: Admin, key_id: str) -> schemas.ApiKey:  # noqa: ARG001
    """What is known about a key."""
    with service.database.reading() as session:
        return schemas.ApiKey.model_validate(keys.get(session, key_id))


@router.delete("/api-keys/{key_id}")
def revoke(service: Parts, caller: Admin, key_id: str) -> schemas.ApiKey:
    """Let a key open nothing any more; revoking again changes nothing. Other processes of the API notice within two
    seconds. 409 for the last usable key with the scope admin."""
    with service.database.transaction() as session:
        keys.leave_an_admin(session, without_key=key_id)
        revoked = keys.revoke(session, key_id, actor=caller.principal_id, by=caller.id)
    service.known_keys.forget()
    return schemas.ApiKey.model_validate(revoked)
