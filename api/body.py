"""Reading a JSON body: of the right type, not too large, not too deep, and never guessed at."""

import json
from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeVar

import anyio
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from api.deps import service_of
from api.errors import BadJson, TooLarge, UnsupportedType, UploadStalled

DEPTH = 32
M = TypeVar("M", bound=BaseModel)


async def arriving(request: Request) -> AsyncIterator[bytes]:
    """The body's pieces, none of them empty. Raises UploadStalled where one, or all of them, take too long."""
    settings = service_of(request).settings
    deadline = anyio.current_time() + settings.upload_seconds
    more = True
    while more:
        with anyio.move_on_after(min(settings.upload_idle, deadline - anyio.current_time())) as wait:
            message = await request.receive()
        if anyio.current_time() >= deadline:
            raise UploadStalled(f"The body took more than {settings.upload_seconds:g} seconds; nothing was stored.")
        if wait.cancelled_caught:
            raise UploadStalled(f"Nothing came for {settings.upload_idle:g} seconds; nothing was stored.")
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        # Starlette's own stream asks once more than there are pieces, and each wait has its price.
        more = message.get("more_body", False)
        if piece := message.get("body"):
            yield piece


async def json_body(request: Request) -> Any:
    """The decoded body. Raises UnsupportedType, UploadStalled, TooLarge and BadJson."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedType("The body must be sent as Content-Type: application/json.", param="Content-Type")
    limit = service_of(request).settings.max_body
    body = bytearray()
    async for piece in arriving(request):
        body += piece
        if len(body) > limit:
            raise TooLarge(f"The body is larger than the {limit} bytes allowed.")
    return decoded(bytes(body))


def decoded(body: bytes) -> Any:
    """The JSON value in `body`. Raises BadJson with the place of the fault, never with what stands there."""
    if not body:
        raise BadJson("The body is empty.")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_each_once)
    except UnicodeDecodeError as error:
        raise BadJson(f"The body is not UTF-8 at byte {error.start}.") from None
    except json.JSONDecodeError as error:
        raise BadJson(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except ValueError:  # Python reads no integer of more than 4300 digits.
        raise BadJson(
            "The body is not JSON: NaN, infinities and numbers of thousands of digits are not allowed."
        ) from None
    except RecursionError:
        value = None
        deep = True
    else:
        deep = _deeper_than(value, DEPTH)
    if deep:
        raise BadJson(f"The body is nested too deeply: at most {DEPTH} levels are allowed.")
    return value


def read_as(model: type[M], value: Any) -> M:
    """The value as a model. Raises RequestValidationError naming every fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values under one key it is unknown which was meant; the key is not repeated, it may be anything."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadJson("The body gives a field twice in one object.")
    return found


def _no_number(_text: str) -> NoReturn:
    raise ValueError


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(inner, dict | list) for inner in layer)
