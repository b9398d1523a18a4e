"""The tables that only grow: what happened to a job, what was measured, what it left, who did what, who was told."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from api.store.columns import Base, RowNumber
from api.store.ids import maker

MetricKind = Literal["step", "watch", "before", "after"]
ArtifactKind = Literal["checkpoint", "model", "report", "envelope", "rows", "plot", "log", "destruction"]
DeliveryStatus = Literal["pending", "delivered", "dead"]


class Attempt(Base):
    """One lease on a job. `outcome` is the status the job went to when it ended."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str]
    resumed_from: Mapped[int | None]  # optimizer step of the checkpoint it began with
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    reason: Mapped[str | None]


class Event(Base):
    """One line of a job's history. Ids of one job ascend in the order of commit."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "job_id", "id"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    kind: Mapped[str]
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class Metric(Base):
    """Values measured at one optimizer step, or before and after training. A repeated step replaces the earlier row."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    kind: Mapped[MetricKind] = mapped_column(String, primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    values: Mapped[dict[str, Any]]


class Artifact(Base):
    """A file of a job. `digest` is the address in the artifact store: of the ciphertext where the file is sealed."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    kind: Mapped[ArtifactKind] = mapped_column(String)
    name: Mapped[str]  # path below the job, unique in it
    step: Mapped[int | None]  # of a checkpoint
    digest: Mapped[str] = mapped_column(index=True)
    size: Mapped[int]  # bytes as stored
    sealed: Mapped[bool]
    attempt: Mapped[int]
    created_at: Mapped[datetime]


class Run(Base):
    """What one finished attempt cost: estimates for later requests are read off these. Seconds are wall-clock."""

    __tablename__ = "runs"
    __table_args__ = (Index(None, "method", "at"), Index(None, "at"))

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    at: Mapped[datetime]
    device: Mapped[str]
    method: Mapped[str]
    optimizer: Mapped[str]
    parameters: Mapped[int]  # weights of the model
    rows_trained: Mapped[int]  # records that passed through training steps
    train_seconds: Mapped[float]
    rows_scored: Mapped[int]  # records of all sets, before and after together
    score_seconds: Mapped[float]
    seconds: Mapped[float]  # of the whole attempt
    memory_bytes: Mapped[int]  # the most that the engine held
    idle_bytes: Mapped[int]  # what of that it held before it read the model


class AuditEntry(Base):
    """Who did what to what, and when. Rows are added, never changed, which triggers see to; only the sealer fills in
    `position` and `hash`, once."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "subject", "id"), Index(None, "position", unique=True))

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]  # a principal's id, worker:<name>, sweep, cli, embedded or anonymous
    key_id: Mapped[str | None]  # the key that the actor used
    action: Mapped[str]
    subject: Mapped[str]  # the id of what it was done to
    facts: Mapped[dict[str, Any]]
    position: Mapped[int | None]  # place in the chain, from 1; null: not sealed yet
    hash: Mapped[str | None]  # of this entry and the hash before it


class AuditHead(Base):
    """The chain's end as it was at one time, signed: what is cut off later is missed."""

    __tablename__ = "audit_heads"

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    hash: Mapped[str]
    at: Mapped[datetime]
    signature: Mapped[str]  # base64


class Webhook(Base):
    """Where a principal wants to be told of events. `secret` is wrapped like a data set's key."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("whk"))
    principal_id: Mapped[str] = mapped_column(ForeignKey("principals.id"))
    url: Mapped[str]
    secret: Mapped[bytes]
    kinds: Mapped[list[str]]  # of events; empty: all
    every_job: Mapped[bool]  # tells of everybody's jobs and data sets, not of the principal's own only
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]  # since its receiver said that it is gone (410)
    deleted_at: Mapped[datetime | None]


class Delivery(Base):
    """One message to one webhook, written with the event it tells of, and tried until it arrives or is given up."""

    __tablename__ = "deliveries"
    __table_args__ = (Index(None, "status", "next_at"), Index(None, "webhook_id", "id"))

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("dlv"))
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[DeliveryStatus] = mapped_column(String)
    tries: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime]  # of the next try; while one is under way, when it counts as lost
    answered: Mapped[int | None]  # status code of the last answer
    error: Mapped[str | None]
    created_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]
