"""What the store must be told: where its database, its broker and its files are. Read from LETHE_* variables."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class DatabaseSettings(BaseSettings):
    """The part that migrations need."""

    model_config = SettingsConfigDict(env_prefix="LETHE_", extra="ignore")

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
    artifacts_url: str = Field(
        description="where artifacts are kept, as fsspec writes it: file:///var/lib/lethe/artifacts, s3://bucket/prefix",
    )
