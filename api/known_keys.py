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

    def familiar(self, presented: str) -> bool:
        """Whether this text opened a key of late, which it need not do any more."""
        return self._name(presented) in self._known

    def verify(self, database: Database, presented: str) -> ApiKey | None:
        """As `keys.verify`, and remember the answer where the key opens."""
        forgotten, now = self._forgotten, time.monotonic()
        key, name = keys.verify(database, presented, self._secret), self._name(presented)
        with self._lock:
            if key is None:
                self._known.pop(name, None)
            elif forgotten == self._forgotten:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[name] = (now + self._seconds, key)
        return key

    def forget(self) -> None:
        """Ask the database again for every key, also for those that are being looked up at this moment."""
        with self._lock:
            self._forgotten += 1
            self._known = {name: (0.0, key) for name, (_, key) in self._known.items()}

    def _name(self, presented: str) -> bytes:
        # Not the text itself: no dump of this process shall hold keys that open something.
        return hmac.digest(self._secret, presented.encode(), hashlib.sha256)
