"""The doorbell: tells workers that a job waits, with the job's id and nothing else.

SQL is the truth. A ring that is lost costs time, not a job: the workers' sweep rings again.
"""

import queue
import threading
import time
from contextlib import suppress
from typing import Any

import structlog
from celery import Celery

from api.store.errors import InvalidSetting

log = structlog.get_logger()

# The worker listens under these names; neither side imports the other.
QUEUE = "lethe"
TASK = "lethe.run"
SCHEMES = ("redis://", "rediss://", "redis+socket://")
# More than any broker that is well leaves waiting.
_MOST_UNRUNG = 10_000
# With so many rings that no worker has answered yet, each that becomes free finds one; more would tell nobody more.
ENOUGH_UNREAD = 500
_ENOUGH_FOR = 0.05  # seconds: far less than workers take to read so many
_COUNTED_EVERY = 50  # rings


class Queue:
    """A Celery producer that never waits long and never fails its caller. Connects at the first ring."""

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout` is in seconds, for each exchange with the broker. Raises InvalidSetting for another kind of URL."""
        if not url.startswith(SCHEMES):
            # The text is not repeated: it may hold a password.
            raise InvalidSetting(f"LETHE_BROKER_URL must begin with one of: {', '.join(SCHEMES)}.", param="broker_url")
        self._app = Celery("lethe", broker=url, set_as_current=False)
        self._app.conf.update(
            task_default_queue=QUEUE,
            task_serializer="json",
            task_ignore_result=True,
            broker_pool_limit=None,  # The one connection that rings is kept here.
            broker_transport_options={
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "max_retries": 0,
            },
        )
        self._ends_within = 3 * timeout
        self._lock = threading.Lock()
        self._producer: Any = None
        self._unrung: queue.Queue[str | None] = queue.Queue(_MOST_UNRUNG)
        self._ringer: threading.Thread | None = None

    def ring_soon(self, job_id: str) -> None:
        """Tell the workers of a job from a thread of its own: no caller waits for a broker that is away."""
        if self._ringer is None:
            with self._lock:
                if self._ringer is None:
                    self._ringer = threading.Thread(target=self._ring_all, name="ringer", daemon=True)
                    self._ringer.start()
        with suppress(queue.Full):
            self._unrung.put_nowait(job_id)

    def ring(self, job_id: str) -> bool:
        """Tell the workers of a job; False, and a line in the log, if the broker could not be reached."""
        with self._lock:
            # The connection that was kept may have been closed by the broker meanwhile; a new one has not.
            for kept in (True, False) if self._producer else (False,):
                try:
                    self._send(job_id)
                except Exception as error:  # Whatever is wrong with it, the job is committed.
                    self._hang_up()
                    if not kept:
                        log.warning("broker unreachable", job=job_id, error=type(error).__name__)
                else:
                    return True
        return False

    def reachable(self) -> bool:
        """Whether the broker answers."""
        try:
            with self._app.connection_for_write() as connection:
                return connection.default_channel is not None
        except Exception:
            return False

    def close(self) -> None:
        """Ring for what is left, unless the broker is away, and drop all connections."""
        if self._ringer is not None:
            with suppress(queue.Full):
                self._unrung.put(None, timeout=self._ends_within)
            self._ringer.join(self._ends_within)
        with self._lock:
            self._hang_up()
        self._app.close()

    def _ring_all(self) -> None:
        until_counted, enough_until = _COUNTED_EVERY, 0.0
        while (job_id := self._unrung.get()) is not None:
            if time.monotonic() < enough_until:
                continue
            if self.ring(job_id):
                until_counted -= 1
                if until_counted <= 0:
                    until_counted = _COUNTED_EVERY
                    if self._unread() >= ENOUGH_UNREAD:
                        until_counted, enough_until = 1, time.monotonic() + _ENOUGH_FOR
                continue
            # Whoever waited behind it would wait for the same broker; the sweep rings for all of them.
            with suppress(queue.Empty):
                while (dropped := self._unrung.get_nowait()) is not None:
                    log.warning("broker unreachable", job=dropped)
                return

    def _send(self, job_id: str) -> None:
        if self._producer is None:
            self._producer = self._app.amqp.Producer(self._app.connection_for_write(), auto_declare=False)
        self._app.send_task(TASK, (job_id,), retry=False, producer=self._producer)

    def _unread(self) -> int:
        """How many rings wait for a worker, as far as the broker tells."""
        with self._lock, suppress(Exception):
            if self._producer is not None:
                return int(self._producer.channel.queue_declare(QUEUE, passive=True).message_count)
        return 0

    def _hang_up(self) -> None:
        if self._producer is not None:
            with suppress(Exception):
                self._producer.connection.close()
            self._producer = None
