"""The doorbell: tells workers that a job waits, with the job's id and nothing else.

SQL is the truth. A ring that is lost costs time, not a job: the workers' sweep rings again.
"""

import structlog
from celery import Celery

from api.store.errors import InvalidSetting

log = structlog.get_logger()

# The worker listens under these names; neither side imports the other.
QUEUE = "lethe"
TASK = "lethe.run"
SCHEMES = ("redis://", "rediss://", "redis+socket://")


class Queue:
    """A Celery producer that never waits long and never fails its caller. Connects at the first ring."""

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout` is in seconds, for each exchange with the broker. Raises InvalidSetting for another kind of URL."""
        if not url.startswith(SCHEMES):
            # The text is not repeated: it may hold a password.
            raise InvalidSetting(f"broker_url must begin with one of: {', '.join(SCHEMES)}.", param="broker_url")
        self._app = Celery("lethe", broker=url, set_as_current=False)
        self._app.conf.update(
            task_default_queue=QUEUE,
            task_serializer="json",
            task_ignore_result=True,
            # A pooled connection that the broker closed meanwhile would lose the first ring after a restart.
            broker_pool_limit=None,
            broker_transport_options={
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "max_retries": 0,
            },
        )

    def ring(self, job_id: str) -> bool:
        """Tell the workers of a job; False, and a line in the log, if the broker could not be reached."""
        try:
            self._app.send_task(TASK, (job_id,), retry=False)
        except Exception as error:  # Whatever is wrong with it, the job is committed.
            log.warning("broker unreachable", job=job_id, error=type(error).__name__)
            return False
        return True

    def reachable(self) -> bool:
        """Whether the broker answers."""
        try:
            with self._app.connection_for_write() as connection:
                return connection.default_channel is not None
        except Exception:
            return False

    def close(self) -> None:
        """Drop all connections."""
        self._app.close()
