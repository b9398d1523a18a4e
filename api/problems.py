"""Every error leaves as `application/problem+json` (RFC 9457) with a stable code and the request's id."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.errors import REFUSED_TOO_OFTEN, BadLines, Refused, TooLarge, TooMany
from api.faults import discreet, invalid, listed
from api.store import errors as store
from core.errors import DataError, LetheError, ModelError, SpecError

log = structlog.get_logger()
MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "lethe.request_id"  # where the middleware notes it in the scope
INTERNAL = "Something went wrong inside Lethe. The request id finds the reason in the log."
NOT_MIGRATED = "The database's tables are not those of this version: alembic -c migrations/alembic.ini upgrade head."

_STATUS: dict[type[LetheError], int] = {
    SpecError: 422,
    DataError: 422,
    ModelError: 422,
    store.NotFound: 404,
    store.Conflict: 409,
    store.NotPassed: 409,
    store.DataDestroyed: 409,
    store.OwnRequest: 403,
    store.IdempotencyMismatch: 422,
    store.BlobMissing: 500,
    store.BlobDamaged: 500,
}
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: TooLarge.code}


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """A problem document; `more` are further members."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "param": param,
        "request_id": request.scope[REQUEST_ID],
        **more,
    }
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


# Notes a refusal by status, code and reason; gives the seconds to wait where there were too many to note.
Note = Callable[[Request, int, str, str | None], int | None]


def install(app: FastAPI, note: Note) -> None:
    """Answer every kind of error with a problem document. What nobody expected is the middleware's to answer.

    Whatever is answered 401 or 403 goes through `note`, wherever it was raised.
    """

    def noted(answer: Callable[[Request, Exception], JSONResponse]) -> Callable[[Request, Exception], JSONResponse]:
        def told(request: Request, error: Exception) -> JSONResponse:
            response = answer(request, error)
            if response.status_code not in (401, 403):
                return response
            code = getattr(error, "code", "http_error")
            after = note(request, response.status_code, code, getattr(error, "reason", None))
            return response if after is None else _lethe(request, TooMany(REFUSED_TOO_OFTEN, after))

        return told

    app.add_exception_handler(LetheError, noted(_lethe))
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, noted(_http))
    for kind in (OperationalError, InterfaceError, ProgrammingError, PoolTimeout):
        app.add_exception_handler(kind, _database)


def _lethe(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LetheError)
    more: dict[str, Any] = {}
    detail = error.message
    if isinstance(error, SpecError):
        faults = [{"param": fault.param, "message": discreet(fault)} for fault in error.problems]
        more["errors"], detail = faults, listed(faults)
    elif isinstance(error, BadLines):
        more |= {"errors": error.lines, "count": error.count}
    if isinstance(error, Refused):
        headers = {"Retry-After": str(error.after)} if isinstance(error, TooMany) else error.headers
        return problem(request, error.status, error.code, detail, param=error.param, headers=headers, **more)
    status = _STATUS.get(type(error))
    if status is None:
        raise error
    if status >= 500:
        log.error("the answer is an error of ours", error=type(error).__name__, code=error.code)
    return problem(request, status, error.code, detail, param=error.param, **more)


def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [invalid(fault) for fault in error.errors()]
    return problem(request, 422, "invalid_request", listed(faults), param=faults[0]["param"], errors=faults)


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "http_error")
    headers, detail = error.headers, f"{error.detail}."
    if error.status_code == 404:
        # The path is not repeated: it may hold anything.
        detail = "There is nothing at this path. GET /openapi.json lists all that there are."
    if error.status_code == 405:
        if not (headers and headers.get("Allow") == _STATIC):
            headers = {"Allow": _allowed(request)}
        detail = f"{request.method} is not possible here. Allowed: {headers['Allow']}."
    return problem(request, error.status_code, code, detail, headers=headers)


_STATIC = "GET, HEAD"  # what Starlette's static files say of themselves
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def _allowed(request: Request) -> str:
    """Every method of the path: the router names only those of the first route that fits it.

    A path that stands in the description as it is, such as /jobs/validate, is not also one of its neighbours' ids.
    """
    if described := request.app.openapi()["paths"].get(request.url.path):
        return ", ".join(_with_head([method for method in _METHODS if method.lower() in described]))
    found = [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] == Match.FULL for route in request.app.router.routes
        )
    ]
    return ", ".join(_with_head(found))


def _with_head(methods: Sequence[str]) -> list[str]:
    return [name for method in methods for name in ((method, "HEAD") if method == "GET" else (method,))]


def note_database(error: SQLAlchemyError) -> None:
    """One line in the log: the kind of error and the database's own code for it; its text may hold anything."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    log.error(
        "database error",
        error=type(cause or error).__name__,
        sqlstate=getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None),
    )


def _database(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SQLAlchemyError)
    behind = isinstance(error, DBAPIError) and _is_behind(error.orig)
    if isinstance(error, ProgrammingError) and not behind:
        raise error
    note_database(error)
    if behind:
        return problem(request, 503, "database_not_migrated", NOT_MIGRATED, headers={"Retry-After": "5"})
    return problem(
        request,
        503,
        "database_unavailable",
        "The database cannot be reached at the moment. Try again.",
        headers={"Retry-After": "5"},
    )


def _is_behind(cause: BaseException | None) -> bool:
    """Whether a table or a column is missing. SQLite has no code of its own for that."""
    if isinstance(cause, sqlite3.OperationalError):
        return str(cause).startswith("no such table") or "no such column" in str(cause) or "has no column" in str(cause)
    return getattr(cause, "sqlstate", None) in ("42P01", "42703")  # undefined table, undefined column
