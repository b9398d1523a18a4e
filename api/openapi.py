"""What FastAPI cannot read off the routes for the API's description: bodies that are read by hand, and errors."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from api import job_schemas, schemas
from api.access_schemas import NewKey, NewPrincipal
from api.described import complete
from api.model_schemas import NewModel, NewPromotion, RollBack
from api.problems import MEDIA_TYPE
from api.webhooks.schemas import NewWebhook
from core.spec.job import JobSpec

_REF = "#/components/schemas/{model}"
_BY_HAND: tuple[type[BaseModel], ...] = (
    JobSpec,
    NewModel,
    NewPromotion,
    RollBack,
    NewWebhook,
    job_schemas.Reason,
    NewPrincipal,
    NewKey,
    schemas.Problem,
)
_EXAMPLE = {
    "model": {"id": "mdl_01k9h3v2q8m4x7c5b6n1r0t9wz"},
    "data": {
        "forget": {"source": "upload", "dataset": "ds_01k9h3v2q8m4x7c5b6n1r0t9wz"},
        "retain": {"source": "upload", "dataset": "ds_01k9h3v2q8m4x7c5b6n1r0t9xa"},
    },
    "method": {"name": "npo", "retain": {"name": "nll"}},
    "optimizer": {"name": "sophia_g", "lr": 1e-5},
    "training": {"epochs": 5},
    "gates": [
        {"metric": "forget.probability", "at_most": 0.1},
        {"metric": "retain.probability", "at_least": 0.9, "relative_to": "before"},
    ],
    "reason": "gdpr_art_17",
    "reference": "case 2026-17",
}


def _body(model: type[BaseModel], **more: Any) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema, **more}}}


JOB_BODY = _body(JobSpec, example=_EXAMPLE)
MODEL_BODY = _body(NewModel)
PROMOTION_BODY = _body(NewPromotion)
ROLLBACK_BODY = _body(RollBack)
WEBHOOK_BODY = _body(NewWebhook)
REASON_BODY = _body(job_schemas.Reason)
PRINCIPAL_BODY = _body(NewPrincipal)
KEY_BODY = _body(NewKey)
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What went wrong",
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
}


def install(app: FastAPI) -> None:
    """Let the app's description hold the schemas that these refer to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = FastAPI.openapi(app)
            components = document["components"]["schemas"]
            for model in _BY_HAND:
                schema = model.model_json_schema(ref_template=_REF)
                components |= {**schema.pop("$defs", {}), model.__name__: schema}
            complete(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
