"""Migrations from within the program: for the embedded mode, the tests, and the readiness check."""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from api.store.session import Database

FOLDER = Path(__file__).parents[2] / "migrations"


def upgrade(url: str, revision: str = "head") -> None:
    """Bring a database to a revision. Of several at once one does it and the others find it done."""
    command.upgrade(config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take a database back to a revision; `base` removes every table."""
    command.downgrade(config(url), revision)


def at_head(database: Database) -> bool:
    """Whether the database can be reached and its tables are those this version of Lethe was written for."""
    try:
        with database.reading() as session:
            found = MigrationContext.configure(session.connection()).get_current_heads()
    except SQLAlchemyError:
        return False
    return set(found) == _heads()


@cache
def _heads() -> set[str]:
    """Of this version. Alembic reads and runs every script to find them, and probes ask often."""
    return set(ScriptDirectory(str(FOLDER)).get_heads())


def config(url: str) -> Config:
    """Alembic's configuration for this database. The file is left out: it sets up logging, which is the caller's."""
    settings = Config()
    settings.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    settings.attributes["url"] = url
    return settings
