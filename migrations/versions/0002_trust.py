"""Principals and scopes, due dates and approval, lineage, keyed commitments, a sealed audit log, webhooks.

Everything is added and nothing is rebuilt, so a version that knows only the first tables can go on reading.
"""

import calendar
import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

from api.store.ids import new_id

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STRING = sa.String()
INTEGER = sa.BigInteger()
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
JSON = sa.JSON()
BYTES = sa.LargeBinary()
FLOAT: sa.types.TypeEngine[Any] = sa.Double()
EPOCH = "1970-01-01 00:00:00+00:00"

SCOPES = ["admin", "audit:read", "datasets:write", "jobs:approve", "jobs:read", "jobs:write", "models:write"]

REFERS = {
    "alias": ("aliases", "name"),
    "dataset_id": ("datasets", "id"),
    "job_id": ("jobs", "id"),
    "model_id": ("models", "id"),
    "principal_id": ("principals", "id"),
    "webhook_id": ("webhooks", "id"),
}


def need(name: str, type_: sa.types.TypeEngine[Any], default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False, server_default=default)


def may(name: str, type_: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=True)


def table(name: str, *columns: sa.Column[Any], key: tuple[str, ...] = ("id",), unique: tuple[str, ...] = ()) -> None:
    """A table; its columns named in REFERS refer to what is given there."""
    constraints: list[sa.Constraint] = [sa.PrimaryKeyConstraint(*key, name=f"pk_{name}")]
    for column in columns:
        if column.name in REFERS:
            target = ".".join(REFERS[column.name])
            constraints.append(sa.ForeignKeyConstraint([column.name], [target], name=f"fk_{name}_{column.name}"))
    if unique:
        constraints.append(sa.UniqueConstraint(*unique, name=f"uq_{name}_{'_'.join(unique)}"))
    op.create_table(name, *columns, *constraints)


def index(name: str, *columns: str, unique: bool = False) -> None:
    op.create_index(f"ix_{name}_{'_'.join(columns)}", name, list(columns), unique=unique)


def added() -> dict[str, list[sa.Column[Any]]]:
    """Columns for tables that were there before."""
    return {
        "api_keys": [need("principal_id", STRING, ""), need("scopes", JSON, "[]")],
        "models": [
            may("parameters", INTEGER),
            may("job_id", STRING),
            may("parent_id", STRING),
            may("root_id", STRING),
            may("deleted_at", TIME),
        ],
        "datasets": [
            may("leaves", STRING),
            may("fingerprint", STRING),
            may("destroyed_at", TIME),
            need("principal_id", STRING, ""),
        ],
        "jobs": [
            may("destroyed_at", TIME),
            may("alias", STRING),
            may("batch", STRING),
            may("led_by", STRING),
            need("principal_id", STRING, ""),
            may("request_id", STRING),
            need("rank", INTEGER, "1"),
            may("received_at", TIME),
            need("due_at", TIME, EPOCH),
            may("extended_at", TIME),
            may("held_at", TIME),
            may("approved_by", STRING),
            may("approved_at", TIME),
            need("warnings", JSON, "[]"),
        ],
        "audit": [may("key_id", STRING), may("position", INTEGER), may("hash", STRING)],
    }


INDEXES: list[tuple[str, tuple[str, ...], bool]] = [
    ("api_keys", ("principal_id",), False),
    ("models", ("job_id",), False),
    ("models", ("parent_id",), False),
    ("datasets", ("fingerprint",), False),
    ("datasets", ("leaves",), False),
    ("jobs", ("principal_id", "idempotency_key"), True),
    ("jobs", ("status", "rank", "due_at", "id"), False),
    ("jobs", ("status", "batch"), False),
    ("jobs", ("led_by",), False),
    ("jobs", ("alias", "status"), False),
    ("jobs", ("principal_id", "id"), False),
    ("audit", ("position",), True),
]
# Of some rows only: those of what is still kept.
PARTIAL = [
    ("ix_datasets_kept", "datasets", "created_at", "blob <> ''"),
    ("ix_datasets_unowned", "datasets", "id", "principal_id = ''"),
    ("ix_jobs_keyed", "jobs", "id", "key IS NOT NULL"),
]


