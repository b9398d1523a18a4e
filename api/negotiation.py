"""Which of the offered media types a caller wants (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence

from api.errors import NotAcceptable

# What was negotiated says so, or a cache would give one caller's answer to another.
VARY = {"Vary": "Accept"}


def preferred(accept: Sequence[str], offered: Sequence[str]) -> str:
    """The offered type that the Accept lines rank highest together; of equals the first. Raises NotAcceptable."""
    ranges = [_range(part) for line in accept for part in line.split(",") if part.strip()]
    if not ranges:
        return offered[0]
    ranked = [(_quality(kind, ranges), -place, kind) for place, kind in enumerate(offered)]
    quality, _, best = max(ranked)
    if quality <= 0:
        raise NotAcceptable(
            f"Nothing that Accept names is offered here. Offered: {', '.join(offered)}.", param="Accept"
        )
    return best


def _range(part: str) -> tuple[str, float]:
    kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return kind, float(parameter[2:])
            except ValueError:
                return kind, 0.0
    return kind, 1.0


def _quality(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The most specific range that covers the type decides."""
    for cover in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        found = [quality for name, quality in ranges if name == cover]
        if found:
            return max(found)
    return 0.0
