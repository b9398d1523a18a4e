"""What every command that speaks to a service has in common: where it is, by which key, and how answers are printed."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from api.client import Client
from core.errors import LetheError, Problem, SpecError

Url = Annotated[str, typer.Option("--url", envvar="LETHE_URL", help="where the service is")]
Key = Annotated[str, typer.Option("--api-key", envvar="LETHE_API_KEY", help="a key of the service", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="print the service's answer as JSON")]
Reason = Annotated[str, typer.Option("--reason", help="why; it goes into the history and the audit log")]
Most = Annotated[int, typer.Option("--limit", min=1, help="how many at most")]

HERE = "http://127.0.0.1:8000"
_PIECE = 1 << 20


class NoKey(LetheError):
    """A command that needs an API key was given none."""

    code = "no_api_key"
    exit_code = 2


def connected(url: str, key: str) -> Client:
    """A client of the service. Raises NoKey, and SpecError for what is no URL of one."""
    if not url.startswith(("http://", "https://")):
        raise SpecError([Problem("--url", url, f"'{url}' does not begin with http:// or https://.")])
    if not key:
        raise NoKey("An API key is needed: set LETHE_API_KEY, or give --api-key.")
    return Client(url, key)


def uploaded(client: Client, file: Path, name: str | None = None) -> dict[str, Any]:
    """The data set that a file of JSON lines becomes, sent piece by piece. Raises SpecError and ServiceError."""
    try:
        with file.open("rb") as lines:
            return client.upload_lines(iter(lambda: lines.read(_PIECE), b""), name or file.name)
    except OSError as error:
        raise unreadable(file, error) from None


def unreadable(file: Path, error: OSError) -> SpecError:
    """The error that says so."""
    return SpecError([Problem("", None, f"{file} cannot be read: {error.strerror}.")])


def show(answer: Mapping[str, Any], as_json: bool, fields: Sequence[str]) -> None:
    """Print one thing: as JSON, or its fields a line each. A field that is empty is left out; `a.b` is b within a."""
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    found = {field: _within(answer, field) for field in fields}
    width = max(map(len, fields))
    for field, value in found.items():
        if value not in (None, "", [], {}, False):
            print(f"{field:<{width}}  {_text(value)}")


def rows(answers: Iterable[Mapping[str, Any]], as_json: bool, columns: Sequence[str]) -> None:
    """Print many things: a JSON object a line as they come, or a table."""
    if as_json:
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False))
        return
    table = [[_text(_within(answer, column)) for column in columns] for answer in answers]
    if not table:
        print("There are none.", file=sys.stderr)
        return
    widths = [max(len(line[i]) for line in (columns, *table)) for i in range(len(columns))]
    for line in (columns, *table):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _within(answer: Any, field: str) -> Any:
    for name in field.split("."):
        answer = answer.get(name) if isinstance(answer, Mapping) else None
    return answer


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
