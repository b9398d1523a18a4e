"""What the API counts and measures, for Prometheus to read: requests here, and what SQL says of queue and outbox.

Where uvicorn runs several processes, PROMETHEUS_MULTIPROC_DIR names an empty folder in which each leaves its numbers,
so that whichever is asked answers for all.
"""

import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api.store import gauges
from api.store.session import Database

CACHED_SECONDS = 5.0
_OWN = CollectorRegistry()
REQUESTS = Histogram(
    "lethe_http_request_seconds",
    "From a request's head to the end of its answer, by the route's template.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
    registry=_OWN,
)


class Meter:
    """Everything in Prometheus' text format. SQL is asked at most every few seconds, however often this is."""

    def __init__(self, database: Database, soon: timedelta) -> None:
        self._database = database
        self._soon = soon
        self._lock = threading.Lock()
        self._read: tuple[float, gauges.Gauges] | None = None

    def text(self) -> bytes:
        """What is known now."""
        registry = CollectorRegistry()
        registry.register(_FromSql(self._gauges()))
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(_OWN) + generate_latest(registry)

    def _gauges(self) -> gauges.Gauges:
        with self._lock:
            if self._read is None or time.monotonic() - self._read[0] > CACHED_SECONDS:
                with self._database.reading() as session:
                    self._read = (time.monotonic(), gauges.read(session, soon=self._soon))
            return self._read[1]


class _FromSql(Collector):
    def __init__(self, read: gauges.Gauges) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        read = self._read
        jobs = GaugeMetricFamily("lethe_jobs", "Jobs that have not ended, by status.", labels=["status"])
        for status, count in read.jobs.items():
            jobs.add_metric([status], count)
        yield jobs
        messages = GaugeMetricFamily("lethe_webhook_messages", "Messages not delivered, by status.", labels=["status"])
        for state, count in read.messages.items():
            messages.add_metric([state], count)
        yield messages
        for name, meaning, value in (
            ("lethe_jobs_late", "Jobs that have not ended and are past their due date.", read.late),
            ("lethe_jobs_due_soon", "Jobs that have not ended and are due soon, but not late.", read.soon),
            ("lethe_oldest_queued_seconds", "How long the longest waiting queued job has waited.", read.queued_seconds),
            ("lethe_lease_overdue_seconds", "How long ago the oldest lost lease ran out.", read.overdue_seconds),
            ("lethe_audit_unsealed", "Entries of the audit log that are not in its chain yet.", read.unsealed),
        ):
            yield GaugeMetricFamily(name, meaning, value=value)
