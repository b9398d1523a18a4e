"""Jobs as the API shows them, and the bodies and answers of what can be done to one."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, computed_field

from api.schemas import example
from api.store.jobs import COUNTED
from api.store.life import TERMINAL
from api.store.tables import Status, Verdict
from api.store.turn import PRIORITIES, Priority
from core.report.schema import Sha256
from core.spec.base import Spec

# What the row holds is a time, or a rank.
Happened = Annotated[bool, BeforeValidator(lambda at: at is not None)]
Ranked = Annotated[Priority, BeforeValidator(lambda rank: PRIORITIES[rank])]


class Progress(BaseModel):
    """How far the job is in its present phase; what does not apply there is null."""

    model_config = example(phase="train", step=12, steps=60, loss=1.25, seconds_left=41.0, done=None, total=None)

    phase: str | None = None
    step: int | None = Field(None, description="optimizer steps taken")
    steps: int | None = Field(None, description="optimizer steps in all")
    done: int | None = Field(None, description="records done, while scoring")
    total: int | None = None
    loss: float | None = None
    seconds_left: float | None = None


class JobError(BaseModel):
    """Why the job failed."""

    model_config = example(
        code="diverged", message="The loss was nan at step 7.", param="optimizer.lr", retryable=False
    )

    code: str
    message: str
    param: str | None
    retryable: bool


class JobSummary(BaseModel):
    """Where a job stands. A job can have succeeded (`status`) and still not have forgotten (`verdict`)."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(examples=["job_01k9h3v2q8m4x7c5b6n1r0t9wz"])
    status: Status
    verdict: Verdict | None
    model: str | None = Field(validation_alias="model_id", examples=["mdl_01k9h3v2q8m4x7c5b6n1r0t9wz"])
    reason: str
    reference: str | None = Field(description="the requester's case number")
    principal: str = Field(
        validation_alias="principal_id", description="who asked", examples=["prn_01k9h3v2q8m4x7c5b6n1r0t9wz"]
    )
    approved_by: str | None = Field(description="the principal who approved it; null where nobody has, or had to")
    approved_at: datetime | None
    priority: Ranked = Field(validation_alias="rank")
    received_at: datetime | None = Field(description="when the request came in, as far as the service was told")
    due_at: datetime = Field(description="one calendar month after that; two more once it was extended")
    extended: Happened = Field(validation_alias="extended_at")
    held: Happened = Field(validation_alias="held_at", description="under legal hold: its data is not destroyed")
    data_destroyed: bool = Field(False, description="data of it was destroyed, so that it cannot run again")
    warnings: list[str]
    progress: Progress
    attempt: int = Field(description="how many times a worker has begun")
    cancel_requested: bool
    error: JobError | None = Field(description="why it failed or was rejected")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @computed_field(description="past its due date, and not ended")  # type: ignore[prop-decorator]
    @property
    def late(self) -> bool:
        """By this machine's clock."""
        return self.status not in TERMINAL and self.due_at < datetime.now(UTC)


class Job(JobSummary):
    """A job with what was asked."""

    queue_position: int | None = Field(
        None, description=f"1 for the next; null unless the job is queued, or where more than {COUNTED} are ahead of it"
    )
    waits_for: str | None = Field(None, description="the running job on the same alias that a queued one waits for")
    output_model: str | None = Field(None, description="id of the model that the job has left; POST /jobs may name it")
    led_by: str | None = Field(None, description="the job in whose run this one takes part; its own id where it leads")
    members: list[str] = Field(default_factory=list, description="of a job that leads a shared run: all that take part")
    spec: dict[str, Any] = Field(description="the request with all defaults filled in")
    spec_digest: Sha256


class Reason(Spec):
    """Why something is done to a job; kept in its history and in the audit log."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "The archive had to be searched by hand."}]})

    reason: str = Field(min_length=1, max_length=1000, description="for people; keep personal data out of it")


class Counts(BaseModel):
    """How many jobs there are, of those that the key may see."""

    model_config = example(
        status={
            "awaiting_approval": 1,
            "queued": 4,
            "running": 1,
            "succeeded": 31,
            "failed": 2,
            "cancelled": 0,
            "rejected": 0,
        },
        late=0,
        soon=2,
    )

    status: dict[Status, int]
    late: int = Field(description="not ended, and past their due date")
    soon: int = Field(description="not ended, and due within LETHE_DUE_SOON_DAYS")


class Estimate(BaseModel):
    """What a request may cost, read off the newest runs that were measured; null, and a reason, where none says it.

    It is as good as the runs are alike: length of records and kind of machine are taken as they were there.
    """

    model_config = example(
        train_seconds=84.0,
        score_seconds=21.5,
        seconds=122.1,
        memory_bytes=4_210_000_000,
        device="cuda: NVIDIA L4",
        runs=12,
        reason=None,
    )

    train_seconds: float | None = None
    score_seconds: float | None = Field(None, description="of the sets, before and after")
    seconds: float | None = Field(None, description="in all: loading, attacks and writing with it")
    memory_bytes: int | None = Field(None, description="the most that the engine may hold on its device")
    device: str | None = Field(None, description="where those runs were")
    runs: int = Field(0, description="how many runs it stands on")
    reason: str | None = Field(None, description="why there is no estimate")


class Validation(BaseModel):
    """A request that POST /jobs would take."""

    valid: Literal[True] = True
    spec: dict[str, Any] = Field(description="the request with all defaults filled in")
    rows: dict[str, int | None] = Field(
        description="records of each set that would be used; null where only the engine can count them"
    )
    warnings: list[str]
    estimate: Estimate
