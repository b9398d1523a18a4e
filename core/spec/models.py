"""Which model: one registered with the service, the one that a name such as `production` stands for, or a folder on the
machine that runs the engine."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from core.spec.base import FilePath, Spec

MODEL_ID = r"^mdl_[0-9a-z]{8,40}$"
ALIAS = r"^[a-z][a-z0-9-]{0,62}$"


class RegisteredModel(Spec):
    """A model registered with the service, by its id."""

    id: str = Field(pattern=MODEL_ID)

    @property
    def called(self) -> str:
        """What may be told of it elsewhere."""
        return self.id


class LocalModel(Spec):
    """A model folder in the hub's layout, on the machine that runs the engine."""

    path: FilePath


class AliasedModel(Spec):
    """The model that an alias of the service stands for when the job begins. Jobs on one alias run in turn."""

    alias: str = Field(pattern=ALIAS)

    @property
    def called(self) -> str:
        """What may be told of it elsewhere."""
        return self.alias


def _model_reference(value: Any) -> Any:
    if isinstance(value, str):
        return {"id": value} if value.startswith("mdl_") else {"path": value}
    return value


def _model_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "registered_model" if "id" in value else "aliased_model" if "alias" in value else "local_model"
    return _KINDS.get(type(value), "local_model")


_KINDS: dict[type, str] = {RegisteredModel: "registered_model", AliasedModel: "aliased_model"}


ModelReference = Annotated[
    Annotated[RegisteredModel, Tag("registered_model")] | Annotated[LocalModel, Tag("local_model")],
    Discriminator(_model_kind),
    BeforeValidator(_model_reference),
]

# Only the model to be changed may be an alias: what it is compared with is pinned.
TargetModel = Annotated[
    Annotated[RegisteredModel, Tag("registered_model")]
    | Annotated[AliasedModel, Tag("aliased_model")]
    | Annotated[LocalModel, Tag("local_model")],
    Discriminator(_model_kind),
    BeforeValidator(_model_reference),
]
