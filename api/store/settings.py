"""What the store must be told: where its database, its broker and its files are. Read from LETHE_* variables."""

import sys
from typing import NoReturn, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from api.store.errors import InvalidSetting
from core.errors import LetheError

S = TypeVar("S", bound=BaseSettings)


class DatabaseSettings(BaseSettings):
    """The part that migrations need."""

    model_config = SettingsConfigDict(env_prefix="LETHE_", extra="ignore", hide_input_in_errors=True)

    # Never in a repr: the URL holds the database's password.
    database_url: str = Field(
        repr=False,
        description="sqlite:////absolute/path/lethe.db, or postgresql://user:password@host/name",
    )


class StoreSettings(DatabaseSettings):
    """Base of the settings of the API and of the worker."""

    broker_url: str = Field(
        repr=False,
        description="where job ids are queued for workers: redis://host:6379/0, or redis+socket:///path/to/socket",
    )
    master_key: str = Field(
        min_length=32,
        repr=False,
        description="secret under which the keys of data sets are wrapped, at least 32 characters, the same for API "
        "and workers; whoever loses it has lost every data set, whoever changes it too",
    )
    artifacts_url: str = Field(
        repr=False,
        description="where artifacts are kept, as fsspec writes it: file:///var/lib/lethe/artifacts, s3://bucket/prefix",
    )


def load(kind: type[S]) -> S:
    """Settings from the environment. Raises InvalidSetting naming every variable that is missing or wrong."""
    try:
        return kind()
    except SettingsError as error:
        raise InvalidSetting(f'{error}. Lists are written as JSON: ["/models"].') from None
    except ValidationError as error:
        lines = [f"LETHE_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        raise InvalidSetting("; ".join(lines)) from None


def end(error: LetheError) -> NoReturn:
    """End the process with exit code 2 and one line: a traceback would hide what is to be mended."""
    print(f"lethe: {error.message}", file=sys.stderr)
    sys.exit(2)
