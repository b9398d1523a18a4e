"""What the API answers with. Times are RFC 3339 in UTC; an id's prefix says what it is of."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from api.store.records import ArtifactKind
from core.report.schema import Sha256

T = TypeVar("T")


def example(**value: Any) -> ConfigDict:
    return ConfigDict(from_attributes=True, json_schema_extra={"examples": [value]})


class Page(BaseModel, Generic[T]):
    """A part of a list, newest first. Give `after` to the next call while there `has_more`."""

    data: list[T]
    has_more: bool
    after: str | None = Field(description="id of the last entry; null where the page is empty")


class Curve(BaseModel):
    """Numbers at one optimizer step."""

    model_config = example(step=12, values={"loss": 1.25, "forget_loss": 0.8, "lr": 1e-5})

    step: int
    values: dict[str, Any]


class Metrics(BaseModel):
    """Measurements by name. A metric that could not be measured is `{"absent": reason}`; one without an interval, such
    as a p-value, has null for `low` and `high`."""

    model_config = example(
        before={"forget.probability": {"value": 0.97, "rows": 40, "low": 0.95, "high": 0.98}},
        after={
            "forget.probability": {"value": 0.03, "rows": 40, "low": 0.01, "high": 0.05},
            "tofu.forget_quality": {"value": 0.61, "rows": 40, "low": None, "high": None},
        },
        deltas={"forget.probability": -0.94},
        curve=[{"step": 1, "values": {"loss": 1.25, "lr": 1e-5}}],
        watch=[{"step": 10, "values": {"forget.probability": 0.5}}],
        has_more=False,
    )

    before: dict[str, Any]
    after: dict[str, Any]
    deltas: dict[str, float] = Field(description="after minus before, where both were measured")
    curve: list[Curve] = Field(description="every optimizer step beyond `after_step`, up to `limit`")
    watch: list[Curve] = Field(description="looks along the way, on a part of the rows")
    has_more: bool = Field(description="whether the curve goes on; give its last step as `after_step`")


class Event(BaseModel):
    """One line of a job's history."""

    model_config = example(
        id=7, kind="status", attempt=1, at="2026-01-31T12:00:00Z", data={"from": "queued", "to": "running"}
    )

    id: int
    kind: str
    attempt: int
    at: datetime
    data: dict[str, Any]


class Events(BaseModel):
    """A part of the history, oldest first. Give `after` to the next call while there `has_more`."""

    data: list[Event]
    has_more: bool
    after: int


class StoredFile(BaseModel):
    """A file of a job. What is sealed is kept encrypted, is not given out, and `sha256` is of what is kept."""

    model_config = example(name="config.json", size=612, sha256="0" * 64, sealed=False)

    name: str
    size: int = Field(description="bytes")
    sha256: Sha256 = Field(validation_alias="digest")
    sealed: bool


class Artifact(StoredFile):
    """A file that a job left."""

    model_config = example(
        name="model/config.json",
        kind="model",
        size=612,
        sha256="0" * 64,
        sealed=False,
        created_at="2026-01-31T12:00:00Z",
    )

    kind: ArtifactKind
    created_at: datetime


class Artifacts(BaseModel):
    """The files of a job, by name."""

    data: list[Artifact]


class Checkpoint(BaseModel):
    """Where the job would go on after an interruption."""

    model_config = ConfigDict(from_attributes=True)

    step: int
    files: list[StoredFile]


class Checkpoints(BaseModel):
    """The checkpoints that are kept, the newest first."""

    data: list[Checkpoint]


class Dataset(BaseModel):
    """An uploaded set. Its records are never given out."""

    model_config = example(
        id="ds_01k9h3v2q8m4x7c5b6n1r0t9wz",
        name="case 2026-17",
        rows=40,
        bytes=11061,
        commitment="0" * 64,
        warnings=[],
        created_at="2026-01-31T12:00:00Z",
    )

    id: str
    name: str | None
    rows: int
    bytes: int = Field(validation_alias="size")
    commitment: Sha256 = Field(description="root of the keyed Merkle tree over the records; reports carry it")
    warnings: list[str]
    created_at: datetime
    destroyed_at: datetime | None = Field(None, description="since when nobody can read it any more")


class Uploaded(Dataset):
    """A set just uploaded, with what is told this once."""

    model_config = example(
        id="ds_01k9h3v2q8m4x7c5b6n1r0t9wz",
        name="case 2026-17",
        rows=40,
        bytes=11061,
        commitment="0" * 64,
        commitment_key="0" * 64,
        warnings=[],
        created_at="2026-01-31T12:00:00Z",
    )

    commitment_key: Sha256 = Field(description="proves that a record is in the set; keep it, it is never told again")


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Everything the process needs is there."""

    status: Literal["ready"] = "ready"
    checks: dict[str, Literal["ok"]]


class Fault(BaseModel):
    """One of several faults: a field, or a line of an upload."""

    param: str | None = None
    line: int | None = None
    message: str


class Problem(BaseModel):
    """An error (RFC 9457). `code` is stable; `detail` is for people."""

    model_config = example(
        type="about:blank",
        title="Unprocessable Entity",
        status=422,
        detail="optimizer.lr: Input should be greater than 0 (got -1).",
        code="invalid_spec",
        param="optimizer.lr",
        request_id="req_5f0c9be1d3a24c7e8b6f1a20",
        errors=[{"param": "optimizer.lr", "message": "Input should be greater than 0 (got -1)."}],
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None
    request_id: str
    errors: list[Fault] | None = None
    count: int | None = Field(None, description="bad lines in all, of which `errors` holds the first")
