"""The tables that only grow: what happened to a job, what was measured, what it left, and who did what."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from api.store.columns import Base, RowNumber

MetricKind = Literal["step", "watch", "before", "after"]
ArtifactKind = Literal["checkpoint", "model", "report", "envelope", "rows", "plot", "log"]


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


class AuditEntry(Base):
    """Who did what to what, and when. Rows are added, never changed."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "subject", "id"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]  # an API key's id, worker:<name>, or sweep
    action: Mapped[str]
    subject: Mapped[str]  # the id of what it was done to
    facts: Mapped[dict[str, Any]]
