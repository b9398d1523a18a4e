"""Delivers what waits in the outbox: a thread of the API's process that hands tries to a few others.

Any number of processes do this beside each other. A try belongs to whoever took it until its lease has passed, so a
process that is killed in mid-delivery costs a minute, not a message.
"""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import structlog

from api.store import outbox
from api.store.outbox import Outcome, Try
from api.store.session import Database, now
from api.store.vault import Vault
from api.webhooks.sending import send
from api.webhooks.targets import Guard
from core.errors import LetheError

log = structlog.get_logger()

POLL_SECONDS = 1.0
# Receivers that hang must not keep all others waiting.
AT_ONCE = 16
AT_ONCE_OF_ONE = 4  # to webhooks of one principal
AT_ONCE_EACH = 2  # to one webhook


class Deliverer:
    """Tries messages until `close`, which waits for the tries under way."""

    def __init__(self, database: Database, vault: Vault, guard: Guard) -> None:
        self._database = database
        self._vault = vault
        self._guard = guard
        self._leaving = threading.Event()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()  # tries by webhook
        self._by_principal: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook")
        self._thread = threading.Thread(target=self._go_on, name="webhooks")

    def start(self) -> None:
        """Begin to look for what is due."""
        self._thread.start()

    def close(self) -> None:
        """Take nothing more, and wait until the tries under way have ended."""
        self._leaving.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown()

    def _go_on(self) -> None:
        while not self._leaving.is_set():
            self._wake.clear()
            try:
                self._hand_out()
            except Exception as error:
                # The database is away; the next look may find it back.
                log.warning("webhooks wait", error=type(error).__name__)
            self._wake.wait(POLL_SECONDS)

    def _hand_out(self) -> None:
        """Take what is due, while there is somebody free to try it."""
        with self._database.reading() as session:
            if not outbox.any_due(session):
                return
        while not self._leaving.is_set():
            with self._lock:
                if self._under_way.total() >= AT_ONCE:
                    return
                busy = [hook for hook, tries in self._under_way.items() if tries >= AT_ONCE_EACH]
                busy += [owner for owner, tries in self._by_principal.items() if tries >= AT_ONCE_OF_ONE]
            with self._database.transaction() as session:
                tried = outbox.take(session, busy=busy)
            if tried is None:
                return
            self._count(tried, 1)
            self._pool.submit(self._carry_out, tried)

    def _carry_out(self, tried: Try) -> None:
        try:
            outcome = self._tried(tried)
            with self._database.transaction() as session:
                status = outbox.ended(session, tried, outcome)
            log.info(
                "webhook",
                delivery=tried.id,
                webhook=tried.webhook_id,
                kind=tried.payload["type"],
                attempt=tried.number,
                answered=outcome.answered,
                error=outcome.error,
                status=status,
            )
        except Exception:
            # Its lease will pass, and it is tried again.
            log.exception("webhook's outcome not written", delivery=tried.id)
        finally:
            self._count(tried, -1)
            self._wake.set()

    def _count(self, tried: Try, change: int) -> None:
        with self._lock:
            self._under_way[tried.webhook_id] += change
            self._by_principal[tried.principal_id] += change

    def _tried(self, tried: Try) -> Outcome:
        try:
            secret = self._vault.unwrap(tried.wrapped, tried.webhook_id)
        except LetheError as error:
            return Outcome(None, error.code)
        with self._database.reading() as session:
            moment = now(session)
        return send(tried, secret, self._guard, moment)
