"""How alembic reaches the database: one transaction under a lock, so that a failed or doubled run changes nothing.

Workers and API may go on meanwhile, as long as a migration only adds.
"""

import time
from logging.config import fileConfig

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from api.store import records, tables  # noqa: F401  (so that the metadata knows them)
from api.store.columns import Base
from api.store.errors import InvalidSetting
from api.store.session import Database, open_database
from api.store.settings import DatabaseSettings, end, load

# Any number that no other program on the same PostgreSQL database uses.
LOCK = 5_218_463_107
# Whoever waits to change a table makes all others wait behind it, so it waits for no more than this many milliseconds:
# less than PostgreSQL's deadlock_timeout, so that in a deadlock the migration steps back and no worker.
WAITS = 800
RESTS, GIVES_UP = 1.0, 300.0  # seconds
BUSY = ("55P03", "40P01")  # a lock was not to be had in time; a deadlock


def opened() -> Database:
    """The database that the program passed, or `-x url=...`, or LETHE_DATABASE_URL."""
    passed: str | None = context.config.attributes.get("url")
    if passed:
        return open_database(passed)
    typed: str | None = context.get_x_argument(as_dictionary=True).get("url")
    try:
        return open_database(typed or load(DatabaseSettings).database_url)
    except InvalidSetting as error:
        end(error)


def migrate() -> None:
    """Run what alembic was asked to while the service goes on; where tables are busy, all of it again a bit later."""
    database = opened()
    until = time.monotonic() + GIVES_UP
    while True:
        try:
            with database.engine.connect() as connection:
                _migrate(connection)
            break
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) not in BUSY or time.monotonic() > until:
                raise
            time.sleep(RESTS)
    database.close()


def _migrate(connection: Connection) -> None:
    sqlite = connection.dialect.name == "sqlite"
    # SQLite can roll back tables too, once transactions are begun explicitly, as the store's engine does.
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=sqlite,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if not sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            connection.execute(text(f"SET LOCAL lock_timeout = {WAITS}"))
        context.run_migrations()


if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
migrate()
