"""The tables are migrated while workers run jobs on them."""

import threading
import time
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory

from api.store import migrate
from tests.chaos import invariants
from tests.chaos.cluster import Cluster, until
from tests.servers import PostgresServer

pytestmark = pytest.mark.timeout(180)

# What a later version may bring: a column and an index on the table that everybody writes to.
_LATER = """
import sqlalchemy as sa
from alembic import op

revision = "later"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("later", sa.String(), nullable=True))
    op.create_index("ix_jobs_later", "jobs", ["later"])
    op.add_column("events", sa.Column("later", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("events", "later")
    op.drop_index("ix_jobs_later", "jobs")
    op.drop_column("jobs", "later")
"""


def test_jobs_run_through_a_migration(
    mortal: Cluster, postgres: PostgresServer, noop: dict[str, str], tmp_path: Path
) -> None:
    settings = migrate.config(postgres.url)
    (head,) = ScriptDirectory.from_config(settings).get_heads()
    (tmp_path / "later.py").write_text(_LATER.format(head=head))
    settings.set_main_option("path_separator", "newline")
    settings.set_main_option("version_locations", f"{migrate.FOLDER / 'versions'}\n{tmp_path}")
    mortal.worker(**noop)
    mortal.worker(**noop)
    submitted = [mortal.submit(steps=4, checkpoint_every=1) for _ in range(30)]
    until(lambda: any(mortal.job(job_id).status == "succeeded" for job_id in submitted))

    # Somebody reads for a long time. The migration waits for it, and must not make everybody wait behind itself.
    with psycopg.connect(postgres.url) as reader:
        # It ends some day, so that this test fails rather than hangs where all do wait.
        reader.execute("SET idle_in_transaction_session_timeout = '30s'")
        reader.execute("SELECT count(*) FROM jobs")
        migrating = threading.Thread(target=command.upgrade, args=(settings, "later"))
        migrating.start()
        done = _succeeded(mortal, submitted)
        until(lambda: _succeeded(mortal, submitted) >= done + 4, 30)
        time.sleep(0.5)
        assert migrating.is_alive()
    migrating.join(60)
    assert _at(postgres) == "later"
    command.downgrade(settings, head)
    assert _at(postgres) == head

    for job_id in submitted:
        assert mortal.succeeded(job_id)
        assert [attempt.outcome for attempt in mortal.attempts(job_id)] == ["succeeded"]
    invariants.hold(mortal.database, mortal.blobs)


def _succeeded(cluster: Cluster, submitted: list[str]) -> int:
    return sum(cluster.job(job_id).status == "succeeded" for job_id in submitted)


def _at(postgres: PostgresServer) -> str:
    with psycopg.connect(postgres.url) as connection:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        assert row
        return str(row[0])
