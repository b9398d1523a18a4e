"""`lethe datasets`: upload records, and read or destroy what was uploaded."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from api.commands.asked import HERE, AsJson, Key, Most, Url, connected, rows, show, uploaded

app = typer.Typer(help="Data sets of a service: uploaded, encrypted, never given out again.", no_args_is_help=True)

DatasetId = Annotated[str, typer.Argument(help="the data set's id", metavar="DATASET")]
_FIELDS = (
    "id", "name", "rows", "bytes", "commitment", "commitment_key", "warnings", "created_at", "destroyed_at",
)  # fmt: skip


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="JSON lines, a record each")],
    name: Annotated[str | None, typer.Option(help="what to call it; absent: the file's name")] = None,
    url: Url = HERE,
    api_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Upload a set. The commitment key is shown this once: without it nobody can prove what was in the set."""
    with connected(url, api_key) as client:
        made = uploaded(client, file, name)
    show(made, as_json, _FIELDS)
    if not as_json and made.get("commitment_key"):
        print("Keep the commitment key: it is not shown again, and `lethe prove` needs it.", file=sys.stderr)


@app.command("list")
def listing(limit: Most = 50, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Data sets, the newest first."""
    with connected(url, api_key) as client:
        rows(client.pages("/datasets", limit), as_json, ("id", "name", "rows", "bytes", "created_at", "destroyed_at"))


@app.command("show")
def one(dataset: DatasetId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """What is known about a data set."""
    with connected(url, api_key) as client:
        show(client.get(f"/datasets/{dataset}"), as_json, _FIELDS)


@app.command()
def delete(dataset: DatasetId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Destroy a data set's key now, and with it every copy of its records."""
    with connected(url, api_key) as client:
        show(client.delete(f"/datasets/{dataset}"), as_json, _FIELDS)
