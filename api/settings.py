"""What the API must be told, read from LETHE_* variables; the store's settings are among them."""

from pathlib import Path
from typing import Annotated

from limits import parse
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from api.store.settings import DatabaseSettings, JsonList, Secret, StoreSettings

MIB = 1 << 20


def _countable(value: str) -> str:
    if value:
        try:
            good = parse(value).amount > 0
        except ValueError:
            good = False
        if not good:
            raise PydanticCustomError("limit", "This is no limit. Allowed: such as 1200/minute, or empty")
    return value


Limit = Annotated[str, AfterValidator(_countable)]


class KeySettings(DatabaseSettings):
    """The part that making and checking API keys needs."""

    key_secret: Secret = Field(
        min_length=32,
        repr=False,
        description="secret under which API keys are hashed, at least 32 characters; whoever changes it voids all keys",
    )


class Settings(KeySettings, StoreSettings):
    """Settings of one API process. Sizes are in bytes, times in seconds."""

    model_roots: JsonList[Path] = Field(
        default_factory=list, description="folders below which a model may be registered, as a JSON list"
    )
    data_roots: JsonList[Path] = Field(
        default_factory=list,
        description="folders below which every path of a request must lie (data, refusals_file, evaluation), as a JSON "
        "list; none: uploads only",
    )
    four_eyes: bool = Field(
        False, description="whether a job begins only once another principal than its submitter has approved it"
    )
    max_body: int = Field(MIB, ge=1024, description="largest JSON body")
    upload_max_bytes: int = Field(1024 * MIB, ge=1, description="largest upload of a data set")
    upload_max_rows: int = Field(1_000_000, ge=1, description="most records in an upload")
    upload_max_row: int = Field(MIB, ge=16, description="longest line of an upload")
    upload_idle: float = Field(60, gt=0, description="how long a request's body may send nothing before it is given up")
    upload_seconds: float = Field(3600, gt=0, description="how long a request's body may take in all")
    events_poll: float = Field(0.5, gt=0, description="how often an event stream looks for news")
    events_heartbeat: float = Field(15, gt=0, description="longest silence of an event stream")
    events_streams: int = Field(100, ge=1, description="how many event streams of one key a process keeps open at once")
    rate_limit: Limit = Field(
        "1200/minute", description="how many calls a key may make, such as 20/second or 1200/minute; empty: any number"
    )
    refusal_limit: Limit = Field(
        "60/minute",
        description="how many refusals of one key or address go into the audit log one by one, and twenty times as many"
        " of all keys together, and of all without one; those beyond are answered 429 and counted; empty: all",
    )
    broker_timeout: float = Field(1, gt=0, description="how long the broker may take for one answer")
    metrics_open: bool = Field(False, description="whether /metrics asks for no key")
    webhooks_deliver: bool = Field(True, description="whether this process delivers what waits for webhooks")
    webhook_allow: JsonList[str] = Field(
        default_factory=list,
        description="hosts, addresses and networks that webhooks may lead to though they are not public or speak no "
        'https, as a JSON list such as ["hooks.internal", "10.1.0.0/16"]',
    )

    @field_validator("key_secret")
    @classmethod
    def _another_than_the_master_key(cls, value: str, info: ValidationInfo) -> str:
        # Whoever has to know one of them must not have the other with it.
        if value == info.data.get("master_key"):
            raise PydanticCustomError("same", "This is LETHE_MASTER_KEY again. Give each its own")
        return value
