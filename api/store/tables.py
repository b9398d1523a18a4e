"""The tables of what is registered (keys, models, data sets) and of jobs, with every index that a query relies on.

What a job leaves behind (attempts, events, metrics, artifacts, audit) is in `records`.
"""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from api.store.columns import Base
from api.store.ids import maker

Status = Literal["awaiting_approval", "queued", "running", "succeeded", "failed", "cancelled", "rejected"]
Verdict = Literal["passed", "not_passed", "inconclusive"]


class ApiKey(Base):
    """A caller's key. Only an HMAC of it is kept; `prefix` finds the row."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("key"))
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Model(Base):
    """A model folder that jobs may start from, pinned by the digest of its files."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("path", "digest"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("mdl"))
    name: Mapped[str]
    path: Mapped[str]
    digest: Mapped[str]
    files: Mapped[dict[str, Any]]  # name: {"sha256": hex, "size": bytes}
    architecture: Mapped[str]
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime]


class Dataset(Base):
    """An uploaded set of records. Its rows are sealed under a key of its own; destroying the key destroys them."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("ds"))
    name: Mapped[str | None]
    rows: Mapped[int]
    size: Mapped[int]  # bytes of plaintext
    blob: Mapped[str] = mapped_column(index=True)  # digest of the ciphertext
    key: Mapped[bytes]
    commitment: Mapped[str]  # HMAC-SHA256 of the plaintext under `key`, hex
    warnings: Mapped[list[str]]
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime]


class Job(Base):
    """A forget request and where it stands. `attempt` is the fencing token that every write of a worker carries."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("key_id", "idempotency_key"),
        Index(None, "status", "id"),
        Index(None, "status", "lease_until"),
        Index(None, "status", "rung_at"),
        Index(None, "status", "queued_at", "id"),
        Index(None, "model_id", "id"),
        Index(None, "reference", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("job"))
    status: Mapped[Status] = mapped_column(String)
    attempt: Mapped[int] = mapped_column(default=0)
    counted: Mapped[int] = mapped_column(default=0)  # attempts that count toward the cap
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    forget_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    retain_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    # Seals what is derived from a forget set that is no upload and so brings no key of its own.
    key: Mapped[bytes | None]
    spec: Mapped[dict[str, Any]]
    spec_digest: Mapped[str]
    reason: Mapped[str]
    reference: Mapped[str | None]
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    verdict: Mapped[Verdict | None] = mapped_column(String)
    error: Mapped[dict[str, Any] | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    lease_until: Mapped[datetime | None]
    leased_by: Mapped[str | None]
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    idempotency_key: Mapped[str | None]
    body_digest: Mapped[str]
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    rung_at: Mapped[datetime]  # when a worker was last told of it
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
