"""Faults at random, many at once, and afterwards every job has ended once.

The long run is `make chaos`: LETHE_CHAOS_JOBS requests, and a seed that is new each time unless LETHE_CHAOS_SEED says.
"""

import os
import secrets
from pathlib import Path

import pytest

from api.store.tables import Job
from benchmarks import noop_engine
from tests.chaos import invariants
from tests.chaos.cluster import Cluster
from tests.chaos.storm import Storm
from tests.servers import PostgresServer

JOBS = int(os.environ.get("LETHE_CHAOS_JOBS", "40"))
LONG = "LETHE_CHAOS_JOBS" in os.environ
SEED = int(os.environ.get("LETHE_CHAOS_SEED") or (secrets.randbelow(10**6) if LONG else 1))


@pytest.mark.timeout(120 + 10 * JOBS)
def test_every_job_ends_once_whatever_strikes(mortal: Cluster, postgres: PostgresServer, tmp_path: Path) -> None:
    engine = str(noop_engine.program(tmp_path, seconds=0.6))
    faults, pause = (JOBS // 2, 2.0) if LONG else (20, 0.7)
    storm = Storm(mortal, postgres, SEED, JOBS, faults, pause, settings={"engine_python": engine})
    try:
        storm.blow()
        storm.calm(60 + JOBS)
        invariants.hold(mortal.database, mortal.blobs)
        invariants.sealed_whole(mortal.database)
        removed = invariants.nothing_unaccounted(mortal.database, mortal.blobs)
        with mortal.database.reading() as session:
            ended = [(job.status, job.error) for job in session.query(Job)]
            shared = session.query(Job).where(Job.led_by.is_not(None)).count()
        assert len(ended) == JOBS
        assert all(status in ("succeeded", "cancelled") for status, _ in ended), ended
        assert not list(mortal.work_dir.glob("job_*")), "plaintext is left"
    except BaseException:
        print(f"seed {SEED}, {JOBS} jobs; what struck:", *storm.told, sep="\n")
        raise
    print(f"seed {SEED}: {len(storm.told)} faults, {JOBS} jobs ({shared} in shared runs), {removed} orphans removed")
