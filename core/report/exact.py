"""JSON where every character matters: read so that no two readers can see different things in it, compared exactly."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from core.report.keys import EvidenceError

_DEEPEST = 64


def read(content: bytes, name: str) -> Any:
    """The JSON value in `content`, its fractions as Decimal so that no digit is lost.

    Raises EvidenceError, naming `name`, for what is not JSON, NaN, infinities, a field given twice and deep nests.
    """
    try:
        text = content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_once, parse_float=_fraction, parse_constant=_fraction)
        # Half a surrogate pair can be written in JSON, but it is no text.
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeDecodeError as error:
        raise EvidenceError(f"{name} is not UTF-8 at byte {error.start}.") from None
    except (ArithmeticError, RecursionError, ValueError) as error:
        raise EvidenceError(f"{name} is not JSON: {error}.") from None
    if _depth_exceeds(value, _DEEPEST):
        raise EvidenceError(f"{name} is nested more than {_DEEPEST} levels deep.")
    return value


def plain(value: Any) -> Any:
    """A value from `read` with fractions as floats, as json.loads would have given it."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return float(value) if isinstance(value, Decimal) else value


def differences(found: Any, signed: Any, path: str = "") -> Iterator[str]:
    """Where two values from `read` differ, each as a clause; 1 is not 1.0, and 0.0 is not -0.0."""
    if isinstance(found, dict) and isinstance(signed, dict):
        for key in sorted(found.keys() | signed.keys()):
            inner = f"{path}.{printable(key)}" if path else printable(key)
            if key not in found:
                yield f"{inner} is missing"
            elif key not in signed:
                yield f"{inner} was not signed"
            else:
                yield from differences(found[key], signed[key], inner)
    elif isinstance(found, list) and isinstance(signed, list):
        if len(found) != len(signed):
            yield f"{path} has {len(found)} entries, signed were {len(signed)}"
        for i, (one, other) in enumerate(zip(found, signed, strict=False)):
            yield from differences(one, other, f"{path}.{i}")
    elif type(found) is not type(signed) or found != signed or str(found)[:1] != str(signed)[:1]:
        yield f"{path} is {shown(found)}, signed was {shown(signed)}"


def shown(value: Any) -> str:
    """A value from a file, cut to one short line that a terminal can print."""
    text = printable(str(value if isinstance(value, Decimal) else plain(value)))
    return text if len(text) <= 80 else text[:77] + "..."


def printable(text: str) -> str:
    """The text, in quotes and with escapes if a terminal would do anything but print it."""
    return text if text.isprintable() else repr(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field {twice!r} is given twice")
    return fields


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _inside(outer)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _fraction(text: str) -> Decimal:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no number")
    return Decimal(text)
