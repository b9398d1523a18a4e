"""Migrations lead to exactly the tables that the code describes, and back to nothing, on both databases."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from api.store import migrate, records, tables  # noqa: F401  (so that the metadata knows all tables)
from api.store.columns import Base
from api.store.session import Database, open_database


def test_tables_and_migrations_agree(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert set(inspect(connection).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


def test_the_comparison_sees_a_missing_index(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    with database.transaction() as session:
        session.connection().exec_driver_sql("DROP INDEX ix_jobs_status_lease_until")
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata)
    database.close()


def test_down_and_up_again(database: Database, database_url: str) -> None:
    assert migrate.at_head(database)
    migrate.downgrade(database_url, "base")
    assert not migrate.at_head(database)
    with database.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    migrate.upgrade(database_url)
    assert migrate.at_head(database)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_three_at_once_migrate_once(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if backend == "sqlite":
        url = f"sqlite:///{tmp_path / 'new.db'}"
    else:
        url = request.getfixturevalue("postgresql_url")
        migrate.downgrade(url, "base")
    command = [sys.executable, "-m", "alembic", "-c", "migrations/alembic.ini", "-x", f"url={url}", "upgrade", "head"]
    running = [subprocess.Popen(command, cwd=migrate.FOLDER.parent, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate()[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
    assert sum("0001" in error for error in errors) == 1
    database = open_database(url)
    assert migrate.at_head(database)
    database.close()


def test_an_unreachable_database_is_not_at_head(tmp_path: Path) -> None:
    database = open_database(f"postgresql://nobody@/nothing?host={tmp_path}")
    assert not migrate.at_head(database)
    database.close()
