"""Identifiers: a prefix that says what it is, then time and chance in base32, so that they sort by age."""

import re
import secrets
import time
from collections.abc import Callable

# Crockford's alphabet: ascending in every collation, and no letter that is mistaken for a digit.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PATTERN = re.compile(r"[a-z]{2,4}_[0-9a-z]{8,40}")


def base32(number: int, length: int) -> str:
    """`number` as exactly `length` digits of five bits, the highest first; higher bits are dropped."""
    return "".join(ALPHABET[(number >> shift) & 31] for shift in range(5 * (length - 1), -1, -5))


def new_id(prefix: str) -> str:
    """48 bits of milliseconds since 1970 and 80 random bits, as 26 digits behind the prefix."""
    return f"{prefix}_{base32(time.time_ns() // 1_000_000 << 80 | secrets.randbits(80), 26)}"


def maker(prefix: str) -> Callable[[], str]:
    """A column default that makes ids of one kind."""
    return lambda: new_id(prefix)


def plausible(value: str) -> bool:
    """Whether this could be an id at all. What could not must not reach the database, which may choke on it."""
    return _PATTERN.fullmatch(value) is not None
