"""Around every request: its id, security headers, one line in the log, and an answer where nothing else gave one."""

import re
import secrets
import time
from contextlib import nullcontext

import structlog
from anyio import CancelScope
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.meter import REQUESTS
from api.problems import INTERNAL, REQUEST_ID, problem
from api.rates import RATE_HEADERS
from api.store.ids import plausible

log = structlog.get_logger()

# What a caller sends is written into our logs, so it must look like an id.
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = tuple(
    (name.lower().encode(), value.encode())
    for name, value in {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
    }.items()
)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PROBES = ("/healthz", "/readyz")


class Surround:
    """The outermost layer of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        name = asked if _GIVEN_ID.fullmatch(asked) else f"req_{secrets.token_hex(12)}"
        scope[REQUEST_ID] = name
        status: int | None = None
        head = scope["method"] == "HEAD"
        # HEAD is GET without the body, on every route; the server's own scope must go on saying HEAD.
        inner = {**scope, "method": "GET"} if head else scope

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", name.encode())]
                own += [(key.lower().encode(), value.encode()) for key, value in inner.get(RATE_HEADERS, {}).items()]
                given = list(message.get("headers", ()))
                present = {key.lower() for key, _ in given}
                # A route's own header goes before ours.
                message["headers"] = given + [pair for pair in (*_HEADERS, *own) if pair[0] not in present]
            elif unread is not None:
                await send({"type": "http.response.body"})
                unread.cancel()  # A body may be long, or a stream without an end.
                return
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=name):
            began = time.perf_counter()
            unread = CancelScope() if head else None
            try:
                with unread or nullcontext():
                    await self.app(inner, receive, answer)
            except ClientDisconnect:
                pass  # Nobody is left to be answered.
            except Exception:
                log.exception("unexpected error")
                if status is None:
                    await problem(Request(inner), 500, "internal", INTERNAL)(scope, receive, answer)
            finally:
                _note(inner, scope["method"], status, time.perf_counter() - began)


def _note(scope: Scope, method: str, status: int | None, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", None)
    REQUESTS.labels(_method(method), route or "", status or "left").observe(seconds)
    _log(scope, method, route, status, seconds)


def _method(method: str) -> str:
    """A method that somebody made up must not become a name among the metrics."""
    return method if method in _METHODS else "other"


def _log(scope: Scope, method: str, route: str | None, status: int | None, seconds: float) -> None:
    """One line a request: the route and the job, never the path or the query, which hold whatever a caller wrote."""
    if scope["path"] in _PROBES and status == 200:
        return
    job = scope.get("path_params", {}).get("job_id")
    log.info(
        "request",
        method=method,
        route=route,
        status=status,  # null: the caller left before there was an answer
        milliseconds=round(seconds * 1000, 1),
        **({"job": job} if job and plausible(job) else {}),
    )
