"""What this process needs and lacks, looked at once a second at most: whoever asks has no key and is not counted."""

import threading
import time
from collections.abc import Mapping

from sqlalchemy.exc import SQLAlchemyError

from api.problems import NOT_MIGRATED, note_database
from api.queue import Queue
from api.store import migrate
from api.store.session import Database, now

SECONDS = 1.0
Missing = Mapping[str, str | None]  # by part, a sentence where it is missing


class Readiness:
    """Database, migrations and broker."""

    def __init__(self, database: Database, queue: Queue) -> None:
        self._database = database
        self._queue = queue
        self._lock = threading.Lock()
        self._found: tuple[float, Missing] | None = None

    def at_hand(self) -> Missing | None:
        """What was found a moment ago; also before that, while somebody looks again."""
        if self._found is None:
            return None
        at, missing = self._found
        return missing if time.monotonic() - at < SECONDS or self._lock.locked() else None

    def look(self) -> Missing:
        """What is missing now, or was a moment ago."""
        with self._lock:
            if self._found is None or time.monotonic() - self._found[0] >= SECONDS:
                missing = self._missing()
                self._found = (time.monotonic(), missing)
            return self._found[1]

    def _missing(self) -> Missing:
        reached = self._reached()
        return {
            "database": None if reached else "The database cannot be reached.",
            "migrations": None if reached and migrate.at_head(self._database) else NOT_MIGRATED,
            "broker": None if self._queue.reachable() else "The broker cannot be reached.",
        }

    def _reached(self) -> bool:
        try:
            with self._database.reading() as session:
                now(session)
        except SQLAlchemyError as error:
            note_database(error)
            return False
        return True
