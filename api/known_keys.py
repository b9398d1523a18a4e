"""Keys that were found good a moment ago: the database is not asked again for each request.

What is written of a key counts within `SECONDS` in every process of the API, and at once in the one that is told.
"""

import hashlib
import hmac
import threading
import time
from datetime import UTC, datetime

from api.store import keys
from api.store.session import Database
from api.store.tables import ApiKey

SECONDS = 2.0
_MOST = 10_000


class KnownKeys:
    """Which texts opened the database's keys, until when."""

    def __init__(self, secret: bytes, seconds: float = SECONDS) -> None:
        """`secret` is the deployment's."""
        self._secret = secret
        self._seconds = seconds
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[float, ApiKey]] = {}
        self._forgotten = 0

    def recalled(self, presented: str) -> ApiKey | None:
        """The key that this text opened a moment ago, if it has not expired since."""
        until, key = self._known.get(self._name(presented), (0.0, None))
        if key is None or until <= time.monotonic():
            return None
        return None if key.expires_at and key.expires_at <= datetime.now(UTC) else key

    def verify(self, database: Database, presented: str) -> ApiKey | None:
        """As `keys.verify`, and remember the answer where the key opens."""
        forgotten, now = self._forgotten, time.monotonic()
        key = keys.verify(database, presented, self._secret)
        with self._lock:
            if key is not None and forgotten == self._forgotten:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[self._name(presented)] = (now + self._seconds, key)
        return key

    def forget(self) -> None:
        """Ask the database again for every key, also for those that are being looked up at this moment."""
        with self._lock:
            self._forgotten += 1
            self._known.clear()

    def _name(self, presented: str) -> bytes:
        # Not the text itself: no dump of this process shall hold keys that open something.
        return hmac.digest(self._secret, presented.encode(), hashlib.sha256)
