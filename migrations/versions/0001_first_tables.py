"""The first tables: keys, models, data sets, jobs, and what jobs leave behind."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STRING = sa.String()
INTEGER = sa.BigInteger()
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
JSON = sa.JSON()
BYTES = sa.LargeBinary()
BOOLEAN = sa.Boolean()


def need(name: str, type_: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False)


def may(name: str, type_: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=True)


def table(name: str, *columns: sa.Column[Any], key: tuple[str, ...] = ("id",), unique: tuple[str, ...] = ()) -> None:
    """A table; its columns named in REFERS refer to the tables given there."""
    constraints: list[sa.Constraint] = [sa.PrimaryKeyConstraint(*key, name=f"pk_{name}")]
    for column in columns:
        if column.name in REFERS:
            target = f"{REFERS[column.name]}.id"
            constraints.append(sa.ForeignKeyConstraint([column.name], [target], name=f"fk_{name}_{column.name}"))
    if unique:
        constraints.append(sa.UniqueConstraint(*unique, name=f"uq_{name}_{'_'.join(unique)}"))
    op.create_table(name, *columns, *constraints)


def index(name: str, *columns: str) -> None:
    op.create_index(f"ix_{name}_{'_'.join(columns)}", name, list(columns))


REFERS = {
    "key_id": "api_keys",
    "model_id": "models",
    "forget_id": "datasets",
    "retain_id": "datasets",
    "job_id": "jobs",
}


def upgrade() -> None:
    table(
        "api_keys",
        need("id", STRING),
        need("name", STRING),
        need("prefix", STRING),
        need("hash", STRING),
        need("created_at", TIME),
        may("expires_at", TIME),
        may("revoked_at", TIME),
        may("last_used_at", TIME),
        unique=("prefix",),
    )
    table(
        "models",
        need("id", STRING),
        need("name", STRING),
        need("path", STRING),
        need("digest", STRING),
        need("files", JSON),
        need("architecture", STRING),
        need("key_id", STRING),
        need("created_at", TIME),
        unique=("path", "digest"),
    )
    table(
        "datasets",
        need("id", STRING),
        may("name", STRING),
        need("rows", INTEGER),
        need("size", INTEGER),
        need("blob", STRING),
        need("key", BYTES),
        need("commitment", STRING),
        need("warnings", JSON),
        need("key_id", STRING),
        need("created_at", TIME),
    )
    index("datasets", "blob")
    table(
        "jobs",
        need("id", STRING),
        need("status", STRING),
        need("attempt", INTEGER),
        need("counted", INTEGER),
        may("model_id", STRING),
        may("forget_id", STRING),
        may("retain_id", STRING),
        may("key", BYTES),
        need("spec", JSON),
        need("spec_digest", STRING),
        need("reason", STRING),
        may("reference", STRING),
        need("progress", JSON),
        may("verdict", STRING),
        may("error", JSON),
        need("cancel_requested", BOOLEAN),
        may("lease_until", TIME),
        may("leased_by", STRING),
        need("key_id", STRING),
        may("idempotency_key", STRING),
        need("body_digest", STRING),
        need("created_at", TIME),
        need("queued_at", TIME),
        need("rung_at", TIME),
        may("started_at", TIME),
        may("finished_at", TIME),
        unique=("key_id", "idempotency_key"),
    )
    index("jobs", "status", "id")
    index("jobs", "status", "lease_until")
    index("jobs", "status", "rung_at")
    index("jobs", "status", "queued_at", "id")
    index("jobs", "model_id", "id")
    index("jobs", "reference", "id")
    index("jobs", "forget_id")
    index("jobs", "retain_id")
    table(
        "attempts",
        need("job_id", STRING),
        need("number", INTEGER),
        need("worker", STRING),
        may("resumed_from", INTEGER),
        need("started_at", TIME),
        may("ended_at", TIME),
        may("outcome", STRING),
        may("reason", STRING),
        key=("job_id", "number"),
    )
    table(
        "events",
        need("id", ROW_NUMBER),
        need("job_id", STRING),
        need("attempt", INTEGER),
        need("kind", STRING),
        need("data", JSON),
        need("at", TIME),
    )
    index("events", "job_id", "id")
    table(
        "metrics",
        need("job_id", STRING),
        need("kind", STRING),
        need("step", INTEGER),
        need("attempt", INTEGER),
        need("values", JSON),
        key=("job_id", "kind", "step"),
    )
    table(
        "artifacts",
        need("id", ROW_NUMBER),
        need("job_id", STRING),
        need("kind", STRING),
        need("name", STRING),
        may("step", INTEGER),
        need("digest", STRING),
        need("size", INTEGER),
        need("sealed", BOOLEAN),
        need("attempt", INTEGER),
        need("created_at", TIME),
        unique=("job_id", "name"),
    )
    index("artifacts", "digest")
    table(
        "audit",
        need("id", ROW_NUMBER),
        need("at", TIME),
        need("actor", STRING),
        need("action", STRING),
        need("subject", STRING),
        need("facts", JSON),
    )
    index("audit", "subject", "id")


def downgrade() -> None:
    for name in ("audit", "artifacts", "metrics", "events", "attempts", "jobs", "datasets", "models", "api_keys"):
        op.drop_table(name)
