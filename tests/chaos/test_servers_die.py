"""Redis and PostgreSQL are killed in every phase of a job; it ends as if nothing had been."""

import time
from collections.abc import Callable

import pytest

from tests.chaos import invariants
from tests.chaos.cluster import Cluster
from tests.servers import PostgresServer

pytestmark = pytest.mark.timeout(240)

PHASES = {"load", "score_before", "reference", "train", "score_after", "report"}


def _strike(cluster: Cluster, postgres: PostgresServer) -> None:
    cluster.redis.kill()
    postgres.kill()
    time.sleep(0.1)
    postgres.start()
    cluster.redis.start()


def test_both_are_killed_in_every_phase(
    mortal: Cluster, postgres: PostgresServer, slow: Callable[[float], dict[str, str]]
) -> None:
    job_id, beside = (mortal.submit(steps=10, checkpoint_every=2) for _ in range(2))
    _strike(mortal, postgres)
    mortal.worker(lease_seconds="10", poll_seconds="60", **slow(10.0))
    struck = set()
    while (job := mortal.job(job_id)).status in ("queued", "running"):
        phase = job.progress.get("phase")
        if phase and phase not in struck:
            _strike(mortal, postgres)
            struck.add(phase)
        time.sleep(0.02)
    # On a slow machine a phase may be over before the servers are back from the one before.
    assert len(struck & PHASES) >= 4, struck
    assert mortal.succeeded(job_id)
    assert [attempt.outcome for attempt in mortal.attempts(job_id)] == ["succeeded"]
    # The broker forgot the other's message, and nobody looks at SQL for a minute: a worker goes on by itself.
    assert mortal.succeeded(beside)
    assert mortal.weights(job_id) == mortal.weights(beside)
    # And it hears its broker again.
    assert mortal.succeeded(mortal.submit(steps=10, checkpoint_every=2), 40)
    invariants.hold(mortal.database, mortal.blobs)
    invariants.sealed_whole(mortal.database)
