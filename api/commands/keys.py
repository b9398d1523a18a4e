"""`lethe keys`, `lethe principals`: who may speak to a service. They work on its database, so they need no key,
and make the first one."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from api.commands.asked import AsJson
from api.commands.books import opened

app = typer.Typer(help="API keys: make, list, revoke.", no_args_is_help=True)
principals = typer.Typer(help="The people and programs that have keys.", no_args_is_help=True)

ACTOR = "cli"


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="what the key is for; also whose it is, where --principal is absent")],
    principal: Annotated[str | None, typer.Option(help="name of whoever acts through it, entered if new")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="what it may do; give it several times; absent: admin")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="days until it expires; absent: never")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It cannot be shown again."""
    from api.settings import KeySettings
    from api.store import keys as store
    from api.store.session import now
    from core.errors import Problem, SpecError
    from core.spec.base import nearest

    known: dict[str, store.Scope] = {name: name for name in store.SCOPES}
    wanted = scope or ["admin"]
    if unknown := [name for name in wanted if name not in known]:
        raise SpecError([Problem("--scope", name, f"'{name}' is no scope.{nearest(name, known)}") for name in unknown])
    with opened(KeySettings) as (database, settings), database.transaction() as session:
        key, text = store.create(
            session,
            settings.key_secret.encode(),
            name=name,
            principal=principal,
            scopes=[known[s] for s in wanted],
            actor=ACTOR,
            expires_at=now(session) + timedelta(days=days) if days else None,
        )
    print(json.dumps({**_told(key), "key": text}) if as_json else text)


@app.command("list")
def listing(as_json: AsJson = False) -> None:
    """All keys, the newest first; their text is kept nowhere. With --json one document a line."""
    from api.settings import KeySettings
    from api.store import keys as store
    from api.store import principals as owners

    with opened(KeySettings) as (database, _), database.reading() as session:
        names = {owner.id: owner.name for owner in owners.every(session)}
        for key in store.every(session):
            shown = {**_told(key), "principal_name": names.get(key.principal_id, "")}
            if as_json:
                print(json.dumps(shown))
            else:
                times = [f"{name}={value}" for name, value in shown.items() if name.endswith("_at")]
                whose = f"{shown['principal_name']} ({key.principal_id})"
                print(key.id, f"lethe_{key.prefix}_...", key.name, whose, ",".join(key.scopes), *times, sep="  ")


@app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="the key's id, as `lethe keys list` gives it")]) -> None:
    """Make a key useless from now on; processes of the API notice within two seconds."""
    from api.settings import KeySettings
    from api.store import keys as store

    with opened(KeySettings) as (database, _), database.transaction() as session:
        store.revoke(session, key_id, actor=ACTOR)
    print(f"{key_id} is revoked.")


@principals.command("list")
def list_principals(as_json: AsJson = False) -> None:
    """All principals, the newest first. With --json one document a line."""
    from api.store import principals as store
    from api.store.settings import DatabaseSettings

    with opened(DatabaseSettings) as (database, _), database.reading() as session:
        for one in store.every(session):
            shown = {"id": one.id, "name": one.name, **_times(one, ("created_at", "disabled_at"))}
            print(json.dumps(shown) if as_json else "  ".join(map(str, shown.values())))


@principals.command("disable")
def disable(principal_id: Annotated[str, typer.Argument(help="id, as `lethe principals list` gives it")]) -> None:
    """Let none of a principal's keys open anything any more."""
    from api.store import principals as store
    from api.store.settings import DatabaseSettings

    with opened(DatabaseSettings) as (database, _), database.transaction() as session:
        store.disable(session, principal_id, actor=ACTOR)
    print(f"{principal_id} is disabled.")


def _told(key: Any) -> Mapping[str, Any]:
    told = {"id": key.id, "name": key.name, "prefix": key.prefix, "principal": key.principal_id, "scopes": key.scopes}
    return {**told, **_times(key, ("created_at", "expires_at", "last_used_at", "revoked_at"))}


def _times(row: Any, names: Sequence[str]) -> Mapping[str, str]:
    found: dict[str, datetime | None] = {name: getattr(row, name) for name in names}
    return {name: moment.isoformat(timespec="seconds") for name, moment in found.items() if moment}
