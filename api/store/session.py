"""The door to the database: one engine, transactions that write, transactions that only read, and its clock."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, sessionmaker

from api.store.errors import InvalidSetting

_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_CLOCK = {
    "sqlite": text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')"),
    "postgresql": text("SELECT clock_timestamp()"),
}
BUSY_SECONDS = 30


class Database:
    """An engine and the two kinds of transaction there are."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # Rows stay readable after the transaction, so that callers may carry them out of it.
        self._writing = sessionmaker(engine.execution_options(writes=True), expire_on_commit=False)
        self._reading = sessionmaker(
            engine.execution_options(writes=False, postgresql_readonly=True), expire_on_commit=False
        )

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose changes are committed at the end of the block, or rolled back by whatever leaves it early."""
        with self._writing.begin() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that may not write, and that on SQLite waits for no writer."""
        with self._reading() as session:
            yield session

    def close(self) -> None:
        """Drop all pooled connections."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Connect lazily to `sqlite:////path` or `postgresql://...`. Raises InvalidSetting for any other URL."""
    target = _target(url)
    sqlite = target.get_backend_name() == "sqlite"
    engine = create_engine(
        target,
        pool_size=5,
        max_overflow=15,
        pool_pre_ping=not sqlite,
        hide_parameters=True,  # An error's text goes into logs; a data set's key must not.
        json_serializer=partial(json.dumps, allow_nan=False, separators=(",", ":")),
        connect_args={"timeout": BUSY_SECONDS} if sqlite else _postgres_options(),
    )
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return Database(engine)


def now(session: Session) -> datetime:
    """The database's clock, which all leases are measured by; it moves on within a transaction."""
    dialect = session.get_bind().dialect.name
    moment: datetime | str = session.execute(_CLOCK[dialect]).scalar_one()
    if isinstance(moment, str):
        return datetime.fromisoformat(moment).replace(tzinfo=UTC)
    return moment.astimezone(UTC)


def _target(url: str) -> URL:
    try:
        target = make_url(url)
    except ArgumentError:
        # The text is not repeated: it may hold a password.
        raise InvalidSetting("database_url is not a URL. " + _ALLOWED, param="database_url") from None
    driver = _DRIVERS.get(target.drivername)
    if driver is None:
        raise InvalidSetting(f"database_url begins with '{target.drivername}'. {_ALLOWED}", param="database_url")
    if driver.startswith("sqlite") and target.database in (None, "", ":memory:"):
        raise InvalidSetting(f"database_url names no file. {_ALLOWED}", param="database_url")
    return target.set(drivername=driver)


_ALLOWED = "Allowed: sqlite:////absolute/path/lethe.db, postgresql://user:password@host:port/name."


def _postgres_options() -> dict[str, Any]:
    # A worker that freezes inside a transaction must not hold its job's row for ever.
    return {"connect_timeout": 10, "options": "-c idle_in_transaction_session_timeout=60000"}


def _prepare_sqlite(connection: DBAPIConnection, _record: object) -> None:
    # Python's driver opens transactions behind our back unless told not to; then WAL may not be switched on.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    _switch_to_wal(cursor)
    cursor.close()


def _switch_to_wal(cursor: DBAPICursor) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            # A new file can be switched by one connection only, and this is the one lock SQLite does not wait for.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once if another wrote in between, whatever the
    # timeout. So whoever means to write takes the write lock at the start, where waiting works.
    writes = connection.get_execution_options().get("writes", True)
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