def upgrade() -> None:
    for name, columns in added().items():
        for column in columns:
            op.add_column(name, column)
    table(
        "principals",
        need("id", STRING),
        need("name", STRING),
        need("created_at", TIME),
        may("disabled_at", TIME),
        unique=("name",),
    )
    table("aliases", need("name", STRING), need("model_id", STRING), need("changed_at", TIME), key=("name",))
    index("aliases", "model_id")
    table(
        "promotions",
        need("id", ROW_NUMBER),
        need("alias", STRING),
        need("model_id", STRING),
        may("before_id", STRING),
        need("actor", STRING),
        may("reason", STRING),
        need("at", TIME),
        may("undone_at", TIME),
    )
    index("promotions", "alias")
    table(
        "job_datasets",
        need("job_id", STRING),
        need("role", STRING),
        need("dataset_id", STRING),
        key=("job_id", "role"),
    )
    index("job_datasets", "dataset_id")
    table(
        "runs",
        need("job_id", STRING),
        need("at", TIME),
        need("device", STRING),
        need("method", STRING),
        need("optimizer", STRING),
        need("parameters", INTEGER),
        need("rows_trained", INTEGER),
        need("train_seconds", FLOAT),
        need("rows_scored", INTEGER),
        need("score_seconds", FLOAT),
        need("seconds", FLOAT),
        need("memory_bytes", INTEGER),
        need("idle_bytes", INTEGER),
        key=("job_id",),
    )
    index("runs", "method", "at")
    index("runs", "at")
    table(
        "audit_heads",
        need("position", INTEGER),
        need("hash", STRING),
        need("at", TIME),
        need("signature", STRING),
        key=("position",),
    )
    table(
        "webhooks",
        need("id", STRING),
        need("principal_id", STRING),
        need("url", STRING),
        need("secret", BYTES),
        need("kinds", JSON),
        need("every_job", sa.Boolean()),
        need("created_at", TIME),
        may("disabled_at", TIME),
        may("deleted_at", TIME),
    )
    table(
        "deliveries",
        need("id", STRING),
        need("webhook_id", STRING),
        need("kind", STRING),
        need("payload", JSON),
        need("status", STRING),
        need("tries", INTEGER),
        need("next_at", TIME),
        may("answered", INTEGER),
        may("error", STRING),
        need("created_at", TIME),
        may("delivered_at", TIME),
    )
    index("deliveries", "status", "next_at")
    index("deliveries", "webhook_id", "id")
    fill(op.get_bind())
    op.drop_index("ix_jobs_status_queued_at_id", "jobs")
    for name, names, unique in INDEXES:
        index(name, *names, unique=unique)
    for name, rows, by, where in PARTIAL:
        op.create_index(name, rows, [by], postgresql_where=sa.text(where), sqlite_where=sa.text(where))
    only_append(op.get_bind().dialect.name)


def fill(connection: sa.Connection) -> None:
    """Give every key a principal of its own that may do what it could do until now, and every job its due date."""
    keys = sa.table(
        "api_keys", *(sa.column(c) for c in ("id", "name", "principal_id", "created_at")), sa.column("scopes", JSON)
    )
    principals = sa.table("principals", sa.column("id"), sa.column("name"), sa.column("created_at"))
    datasets = sa.table("datasets", sa.column("key_id"), sa.column("principal_id"))
    jobs = sa.table(
        "jobs",
        *(sa.column(c) for c in ("id", "key_id", "principal_id")),
        *(sa.column(c, TIME) for c in ("created_at", "due_at")),
        sa.column("spec", JSON),
    )
    links = sa.table("job_datasets", sa.column("job_id"), sa.column("role"), sa.column("dataset_id"))
    for key in connection.execute(sa.select(keys.c.id, keys.c.name, keys.c.created_at)).all():
        principal = new_id("prn")
        # Names of keys need not differ; those of principals do.
        named = {"id": principal, "name": f"{key.name} ({key.id})", "created_at": key.created_at}
        connection.execute(principals.insert().values(named))
        connection.execute(keys.update().where(keys.c.id == key.id).values(principal_id=principal, scopes=SCOPES))
        connection.execute(datasets.update().where(datasets.c.key_id == key.id).values(principal_id=principal))
        connection.execute(jobs.update().where(jobs.c.key_id == key.id).values(principal_id=principal))
    for job in connection.execute(sa.select(jobs.c.id, jobs.c.created_at, jobs.c.spec)).all():
        created = job.created_at if job.created_at.tzinfo else job.created_at.replace(tzinfo=UTC)
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(due_at=a_month_after(created)))
        spec = json.loads(job.spec) if isinstance(job.spec, str) else job.spec
        for role, source in spec["data"].items():
            if isinstance(source, dict) and source.get("source") == "upload":
                named = {"job_id": job.id, "role": role, "dataset_id": source["dataset"]}
                connection.execute(links.insert().values(named))


