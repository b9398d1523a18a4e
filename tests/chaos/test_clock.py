"""Clocks jump by hours: a worker's makes no difference, and the database's costs attempts and no job."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text, update

from api.store import migrate
from api.store.session import Database, now
from api.store.tables import Job
from tests.chaos import invariants
from tests.chaos.cluster import Cluster, Worker, until
from tests.servers import PostgresServer

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="moving a clock takes Linux and gcc"),
]

HOUR = 3600
_OPEN_TRANSACTIONS = text(
    "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    " and backend_type = 'client backend' and state <> 'idle'"
)


class Clock:
    """A wall clock that can be moved, of whichever process has `environment`."""

    def __init__(self, folder: Path, name: str, library: Path) -> None:
        self._file = folder / f"clock-{name}"
        self.move(0)
        self.environment = {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(self._file)}

    def move(self, seconds: int) -> None:
        """By so many seconds from the true time."""
        # Written over in one go, as wide as before: whoever reads it meanwhile must not see half a number.
        self._file.touch(0o644)
        with self._file.open("r+b", buffering=0) as file:
            file.write(f"{seconds:+020d}".encode())


@pytest.fixture
def clock(short_folder: Path) -> Callable[[str], Clock]:
    library = short_folder / "clock.so"
    if not library.exists():
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
        library.chmod(0o755)
    return lambda name: Clock(short_folder, name, library)


@pytest.fixture
def databases_clock(clock: Callable[[str], Clock]) -> Clock:
    return clock("database")


@pytest.fixture
def postgres(short_folder: Path, databases_clock: Clock) -> Iterator[PostgresServer]:
    """A PostgreSQL whose clock can be moved."""
    folder = short_folder / f"postgres-{time.monotonic_ns()}"
    folder.mkdir()
    server = PostgresServer(folder, lasting=True)
    server.environment = databases_clock.environment
    server.start()
    migrate.upgrade(server.url)
    yield server
    server.stop()


def _hours(database: Database) -> float:
    with database.reading() as session:
        return (now(session).timestamp() - time.time()) / HOUR


def _pause_between_transactions(cluster: Cluster, worker: Worker) -> None:
    """Freeze the worker where it holds no lock: nobody takes a job whose row is locked, and this is not about that."""
    while True:
        worker.pause()
        for _ in range(10):
            # The others go through theirs in a moment; that of a frozen worker would still be there at the last look.
            with cluster.database.reading() as session:
                if not session.scalar(_OPEN_TRANSACTIONS):
                    return
            time.sleep(0.01)
        worker.wake()
        time.sleep(0.05)  # Frozen again at once it would never come out of it.


def test_clocks_jump(
    mortal: Cluster,
    databases_clock: Clock,
    clock: Callable[[str], Clock],
    slow: Callable[[float], dict[str, str]],
) -> None:
    clocks = [clock("fast"), clock("slow")]
    engines = slow(3.0)
    for moved in clocks:
        mortal.environment = moved.environment
        mortal.worker(lease_seconds="3", poll_seconds="0.5", attempts_cap="10", **engines)

    # Each worker's own, in both directions, before and amid the work: nobody notices.
    clocks[0].move(5 * HOUR)
    submitted = [mortal.submit(steps=10, checkpoint_every=2) for _ in range(4)]
    until(lambda: sum(mortal.job(job_id).status == "running" for job_id in submitted) == 2)
    clocks[0].move(-5 * HOUR)
    clocks[1].move(48 * HOUR)
    for job_id in submitted:
        assert mortal.succeeded(job_id)
        assert [attempt.outcome for attempt in mortal.attempts(job_id)] == ["succeeded"]
    invariants.hold(mortal.database, mortal.blobs)

    # The database's, ahead: all leases have run out. Who renews before anybody looks keeps its job; who does not, loses
    # it at once, a minute early, and its late words do not count.
    running = [mortal.submit(steps=10, checkpoint_every=2) for _ in range(2)]
    until(lambda: all(mortal.job(job_id).progress.get("step") for job_id in running))
    silent = mortal.workers[0]
    (its_own,) = (job_id for job_id in running if mortal.attempts(job_id)[0].worker.endswith(f":{silent.process.pid}"))
    _pause_between_transactions(mortal, silent)
    with mortal.database.transaction() as session:
        # A minute, so that it is the clock that ends it.
        a_minute = now(session) + timedelta(minutes=1)
        session.execute(update(Job).where(Job.id == its_own).values(lease_until=a_minute))
    databases_clock.move(HOUR)
    assert 0.9 < _hours(mortal.database) < 1.1
    until(lambda: mortal.attempts(its_own)[0].ended_at, 20)
    silent.wake()
    until(lambda: '"lease lost"' in silent.log.read_text(), 20)
    for job_id in running:
        assert mortal.succeeded(job_id)
        assert mortal.reports(job_id) == 1
    assert {mortal.weights(job_id) for job_id in submitted + running} == {mortal.weights(submitted[0])}
    assert len(mortal.attempts(its_own)) > 1

    # And back: whoever is at work renews, and sets it right.
    late = [mortal.submit(steps=10, checkpoint_every=2) for _ in range(2)]
    until(lambda: all(mortal.job(job_id).progress.get("step") for job_id in late))
    databases_clock.move(0)
    for job_id in late:
        assert mortal.succeeded(job_id)
        assert len(mortal.attempts(job_id)) == 1
    invariants.hold(mortal.database, mortal.blobs)
    invariants.sealed_whole(mortal.database)
