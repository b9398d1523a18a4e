"""`lethe models`: register, promote, roll back, delete."""

from pathlib import Path
from typing import Annotated

import typer

from api.commands.asked import HERE, AsJson, Key, Most, Reason, Url, connected, rows, show

app = typer.Typer(help="Models of a service and the names that stand for them.", no_args_is_help=True)

ModelId = Annotated[str, typer.Argument(help="the model's id", metavar="MODEL")]
AliasName = Annotated[str, typer.Option("--alias", help="the name that is to stand for it")]
_FIELDS = (
    "id", "name", "path", "architecture", "parameters", "digest", "parent", "job", "aliases", "created_at",
    "deleted_at",
)  # fmt: skip


@app.command()
def register(
    path: Annotated[Path, typer.Argument(help="a folder on the service's machine, below one of its model roots")],
    name: Annotated[str | None, typer.Option(help="what to call it; absent: the folder's name")] = None,
    url: Url = HERE,
    api_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Register a model folder, pinned by its digest."""
    with connected(url, api_key) as client:
        show(client.post("/models", {"path": str(path), "name": name}), as_json, _FIELDS)


@app.command("list")
def listing(limit: Most = 50, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Models, the newest first."""
    columns = ("id", "name", "architecture", "parent", "job", "aliases", "created_at")
    with connected(url, api_key) as client:
        rows(client.pages("/models", limit), as_json, columns)


@app.command("show")
def one(model: ModelId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """What is recorded about a model."""
    with connected(url, api_key) as client:
        show(client.get(f"/models/{model}"), as_json, _FIELDS)


@app.command()
def lineage(model: ModelId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """The line of models that it descends from, and the jobs between them."""
    with connected(url, api_key) as client:
        line = client.get(f"/models/{model}/lineage")["data"]
    rows(line, as_json, ("id", "name", "job", "created_at", "deleted_at"))


@app.command()
def promote(
    model: ModelId,
    reason: Reason,
    alias: AliasName = "production",
    force: Annotated[bool, typer.Option("--force", help="also where the verdict is not `passed`")] = False,
    url: Url = HERE,
    api_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Let a name stand for this model from now on."""
    with connected(url, api_key) as client:
        asked = {"model": model, "reason": reason, "force": force}
        show(client.put(f"/aliases/{alias}", asked), as_json, ("name", "model", "changed_at"))


@app.command()
def rollback(
    reason: Reason,
    alias: AliasName = "production",
    url: Url = HERE,
    api_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Let the name stand again for the model that it stood for before."""
    with connected(url, api_key) as client:
        asked = {"reason": reason}
        show(client.post(f"/aliases/{alias}/rollback", asked), as_json, ("name", "model", "changed_at"))


@app.command()
def aliases(url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Every name and the model that it stands for."""
    with connected(url, api_key) as client:
        rows(client.get("/aliases")["data"], as_json, ("name", "model", "changed_at"))


@app.command()
def delete(model: ModelId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Delete a model with its files; what a job left stays otherwise, its report above all."""
    with connected(url, api_key) as client:
        show(client.delete(f"/models/{model}"), as_json, _FIELDS)
