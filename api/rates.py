"""How often something may be done: so many times in a window, counted in Redis for all API processes together.

A process takes its share in portions, so that Redis is asked once in many calls. While Redis is away each process
counts for itself: a limit is then that many times as high, and nobody is refused for it.
"""

import threading
import time
from dataclasses import dataclass
from typing import Final

import structlog
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, RedisStorage

log = structlog.get_logger()

RATE_HEADERS: Final = "lethe.rate_headers"  # what an answer tells of its key's limit, in the scope
ANSWERS_WITHIN: Final = 0.25  # seconds that Redis has for one answer
ASKED_AGAIN_AFTER: Final = 5.0  # seconds that Redis is left alone after it gave none
_PORTIONS: Final = 60  # of a limit, at least
_MOST: Final = 10_000  # callers remembered


@dataclass(frozen=True)
class Taken:
    """What came of asking for one more. `left` is of the window, as far as this process knows; `reset` in seconds."""

    allowed: bool
    limit: int
    left: int
    window: int  # seconds
    reset: int

    def headers(self) -> dict[str, str]:
        """The RateLimit fields for HTTP, as the IETF draft has them."""
        return {
            "RateLimit-Policy": f'"key";q={self.limit};w={self.window}',
            "RateLimit": f'"key";r={self.left};t={self.reset}',
        }


class Counts:
    """Numbers that go up, in Redis, or in this process while there is none."""

    def __init__(self, broker_url: str) -> None:
        """`broker_url` is a Redis as Celery writes it. Connects at the first count."""
        socket, _, host = broker_url.partition("redis+socket://")
        self._url = f"redis+unix://{host.replace('virtual_host=', 'db=')}" if host else socket
        self._redis: RedisStorage | None = None
        self._own = MemoryStorage()
        self._away_until = 0.0
        self._away = False

    def add(self, name: str, amount: int, seconds: int) -> int:
        """The number by this name, with `amount` added; it is forgotten `seconds` after it was first used."""
        if time.monotonic() >= self._away_until:
            try:
                number = self._in_redis().incr(name, seconds, amount)
            except Exception as error:  # Whatever is wrong with it, nobody is refused for it.
                self._away_until = time.monotonic() + ASKED_AGAIN_AFTER
                if not self._away:
                    log.warning("rate limits are counted in this process alone", error=type(error).__name__)
                self._away = True
            else:
                if self._away:
                    log.info("rate limits are counted in Redis again")
                self._away = False
                return number
        return self._own.incr(name, seconds, amount)

    def close(self) -> None:
        """Drop all connections."""
        if self._redis is not None:
            self._redis.storage.close()

    def _in_redis(self) -> RedisStorage:
        if self._redis is None:
            # Here, since its client takes long to be loaded, and a service must be there at once.
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self._redis = RedisStorage(
                self._url,
                key_prefix="lethe:rate",
                socket_timeout=ANSWERS_WITHIN,
                socket_connect_timeout=ANSWERS_WITHIN,
                retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]  # handed on to redis-py as it is
            )
        return self._redis


@dataclass
class _Portion:
    window: int  # its number since 1970
    held: int = 0  # still to be used
    counted: int = 0  # of the window, by all processes together, when Redis was asked last


class Rate:
    """One limit, for any number of callers, each known by a text."""

    def __init__(self, name: str, limit: RateLimitItem, counts: Counts) -> None:
        self._name = name
        self._limit: int = limit.amount
        self._seconds: int = limit.get_expiry()
        self._portion = max(1, self._limit // _PORTIONS)
        self._counts = counts
        self._lock = threading.Lock()
        self._portions: dict[str, _Portion] = {}

    def at_hand(self, who: str) -> Taken | None:
        """One more, where that can be told without asking Redis."""
        with self._lock:
            portion = self._of(who)
            if portion.held > 0:
                portion.held -= 1
                return self._told(portion, True)
            return self._spent(portion)

    def spent(self, who: str) -> Taken | None:
        """Where this process knows that no more is allowed; nothing is counted."""
        with self._lock:
            return self._spent(self._of(who))

    def take(self, who: str) -> Taken:
        """One more. Asks Redis where it must, and then waits for the answer."""
        known = self.at_hand(who)
        if known is not None:
            return known
        window = self._window()
        counted = self._counts.add(f"{self._name}:{who}:{window}", self._portion, self._seconds)
        with self._lock:
            portion = self._of(who)
            portion.counted = max(portion.counted, counted)
            portion.held += max(0, self._portion - max(0, counted - self._limit))
            if portion.held == 0:
                return self._told(portion, False)
            portion.held -= 1
            return self._told(portion, True)

    def _spent(self, portion: _Portion) -> Taken | None:
        return self._told(portion, False) if portion.held == 0 and portion.counted >= self._limit else None

    def _of(self, who: str) -> _Portion:
        window = self._window()
        portion = self._portions.get(who)
        if portion is None or portion.window != window:
            if len(self._portions) >= _MOST:
                self._portions.clear()
            portion = self._portions[who] = _Portion(window)
        return portion

    def _window(self) -> int:
        return int(time.time()) // self._seconds

    def _told(self, portion: _Portion, allowed: bool) -> Taken:
        left = max(0, self._limit - portion.counted) + portion.held
        return Taken(allowed, self._limit, left, self._seconds, self._seconds - int(time.time()) % self._seconds)


def rated(name: str, limit: str, counts: Counts, *, times: int = 1) -> Rate | None:
    """The limit as settings write it, `times` over; None where that is empty."""
    item = parse(limit) if limit else None
    return Rate(name, type(item)(item.amount * times, item.multiples), counts) if item else None
