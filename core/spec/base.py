"""The base of every spec class: frozen, no unknown fields, and an unknown field names its nearest known neighbour.

Beside it, how a message shows a value, and the fault of fields that do not go together.
"""

import difflib
import json
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

# An operating system ends a path at its first zero character, so such a path never names what it seems to name.
FILE_PATH = r"^[^\x00]+$"
FilePath = Annotated[str, Field(min_length=1, max_length=4096, pattern=FILE_PATH)]

# A search for neighbours costs far more than a key costs its sender.
_MOST_UNKNOWN = 10


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause for an error message: the closest known name, if any is close, then all of them."""
    names = sorted(known)
    folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean '{folded[close[0]]}'?" if close else ""
    return f"{hint} Allowed: {', '.join(names)}."


def quotable(text: str) -> str:
    """The text as an error message may quote it: at most 80 characters, all of which UTF-8 can carry."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """The value as JSON, as an error message may quote it."""
    try:
        return quotable(json.dumps(value, ensure_ascii=False, default=str))
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that cannot be shown"


def sendable(value: Any) -> Any:
    """The value, or its short form where no JSON document could carry it: NaN, half a surrogate pair, a deep nest."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (RecursionError, TypeError, ValueError):
        return shown(value)
    return value


def conflict(param: str, value: Any, message: str) -> PydanticCustomError:
    """The fault of a field that does not go with another: its path from the class that raises, its value, a sentence.

    The value is told because a default stands nowhere in what was sent.
    """
    return PydanticCustomError("conflict", "{said}", {"said": message, "param": param, "value": value})


class Spec(BaseModel):
    """Part of a request. Numbers must be finite; fields may not be changed after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    citation: ClassVar[str] = ""
    shorthands: ClassVar[tuple[str, ...]] = ()  # fields that are gone by the time it is parsed, and may be given too

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # Pydantic copies a default into every request that leaves it out; of what never changes one is enough.
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _known_fields_only(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict) or data.keys() <= cls.__pydantic_fields__.keys():
            return handler(data)
        unknown = [key for key in data if key not in cls.model_fields]
        faults = [
            _unknown(str(key), data[key], (*cls.model_fields, *cls.shorthands)) for key in unknown[:_MOST_UNKNOWN]
        ]
        try:
            handler({key: value for key, value in data.items() if key in cls.model_fields})
        except ValidationError as error:
            faults += [_again(fault) for fault in error.errors(include_url=False)]
        raise ValidationError.from_exception_data(cls.__name__, faults)


def _unknown(key: str, value: Any, known: Iterable[str]) -> InitErrorDetails:
    field = quotable(key)
    kind = PydanticCustomError(
        "unknown_field", "Unknown field '{field}'.{nearest}", {"field": field, "nearest": nearest(field, known)}
    )
    return InitErrorDetails(type=kind, loc=(field,), input=value)


def _again(fault: ErrorDetails) -> InitErrorDetails:
    """A fault already found, in the form in which it can be raised together with others."""
    kind = PydanticCustomError(fault["type"], fault["msg"], fault.get("ctx", {}))
    return InitErrorDetails(type=kind, loc=fault["loc"], input=fault["input"])
