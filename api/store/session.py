"""The door to the database: transactions that write, sessions that only read, and its clock."""

import json
import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

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
# A connection that has rested for longer is asked whether it is still there, before it is used.
_FRESH_SECONDS = 1.0
_POOL = {"pool_size": 5, "max_overflow": 7}


class Database:
    """The database, and the kinds of session there are."""

    def __init__(self, engine: Engine, readers: Engine) -> None:
        """`readers` is the same database, through connections that cannot write."""
        self.engine = engine
        self._readers = readers
        # Rows stay readable after the transaction, so that callers may carry them out of it.
        self._writing = sessionmaker(engine, expire_on_commit=False)
        self._reading = sessionmaker(readers, expire_on_commit=False)
        one_moment = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        self._snapshot = sessionmaker(readers.execution_options(**one_moment), expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose changes are committed at the end of the block, or rolled back by whatever leaves it early."""
        with self._writing.begin() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that may not write, and that on SQLite waits for no writer. Each statement sees what is committed
        when it begins; on PostgreSQL none has to begin or end a transaction."""
        with self._reading() as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A session that may not write, all of whose statements see the database as it was at the first one."""
        with self._snapshot() as session:
            yield session

    def close(self) -> None:
        """Drop all pooled connections."""
        self.engine.dispose()
        self._readers.dispose()


def open_database(url: str) -> Database:
    """Connect lazily to `sqlite:////path` or `postgresql://...`. Raises InvalidSetting for any other URL."""
    target = _target(url)
    if target.get_backend_name() == "sqlite":
        engine = _engine(target, connect_args={"timeout": BUSY_SECONDS}, pool_size=5, max_overflow=15)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return Database(engine.execution_options(writes=True), engine.execution_options(writes=False))
    # A worker that freezes inside a transaction must not hold its job's row for ever.
    options = "-c idle_in_transaction_session_timeout=60000"
    engine = _engine(target, connect_args={"connect_timeout": 10, "options": options}, **_POOL)
    # Connections of their own, so that none has to be told at each use what it may do.
    readers = _engine(
        target,
        connect_args={"connect_timeout": 10, "options": f"{options} -c default_transaction_read_only=on"},
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        **_POOL,
    )
    for each in (engine, readers):
        event.listen(each, "checkin", _rested)
        event.listen(each, "checkout", partial(_still_there, each.dialect))
    return Database(engine, readers)


def _engine(target: URL, **options: Any) -> Engine:
    return create_engine(
        target,
        hide_parameters=True,  # An error's text goes into logs; a data set's key must not.
        json_serializer=partial(json.dumps, allow_nan=False, separators=(",", ":")),
        **options,
    )


def now(session: Session) -> datetime:
    """The database's clock, which all leases are measured by; it moves on within a transaction."""
    dialect = session.get_bind().dialect.name
    moment: datetime | str = session.execute(_CLOCK[dialect]).scalar_one()
    if isinstance(moment, str):
        return datetime.fromisoformat(moment).replace(tzinfo=UTC)
    return moment.astimezone(UTC)


def written(moment: datetime) -> str:
    """The time as messages and answers have it: RFC 3339 in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _target(url: str) -> URL:
    try:
        target = make_url(url)
    except ArgumentError:
        # The text is not repeated: it may hold a password.
        raise InvalidSetting("LETHE_DATABASE_URL is not a URL. " + _ALLOWED, param="database_url") from None
    driver = _DRIVERS.get(target.drivername)
    if driver is None:
        raise InvalidSetting(f"LETHE_DATABASE_URL begins with '{target.drivername}'. {_ALLOWED}", param="database_url")
    if driver.startswith("sqlite") and target.database in (None, "", ":memory:"):
        raise InvalidSetting(f"LETHE_DATABASE_URL names no file. {_ALLOWED}", param="database_url")
    return target.set(drivername=driver)


_ALLOWED = "Allowed: sqlite:////absolute/path/lethe.db, postgresql://user:password@host:port/name."


def _rested(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    record.info["rests_since"] = time.monotonic()


def _still_there(dialect: Dialect, connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Take another connection where this one was lost while it rested. One used a moment ago is not asked: that would
    cost a round trip for each request."""
    if time.monotonic() - record.info.get("rests_since", math.inf) < _FRESH_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        if dialect.is_disconnect(error, connection, None):
            raise DisconnectionError from error
        raise


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
