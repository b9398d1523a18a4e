"""The tables of what is registered (principals, keys, models, data sets) and of jobs, with every index that a query
relies on.

What a job leaves behind (attempts, events, metrics, artifacts, audit, webhooks) is in `records`. Columns that came
after the first migration carry no foreign key: SQLite could not drop them again.
"""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from api.store.columns import Base, RowNumber
from api.store.ids import maker

Status = Literal["awaiting_approval", "queued", "running", "succeeded", "failed", "cancelled", "rejected"]
Verdict = Literal["passed", "not_passed", "inconclusive"]


def _some(name: str, column: str, *, where: str) -> Index:
    """An index of some rows only: a query finds it by the same words."""
    return Index(name, column, postgresql_where=text(where), sqlite_where=text(where))


class Principal(Base):
    """A person, or a program, that acts through keys. Four eyes are two of these, however many keys each has."""

    __tablename__ = "principals"

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("prn"))
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]  # from then on none of its keys opens anything


class ApiKey(Base):
    """A caller's key. Only an HMAC of it is kept; `prefix` finds the row."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("key"))
    principal_id: Mapped[str] = mapped_column(index=True)
    scopes: Mapped[list[str]]
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Model(Base):
    """A model that jobs may start from, pinned by the digest of its files: a registered folder, or what a job left.

    Rows stay when a model is deleted, since others descend from it.
    """

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("path", "digest"), Index(None, "job_id"), Index(None, "parent_id"))

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("mdl"))
    name: Mapped[str]
    path: Mapped[str]
    digest: Mapped[str]
    files: Mapped[dict[str, Any]]  # name: {"sha256": hex, "size": bytes}
    architecture: Mapped[str]
    parameters: Mapped[int | None]  # weights, counted in the headers of its files
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    # What made it, where Lethe did: then the files are that job's artifacts, and `path` is `job:<id>`.
    job_id: Mapped[str | None]
    parent_id: Mapped[str | None]
    root_id: Mapped[str | None]  # the registered folder that the line goes back to; null for such a folder itself
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class Alias(Base):
    """A name that stands for one model at a time, such as `production`. The row is what jobs on it lock."""

    __tablename__ = "aliases"

    name: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    changed_at: Mapped[datetime]


class Promotion(Base):
    """One change of an alias. Rolling back undoes the newest that is not undone."""

    __tablename__ = "promotions"

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    alias: Mapped[str] = mapped_column(ForeignKey("aliases.name"), index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    before_id: Mapped[str | None]  # the model that the alias stood for until then
    actor: Mapped[str]
    reason: Mapped[str | None]
    at: Mapped[datetime]
    undone_at: Mapped[datetime | None]


class Dataset(Base):
    """An uploaded set of records. Its rows are sealed under a key of its own; destroying the key destroys them."""

    __tablename__ = "datasets"
    __table_args__ = (
        _some("ix_datasets_kept", "created_at", where="blob <> ''"),
        _some("ix_datasets_unowned", "id", where="principal_id = ''"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("ds"))
    name: Mapped[str | None]
    rows: Mapped[int]
    size: Mapped[int]  # bytes of plaintext
    blob: Mapped[str] = mapped_column(index=True)  # digest of the ciphertext; empty: destroyed
    key: Mapped[bytes]  # wrapped under the deployment's master key (api.store.vault); empty: destroyed
    commitment: Mapped[str]  # root of the keyed Merkle tree over the records (core.report.merkle), hex
    leaves: Mapped[str | None] = mapped_column(index=True)  # blob: the tree's leaves in upload order
    fingerprint: Mapped[str | None] = mapped_column(index=True)  # keyed, of the sorted records; null: destroyed
    destroyed_at: Mapped[datetime | None]
    principal_id: Mapped[str]
    warnings: Mapped[list[str]]
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime]


class Job(Base):
    """A forget request and where it stands. `attempt` is the fencing token that every write of a worker carries."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("key_id", "idempotency_key"),
        Index(None, "principal_id", "idempotency_key", unique=True),
        Index(None, "status", "rank", "due_at", "id"),
        Index(None, "status", "batch"),
        Index(None, "led_by"),
        Index(None, "alias", "status"),
        Index(None, "principal_id", "id"),
        Index(None, "status", "id"),
        Index(None, "status", "lease_until"),
        Index(None, "status", "rung_at"),
        Index(None, "model_id", "id"),
        Index(None, "reference", "id"),
        _some("ix_jobs_keyed", "id", where="key IS NOT NULL"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=maker("job"))
    status: Mapped[Status] = mapped_column(String)
    attempt: Mapped[int] = mapped_column(default=0)
    counted: Mapped[int] = mapped_column(default=0)  # attempts that count toward the cap
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    forget_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    retain_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    # Seals what is derived from a forget set that is no upload and so brings no key of its own. Wrapped; made when the
    # job first begins; null where the forget set's own key serves, or once this one was destroyed. Empty: data of the
    # job was destroyed, and the record of that is not signed yet.
    key: Mapped[bytes | None]
    destroyed_at: Mapped[datetime | None]
    alias: Mapped[str | None]  # that the spec names; `model_id` is what it stood for when the job first began
    batch: Mapped[str | None]  # digest of what jobs of one run must have in common; null: alone
    led_by: Mapped[str | None]  # the job in whose run this one takes part
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
    principal_id: Mapped[str]  # who asked
    request_id: Mapped[str | None]  # of the call that asked
    rank: Mapped[int]  # 0 high, 1 normal, 2 low
    received_at: Mapped[datetime | None]
    due_at: Mapped[datetime]
    extended_at: Mapped[datetime | None]
    held_at: Mapped[datetime | None]  # under legal hold since
    approved_by: Mapped[str | None]  # principal
    approved_at: Mapped[datetime | None]
    warnings: Mapped[list[str]]
    idempotency_key: Mapped[str | None]
    body_digest: Mapped[str]
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    rung_at: Mapped[datetime]  # when a worker was last told of it
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobDataset(Base):
    """Which uploads a job names, each by the set that it is: what is kept for how long follows from this."""

    __tablename__ = "job_datasets"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)  # forget, retain, holdout, ...
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)
