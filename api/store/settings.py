"""What the store must be told: where its database, its broker and its files are. Read from LETHE_* variables."""

import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api.store.errors import InvalidSetting
from core.errors import LetheError

S = TypeVar("S", bound=BaseSettings)
T = TypeVar("T")

# What stands in examples and in files that were copied and not filled in.
_PLACEHOLDERS = ("change", "default", "example", "password", "placeholder", "secret")
_A_SLIP = 0.92  # of a name that is alike; settings of other parts are less so, which a test sees to
_VARIETY = 10  # different characters that chance gives to any 32


def _no_placeholder(value: str, info: ValidationInfo) -> str:
    if info.data.get("embedded"):
        return value
    found = next((word for word in _PLACEHOLDERS if word in value.lower()), None)
    if found is not None or len(set(value)) < _VARIETY:
        why = f"it holds the word {found}" if found else f"it has fewer than {_VARIETY} different characters"
        raise PydanticCustomError("placeholder", f"This is no secret: {why}. `openssl rand -hex 32` makes one")
    return value


# A text by which the deployment is kept apart from all others; it must have been made by chance.
Secret = Annotated[str, AfterValidator(_no_placeholder)]


def _read_as_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise PydanticCustomError("json_list", 'This is no JSON list. Allowed: such as ["one", "another"], or []')
    return found


# Read here and not by pydantic-settings, whose own error names neither the variable nor the value.
JsonList = Annotated[list[T], NoDecode, BeforeValidator(_read_as_json)]


class DatabaseSettings(BaseSettings):
    """The part that migrations need."""

    model_config = SettingsConfigDict(env_prefix="LETHE_", extra="ignore", hide_input_in_errors=True)

    # Never in a repr: the URL holds the database's password.
    database_url: str = Field(
        repr=False,
        description="sqlite:////absolute/path/lethe.db, or postgresql://user:password@host/name",
    )
    embedded: bool = Field(
        False,
        description="set by `lethe up`, which makes the secrets itself; otherwise each must be given and be no "
        "placeholder, the signing key too",
    )


class StoreSettings(DatabaseSettings):
    """Base of the settings of the API and of the worker."""

    broker_url: str = Field(
        repr=False,
        description="where job ids are queued for workers: redis://host:6379/0, or redis+socket:///path/to/socket",
    )
    master_key: Secret = Field(
        min_length=32,
        repr=False,
        description="secret under which the keys of data sets are wrapped, at least 32 characters, the same for API "
        "and workers; whoever loses it has lost every data set, whoever changes it too",
    )
    artifacts_url: str = Field(
        repr=False,
        description="where artifacts are kept, as fsspec writes it: file:///var/lib/lethe/artifacts, s3://bucket/prefix",
    )
    due_soon_days: float = Field(7, gt=0, le=366, description="how many days before its due date a job is due soon")


def load(kind: type[S]) -> S:
    """Settings from the environment. Raises InvalidSetting naming every variable that is missing, wrong or misspelt."""
    if misspelt := [f"{given} is no setting: did you mean {meant}?" for given, meant in slips(kind, os.environ)]:
        raise InvalidSetting(" ".join(misspelt))
    try:
        return kind()
    except ValidationError as error:
        raise InvalidSetting("; ".join(_fault(kind, fault) for fault in error.errors())) from None


def _fault(kind: type[BaseSettings], fault: ErrorDetails) -> str:
    name = str(fault["loc"][0])
    # What is kept out of the repr may hold a password.
    told = fault["type"] != "missing" and kind.model_fields[name].repr
    given = f" (got {json.dumps(fault['input'], ensure_ascii=False, default=str)})" if told else ""
    return f"LETHE_{name.upper()}: {fault['msg']}{given}"


def slips(kind: type[BaseSettings], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Variables that are a setting but for a letter, each with that one: what was meant must not be off unnoticed.

    Any other unknown name is let be, since one environment serves several parts.
    """
    known = [f"LETHE_{name.upper()}" for name in kind.model_fields]
    for given in sorted(name for name in names if name.upper().startswith("LETHE_") and name.upper() not in known):
        for meant in difflib.get_close_matches(given.upper(), known, n=1, cutoff=_A_SLIP):
            yield given, meant


def end(error: LetheError) -> NoReturn:
    """End the process with exit code 2 and one line: a traceback would hide what is to be mended."""
    print(f"lethe: {error.message}", file=sys.stderr)
    sys.exit(2)
