"""What routes are given: the service's parts, the caller's key, and a page's place."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field

from api.asked_jobs import AskedJobs
from api.errors import REFUSED_TOO_OFTEN, Forbidden, TooMany, Unauthorized
from api.known_keys import KnownKeys
from api.leaving import AtWork, Leaving
from api.meter import Meter
from api.queue import Queue
from api.rates import RATE_HEADERS, Counts, Rate
from api.readiness import Readiness
from api.refusals import CALLER, Refusals
from api.settings import Settings
from api.store import keys
from api.store.blobs import Blobs
from api.store.keys import Scope
from api.store.session import Database
from api.store.tables import ApiKey
from api.store.vault import Vault
from api.webhooks.targets import Guard
from core.spec.base import Spec

bearer = HTTPBearer(auto_error=False, description="An API key: `lethe_...`")
# The largest number that both databases count rows and steps with.
MOST = 2**63 - 1


@dataclass(frozen=True)
class Service:
    """The parts of a running API."""

    settings: Settings
    database: Database
    blobs: Blobs
    queue: Queue
    vault: Vault
    known_keys: KnownKeys
    guard: Guard
    meter: Meter
    readiness: Readiness
    leaving: Leaving
    counts: Counts
    together: AskedJobs
    rate: Rate | None  # of a key's calls
    refusals: Refusals
    uploads: CapacityLimiter
    receiving: AtWork
    hashing: CapacityLimiter
    streams: Counter[str] = field(default_factory=Counter)  # of events that are open, by key


def service_of(request: Request) -> Service:
    """The parts that `create_app` put together."""
    service: Service = request.app.state.service
    return service


# Dependencies that wait for nothing are coroutines: FastAPI sends each plain function to a thread, there and back.
async def _parts(request: Request) -> Service:
    return service_of(request)


Parts = Annotated[Service, Depends(_parts)]


async def authenticated(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> ApiKey:
    """The caller's key, and one more call counted for it. Raises Unauthorized and TooMany."""
    service = service_of(request)
    if credentials is None:
        raise Unauthorized("An API key is needed. Send it as: Authorization: Bearer lethe_...", param="Authorization")
    text = credentials.credentials
    key = service.known_keys.recalled(text)
    if key is None:
        if not service.known_keys.familiar(text) and (after := service.refusals.shut_out(request)):
            raise TooMany(REFUSED_TOO_OFTEN, after)
        key = await run_in_threadpool(service.known_keys.verify, service.database, text)
    if key is None:
        raise Unauthorized("This API key is unknown, revoked or expired.", param="Authorization")
    request.scope[CALLER] = key
    if service.rate is not None:
        taken = service.rate.at_hand(key.id)
        if taken is None:
            taken = await run_in_threadpool(service.rate.take, key.id)
        request.scope[RATE_HEADERS] = taken.headers()
        if not taken.allowed:
            said = f"This key has made the {taken.limit} calls that it may make in {taken.window} seconds."
            raise TooMany(said, taken.reset)
    return key


async def caller_of(request: Request) -> ApiKey:
    """The key that `authenticated` has found, which comes first on every guarded route; without it nothing is done."""
    key: ApiKey = request.scope[CALLER]
    return key


# Not by way of `authenticated`: FastAPI would walk down all that it depends on once more for each that asks.
Caller = Annotated[ApiKey, Depends(caller_of)]


def requires(scope: Scope) -> Callable[[Request], Awaitable[ApiKey]]:
    """A dependency: the caller's key, which must have the scope. Raises Forbidden."""

    async def allowed(request: Request) -> ApiKey:
        caller = await caller_of(request)
        if not keys.may(caller, scope):
            held = ", ".join(caller.scopes) or "none"
            said = f"This call needs the scope {scope}; this key has: {held}."
            raise Forbidden(said, param="Authorization", reason=f"needs {scope}")
        return caller

    return allowed


Reader = Annotated[ApiKey, Depends(requires("jobs:read"))]
Writer = Annotated[ApiKey, Depends(requires("jobs:write"))]
Approver = Annotated[ApiKey, Depends(requires("jobs:approve"))]
DataWriter = Annotated[ApiKey, Depends(requires("datasets:write"))]
ModelWriter = Annotated[ApiKey, Depends(requires("models:write"))]
Auditor = Annotated[ApiKey, Depends(requires("audit:read"))]
Admin = Annotated[ApiKey, Depends(requires("admin"))]


class PageQuery(Spec):
    """A place in a list that is sorted newest first."""

    after: str | None = Field(None, description="`after` of the page before; absent: from the newest on")
    limit: int = Field(50, ge=1, le=200)
