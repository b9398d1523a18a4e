"""Every refusal is noted in the audit log: who was refused what, and why. Nothing that a caller wrote freely is.

It must be no way to fill the disk. Beyond a limit refusals are answered 429, and one entry tells how many there were.
"""

import ipaddress
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError

from api.rates import Rate, Taken
from api.store import audit, keys
from api.store.session import Database
from api.store.tables import ApiKey

log = structlog.get_logger()

CALLER: Final = "lethe.caller"  # the key that a request came with, where it opens something, in the scope
ACTION: Final = "access.refused"
ANYBODY: Final = "anonymous"
ALL_TOGETHER: Final = 20  # times one caller's limit
_MOST_COUNTED: Final = 100  # strangers counted one by one; all others are counted together
# Keys have a total of their own: strangers could otherwise use all of it up, and then whoever has a key goes unseen.
_STRANGERS: Final = "all"
_KEYS: Final = "keys"


@dataclass
class _Flood:
    """Refusals of one caller that were not noted one by one."""

    actor: str
    key_id: str | None
    until: float  # end of the window, monotonic
    seconds: int
    count: int = 0
    routes: set[str] = field(default_factory=set)


class Refusals:
    """Notes refusals. `each` limits one caller's; `all_together` those of all keys, and those of all who have none.
    Neither: all are noted."""

    def __init__(self, database: Database, secret: bytes, each: Rate | None, all_together: Rate | None) -> None:
        self._database = database
        self._secret = secret
        self._each = each
        self._all = all_together
        self._lock = threading.Lock()
        self._floods: dict[str, _Flood] = {}

    def note(self, request: Request, status: int, code: str, reason: str | None) -> int | None:
        """Note the refusal; or, where there were too many, count it and return the seconds until the next is noted."""
        key: ApiKey | None = request.scope.get(CALLER)
        who = key.id if key else _network(request)
        for rate, name in ((self._each, who), (self._all, _KEYS if key else _STRANGERS)):
            taken = rate.take(name) if rate else None
            if taken is not None and not taken.allowed:
                # A key's are always counted as its own.
                self._count(who if key else name, key, _route(request), taken)
                return taken.reset
        facts = {"status": status, "code": code, "method": request.scope["method"], "route": _route(request)}
        self._write(
            key.principal_id if key else ANYBODY, key.id if key else None, {**facts, **self._why(request, reason)}
        )
        return None

    def shut_out(self, request: Request) -> int | None:
        """Count a call whose key nobody looks up, since its network has used its limit up; the seconds that lasts.

        None where it has not.
        """
        network = _network(request)
        spent = self._each.spent(network) if self._each else None
        if spent is None:
            return None
        self._count(network, None, _route(request), spent)
        return spent.reset

    def flush(self, *, whole: bool = False) -> None:
        """Write one entry for each caller whose refusals were counted, once its window is over; `whole`: at once."""
        with self._lock:
            over = [who for who, flood in self._floods.items() if whole or flood.until <= time.monotonic()]
            floods = [self._floods.pop(who) for who in over]
        for flood in floods:
            facts = {"code": "too_many_refusals", "count": flood.count, "within_seconds": flood.seconds}
            self._write(flood.actor, flood.key_id, {**facts, "routes": sorted(flood.routes)})

    def _why(self, request: Request, reason: str | None) -> Mapping[str, Any]:
        """What is wrong with the key that was sent, which the answer does not tell."""
        if reason is not None or CALLER in request.scope:
            return {"reason": reason} if reason else {}
        scheme, _, presented = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not presented:
            return {"reason": "no_key"}
        prefix = keys.formed(presented)
        if prefix is None:
            return {"reason": "malformed"}
        try:
            key, fault = keys.examine(self._database, presented, self._secret)
        except SQLAlchemyError:
            key, fault = None, None
        of = {"key": key.id, "principal": key.principal_id} if key else {}
        return {"reason": fault, "prefix": prefix, **of}

    def _count(self, name: str, key: ApiKey | None, route: str, taken: Taken) -> None:
        until = time.monotonic() + taken.reset
        with self._lock:
            if key is None and name not in self._floods and len(self._floods) >= _MOST_COUNTED:
                name = _STRANGERS
            actor, key_id = (key.principal_id, key.id) if key else (ANYBODY, None)
            flood = self._floods.setdefault(name, _Flood(actor, key_id, until, taken.window))
            flood.count += 1
            flood.routes.add(route)

    def _write(self, actor: str, key_id: str | None, facts: Mapping[str, Any]) -> None:
        try:
            with self._database.transaction() as session:
                audit.append(session, actor=actor, key_id=key_id, action=ACTION, subject="api", facts=facts)
        except SQLAlchemyError as error:
            # Without a database nothing can be read or changed either; the refusal stands.
            log.error("refusal not noted", error=type(error).__name__, **facts)


def _route(request: Request) -> str:
    return getattr(request.scope.get("route"), "path", "") or "none"


def _network(request: Request) -> str:
    """Where a caller comes from: an address, or of IPv6 the network of which one household has all addresses."""
    host = request.client.host if request.client else "nowhere"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host
