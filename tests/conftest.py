"""Servers and databases for all tests. Where set, DATABASE_URL names the PostgreSQL to use, and REDIS_URL the Redis of
the fixture `broker_url`; tests that kill, freeze or look into a Redis start their own, whatever is set."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import torch
from sqlalchemy import make_url

from api.store import migrate
from api.store.session import Database, open_database
from tests.models import Reciter, train_reciter
from tests.servers import PostgresServer, RedisServer

BACKENDS = ("sqlite", "postgresql")

# What must hold bit for bit holds on a CPU; a machine with an accelerator tests the same thing.
os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets, open to the user that PostgreSQL runs as."""
    folder = Path(tempfile.mkdtemp(prefix="lethe-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def broker_url(short_folder: Path) -> Iterator[str]:
    """A running Redis that lasts for the whole session. Tests that kill theirs start a RedisServer of their own."""
    if given := os.environ.get("REDIS_URL"):
        yield given
        return
    folder = short_folder / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server.broker_url
    server.stop()


@pytest.fixture(scope="session")
def _postgres(short_folder: Path) -> Iterator[str]:
    """A migrated PostgreSQL database of this session's own."""
    server = None
    url = os.environ.get("DATABASE_URL")
    if url is None:
        folder = short_folder / "postgres"
        folder.mkdir()
        server = PostgresServer(folder)
        server.start()
        url = server.url
    name = f"lethe_test_{secrets.token_hex(4)}"
    own = make_url(url).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(_plain(url), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        migrate.upgrade(own)
        yield own
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    if server is not None:
        server.stop()


@pytest.fixture
def postgresql_url(_postgres: str) -> str:
    """PostgreSQL, migrated and empty."""
    with psycopg.connect(_plain(_postgres)) as connection:
        # Whatever a broken test left open must not hang the next one.
        connection.execute("SET lock_timeout = '10s'")
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        tables = ", ".join(name for (name,) in rows if name != "alembic_version")
        # The audit log lets nobody empty it.
        off, on = (
            "; ".join(f"ALTER TABLE {table} {change} TRIGGER USER" for table in ("audit", "audit_heads"))
            for change in ("DISABLE", "ENABLE")
        )
        connection.execute(f"{off}; TRUNCATE {tables} RESTART IDENTITY CASCADE; {on}")
    return _postgres


@pytest.fixture(scope="session")
def _sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "lethe.db"
    migrate.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(_sqlite: Path, tmp_path: Path) -> str:
    """SQLite in a file, migrated and empty."""
    return f"sqlite:///{shutil.copy(_sqlite, tmp_path / 'lethe.db')}"


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest) -> str:
    """Each database in turn, migrated and empty."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Each database in turn, migrated, empty and open."""
    opened = open_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def settings_put_back() -> Iterator[None]:
    """Benchmarks set threads and determinism for their whole process, which here is everybody's."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def reciter(tmp_path_factory: pytest.TempPathFactory) -> Reciter:
    """A small model that knows a few people by heart, and the rows of those to forget and those to keep."""
    return train_reciter(tmp_path_factory.mktemp("reciter"))


def _plain(url: str) -> str:
    """The URL as the driver itself reads it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
