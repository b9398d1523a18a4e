"""How alembic reaches the database: one transaction under a lock, so that a failed or doubled run changes nothing."""

from logging.config import fileConfig

from alembic import context
from sqlalchemy import text

from api.store import records, tables  # noqa: F401  (so that the metadata knows them)
from api.store.columns import Base
from api.store.errors import InvalidSetting
from api.store.session import Database, open_database
from api.store.settings import DatabaseSettings, end, load

# Any number that no other program on the same PostgreSQL database uses.
LOCK = 5_218_463_107


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
    """Run what alembic was asked to."""
    database = opened()
    with database.engine.connect() as connection:
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
            context.run_migrations()
    database.close()


if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
migrate()
