"""What the API takes and answers of models, of the line that each stands in, and of the names that stand for them."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from core.report.schema import Sha256
from core.spec.base import FilePath, Spec

_ID = "mdl_01k9h3v2q8m4x7c5b6n1r0t9wz"
_REASON = Field(min_length=1, max_length=500, description="why, for the audit log", examples=["case 2026-17 passed"])


class ModelFile(BaseModel):
    """A file of a model."""

    sha256: Sha256
    size: int = Field(description="bytes")


class Model(BaseModel):
    """A model that jobs may start from, pinned by its digest: a registered folder, or what a job has left."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": _ID,
                    "name": "tiny",
                    "path": "job:job_01k9h3v2q8m4x7c5b6n1r0t9wz",
                    "architecture": "LlamaForCausalLM",
                    "parameters": 124439808,
                    "digest": "0" * 64,
                    "files": {"config.json": {"sha256": "0" * 64, "size": 612}},
                    "parent": "mdl_01k9h3v2q8m4x7c5b6n1r0t9xa",
                    "job": "job_01k9h3v2q8m4x7c5b6n1r0t9wz",
                    "aliases": ["production"],
                    "created_at": "2026-01-31T12:00:00Z",
                }
            ]
        },
    )

    id: str
    name: str
    path: str = Field(description="the folder; of what a job has left, job:ID")
    architecture: str
    parameters: int | None = Field(description="weights; null where they were not counted")
    digest: Sha256 = Field(description="of all files, as OpenSSF model-signing computes it")
    files: dict[str, ModelFile]
    parent: str | None = Field(validation_alias="parent_id", description="the model that it was made from")
    job: str | None = Field(validation_alias="job_id", description="the job that made it")
    aliases: list[str] = Field([], description="names that stand for it now")
    created_at: datetime
    deleted_at: datetime | None = None


class ModelInLine(Model):
    """A model with what was made from it."""

    children: list[str] = Field([], description="ids of models that were made from it, the newest first, at most 100")


class Line(BaseModel):
    """The registered folder that a model goes back to, and every model from there on to it, each with its job."""

    data: list[Model]


class NewModel(Spec):
    """A folder to register."""

    path: FilePath = Field(description="an absolute path below one of the model roots", examples=["/models/tiny"])
    name: str | None = Field(None, min_length=1, max_length=200, description="the folder's name where none is given")


class Alias(BaseModel):
    """A name, and the model that it stands for now."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [{"name": "production", "model": _ID, "changed_at": "2026-01-31T12:00:00Z"}],
        },
    )

    name: str
    model: str = Field(validation_alias="model_id")
    changed_at: datetime


class Promotion(BaseModel):
    """One change of an alias."""

    model_config = ConfigDict(from_attributes=True)

    model: str = Field(validation_alias="model_id")
    before: str | None = Field(validation_alias="before_id", description="what it stood for until then")
    actor: str = Field(description="a principal's id, or job:ID where a job's verdict was `passed`")
    reason: str | None
    at: datetime
    undone_at: datetime | None = Field(description="when it was rolled back")


class AliasWithHistory(Alias):
    """An alias with its changes, the newest first, at most 100."""

    history: list[Promotion] = []


class Aliases(BaseModel):
    """All aliases, by name."""

    data: list[Alias]


class NewPromotion(Spec):
    """A model to stand for."""

    model: str = Field(min_length=1, max_length=64, examples=[_ID])
    reason: str = _REASON
    force: bool = Field(False, description="also where the job that made the model has not passed")


class RollBack(Spec):
    """Why the newest promotion is undone."""

    reason: str = _REASON
