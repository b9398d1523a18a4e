"""What commands need that read or write the service's database themselves, on the service's machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from api.store.session import Database
    from api.store.settings import DatabaseSettings

    S = TypeVar("S", bound=DatabaseSettings)


@contextmanager
def opened(kind: "type[S]") -> "Iterator[tuple[Database, S]]":
    """The database, and settings of this kind. Raises InvalidSetting where it cannot be used."""
    from sqlalchemy.exc import SQLAlchemyError

    from api.store.errors import InvalidSetting
    from api.store.session import open_database
    from api.store.settings import load

    settings = load(kind)
    database = open_database(settings.database_url)
    try:
        yield database, settings
    except SQLAlchemyError as error:
        raise InvalidSetting(
            f"The database cannot be used ({type(error).__name__}). Is LETHE_DATABASE_URL right, and has "
            "`alembic -c migrations/alembic.ini upgrade head` been run?"
        ) from None
    finally:
        database.close()
