"""Which model: one registered with the service, or a folder on the machine that runs the engine."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from core.spec.base import FilePath, Spec

MODEL_ID = r"^mdl_[0-9a-z]{8,40}$"


class RegisteredModel(Spec):
    """A model registered with the service, by its id."""

    id: str = Field(pattern=MODEL_ID)


class LocalModel(Spec):
    """A model folder in the hub's layout, on the machine that runs the engine."""

    path: FilePath


def _model_reference(value: Any) -> Any:
    if isinstance(value, str):
        return {"id": value} if value.startswith("mdl_") else {"path": value}
    return value


def _model_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "registered_model" if "id" in value else "local_model"
    return "registered_model" if isinstance(value, RegisteredModel) else "local_model"


ModelReference = Annotated[
    Annotated[RegisteredModel, Tag("registered_model")] | Annotated[LocalModel, Tag("local_model")],
    Discriminator(_model_kind),
    BeforeValidator(_model_reference),
]
