"""What a worker counts and measures, for Prometheus to read: attempts, phases, checkpoints, leases, memory.

What is not known here, such as a GPU where there is none, is absent rather than 0.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.store.errors import InvalidSetting

REGISTRY = CollectorRegistry()
# From a no-op to a day: jobs are of very different sizes.
_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 14_400, 86_400)

ATTEMPTS = Histogram(
    "lethe_attempt_seconds",
    "From claim to end, by the status that the job came into.",
    ["outcome"],
    buckets=_BUCKETS,
    registry=REGISTRY,
)
PHASES = Histogram(
    "lethe_phase_seconds", "How long the engine was in a phase.", ["phase"], buckets=_BUCKETS, registry=REGISTRY
)
CHECKPOINT_BYTES = Counter(
    "lethe_checkpoint_bytes", "Bytes of checkpoints that were stored, sealed.", registry=REGISTRY
)


class Live:
    """The attempts under way: when each lease was renewed, and which engine works on it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._renewed: dict[int, float] = {}  # by the engine's process id, on the monotonic clock

    def renewed(self, engine: int) -> None:
        """The lease of the attempt with this engine begins anew."""
        with self._lock:
            self._renewed[engine] = time.monotonic()

    def ended(self, engine: int) -> None:
        """The attempt is over."""
        with self._lock:
            self._renewed.pop(engine, None)

    def now(self) -> dict[int, float]:
        """Seconds since the last renewal, by the engine's process id."""
        with self._lock:
            return {engine: time.monotonic() - at for engine, at in self._renewed.items()}


LIVE = Live()


class _AtScrape(Collector):
    """What is looked up when it is asked for."""

    def collect(self) -> Iterator[Metric]:
        live = LIVE.now()
        yield GaugeMetricFamily("lethe_jobs_running", "Attempts under way in this worker.", value=len(live))
        yield GaugeMetricFamily(
            "lethe_lease_age_seconds",
            "Since the lease of an attempt was last renewed; the largest of all under way.",
            value=max(live.values(), default=0.0),
        )
        memory = [size for size in map(_resident, live) if size is not None]
        if memory or not live:
            yield GaugeMetricFamily(
                "lethe_engine_memory_bytes", "Main memory that the engines at work hold.", value=sum(memory)
            )
        gpus = GaugeMetricFamily("lethe_gpu_memory_used_bytes", "GPU memory in use, by anybody.", labels=["gpu"])
        for index, used in _gpu_memory():
            gpus.add_metric([index], used)
        if gpus.samples:
            yield gpus


REGISTRY.register(_AtScrape())


class Door:
    """`/metrics` over HTTP, in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        """Raises InvalidSetting where it cannot be listened on."""
        try:
            self._server, self._thread = start_http_server(port, host, REGISTRY)
        except OSError as error:
            raise InvalidSetting(
                f"metrics_port: {host}:{port} cannot be listened on: {error.strerror}. Allowed: a free port, or 0.",
                param="metrics_port",
            ) from None

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _resident(process: int) -> int | None:
    """Bytes of main memory that the process holds, where the system says so."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")), None)
    return int(kilobytes) * 1024 if kilobytes else None


def _gpu_memory() -> list[tuple[str, float]]:
    """Index and bytes in use of every GPU that the driver's own tool knows of; none where there is no such tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
        rows = [line.split(",") for line in told.splitlines() if line.strip()]
        return [(index.strip(), float(used) * 1024 * 1024) for index, used in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
