"""Aliases: names such as `production` that stand for one model at a time. Jobs may name one instead of a model."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response
from sqlalchemy.orm import Session

from api.body import json_body, read_as
from api.deps import ModelWriter, Parts
from api.model_schemas import Alias, Aliases, AliasWithHistory, NewPromotion, Promotion, RollBack
from api.openapi import PROMOTION_BODY, ROLLBACK_BODY
from api.store import aliases
from core.spec.models import ALIAS

router = APIRouter(prefix="/aliases", tags=["models"])
Name = Annotated[str, Path(pattern=ALIAS, description="a letter, then at most 62 of a-z, 0-9 and -")]


@router.get("")
def listing(service: Parts) -> Aliases:
    """Every alias and the model that it stands for."""
    with service.database.reading() as session:
        return Aliases(data=[Alias.model_validate(row) for row in aliases.every(session)])


@router.get("/{name}")
def one(service: Parts, name: Name) -> AliasWithHistory:
    """What an alias stands for, and what it stood for before."""
    with service.database.reading() as session:
        return _seen(session, name)


@router.put(
    "/{name}",
    openapi_extra={"requestBody": PROMOTION_BODY},
    responses={201: {"model": AliasWithHistory, "description": "The alias is new"}},
)
def promote(
    service: Parts, caller: ModelWriter, name: Name, body: Annotated[Any, Depends(json_body)], response: Response
) -> AliasWithHistory:
    """Let the alias stand for a model from now on. 409 `not_passed` where a job made the model and its verdict is not
    `passed`, unless it is forced. Jobs that run go on with the model that they began with."""
    new = read_as(NewPromotion, body)
    with service.database.transaction() as session:
        _, created = aliases.promote(
            session,
            name,
            new.model,
            reason=new.reason,
            actor=caller.principal_id,
            key_id=caller.id,
            force=new.force,
        )
        response.status_code = 201 if created else 200
        return _seen(session, name)


@router.post("/{name}/rollback", openapi_extra={"requestBody": ROLLBACK_BODY})
def roll_back(
    service: Parts, caller: ModelWriter, name: Name, body: Annotated[Any, Depends(json_body)]
) -> AliasWithHistory:
    """Undo the newest promotion that is not undone yet. 409 where there is none, or where the model is deleted."""
    asked = read_as(RollBack, body)
    with service.database.transaction() as session:
        aliases.roll_back(session, name, reason=asked.reason, actor=caller.principal_id, key_id=caller.id)
        return _seen(session, name)


def _seen(session: Session, name: str) -> AliasWithHistory:
    seen = AliasWithHistory.model_validate(aliases.get(session, name))
    history = [Promotion.model_validate(row) for row in aliases.history(session, name)]
    return seen.model_copy(update={"history": history})