def a_month_after(moment: datetime) -> datetime:
    """The same day of the next month, or that month's last."""
    year, month = moment.year + moment.month // 12, moment.month % 12 + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))


# Everything but filling in the seal, which happens once, changes history.
_CHANGED = """
    NEW.id <> OLD.id OR NEW.at <> OLD.at OR NEW.actor <> OLD.actor OR NEW.action <> OLD.action
    OR NEW.subject <> OLD.subject OR CAST(NEW.facts AS TEXT) <> CAST(OLD.facts AS TEXT)
    OR COALESCE(NEW.key_id, '') <> COALESCE(OLD.key_id, '')
    OR OLD.position IS NOT NULL OR OLD.hash IS NOT NULL
"""
_SAID = "the audit log is append-only"


# What the database refuses: name, table, of which statement, and where not of every row. On SQLite a row also goes, and
# no trigger on DELETE hears of it, where REPLACE puts another on its id or place.
_REFUSED = [
    ("audit_unchanged", "audit", "UPDATE", _CHANGED),
    ("audit_kept", "audit", "DELETE", None),
    ("audit_heads_unchanged", "audit_heads", "UPDATE", None),
    ("audit_heads_kept", "audit_heads", "DELETE", None),
]
_REPLACED = [
    (
        "audit_put_over",
        "audit",
        "INSERT",
        "EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) OR EXISTS (SELECT 1 FROM audit WHERE position = NEW.position)",
    ),
    (
        "audit_moved_over",
        "audit",
        "UPDATE OF position",
        "EXISTS (SELECT 1 FROM audit WHERE position = NEW.position AND id <> OLD.id)",
    ),
    (
        "audit_heads_put_over",
        "audit_heads",
        "INSERT",
        "EXISTS (SELECT 1 FROM audit_heads WHERE position = NEW.position)",
    ),
]
_EMPTIED = [("audit_whole", "audit"), ("audit_heads_whole", "audit_heads")]


def only_append(dialect: str) -> None:
    """Let the database itself refuse to change or remove an entry, or a signed head."""
    if dialect == "sqlite":
        for name, rows, what, where in [*_REFUSED, *_REPLACED]:
            when = f" WHEN {where}" if where else ""
            refuse = f"BEGIN SELECT RAISE(ABORT, '{_SAID}'); END"
            op.execute(f"CREATE TRIGGER {name} BEFORE {what} ON {rows}{when} {refuse}")
        return
    op.execute(
        f"CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{_SAID}'; END $$"
    )
    refuse = "EXECUTE FUNCTION audit_refuse()"
    for name, rows, what, where in _REFUSED:
        when = f" WHEN ({where})" if where else ""
        op.execute(f"CREATE TRIGGER {name} BEFORE {what} ON {rows} FOR EACH ROW{when} {refuse}")
    for name, rows in _EMPTIED:
        op.execute(f"CREATE TRIGGER {name} BEFORE TRUNCATE ON {rows} FOR EACH STATEMENT {refuse}")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for name, *_ in [*_REFUSED, *_REPLACED]:
            op.execute(f"DROP TRIGGER {name}")
    else:
        op.execute("DROP FUNCTION audit_refuse() CASCADE")
    for name, rows, _, _ in PARTIAL:
        op.drop_index(name, rows)
    for name, names, _ in reversed(INDEXES):
        op.drop_index(f"ix_{name}_{'_'.join(names)}", name)
    op.create_index("ix_jobs_status_queued_at_id", "jobs", ["status", "queued_at", "id"])
    for name in (
        "deliveries", "webhooks", "audit_heads", "runs", "job_datasets", "promotions", "aliases", "principals",
    ):  # fmt: skip
        op.drop_table(name)
    for name, columns in reversed(added().items()):
        for column in reversed(columns):
            op.drop_column(name, column.name)
