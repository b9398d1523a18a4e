"""What dies in mid-run must not change what comes out: one report, and the same weights to the last bit."""

import time

import psutil
import pytest

from tests.chaos import invariants
from tests.chaos.cluster import Cluster, until
from tests.servers import PostgresServer

pytestmark = pytest.mark.timeout(240)


def _one_result(cluster: Cluster, job_id: str, undisturbed: str) -> None:
    assert cluster.succeeded(job_id)
    assert cluster.weights(job_id) == cluster.weights(undisturbed)
    assert cluster.reports(job_id) == 1
    cluster.nothing_left_behind()


def test_whatever_dies_the_weights_are_the_same(mortal: Cluster, postgres: PostgresServer) -> None:
    cluster = mortal
    worker = cluster.worker()
    undisturbed = cluster.submit()
    assert cluster.succeeded(undisturbed)

    struck = cluster.submit()
    cluster.in_training(struck)
    cluster.workers[0].engine().kill()
    _one_result(cluster, struck, undisturbed)
    first, second = cluster.attempts(struck)
    assert (first.outcome, first.reason) == ("queued", "the engine was ended by signal 9")
    assert second.resumed_from >= 5
    assert cluster.job(struck).counted == 1

    struck = cluster.submit()
    cluster.in_training(struck)
    engine = cluster.workers[0].engine()
    worker.kill()
    until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 5)
    cluster.worker()
    _one_result(cluster, struck, undisturbed)
    assert [a.outcome for a in cluster.attempts(struck)] == ["queued", "succeeded"]
    assert "lease" in cluster.attempts(struck)[0].reason

    struck = cluster.submit()
    cluster.in_training(struck)
    engine = cluster.workers[-1].engine()
    postgres.kill()
    # For longer than the lease: the engine ends itself, and its worker hears of it though it can write nothing.
    until(lambda: not engine.is_running(), 20)
    postgres.start()
    _one_result(cluster, struck, undisturbed)
    assert cluster.attempts(struck)[-1].resumed_from >= 5
    invariants.hold(cluster.database, cluster.blobs)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_that_is_asked_to_leave_hands_over(cluster: Cluster) -> None:
    cluster.worker()
    undisturbed = cluster.submit()
    assert cluster.succeeded(undisturbed)

    handed_over = cluster.submit()
    before = cluster.in_training(handed_over).progress["step"]
    assert cluster.workers[0].leave() < 15
    job = cluster.job(handed_over)
    assert (job.status, job.counted) == ("queued", 0)
    cluster.worker()
    _one_result(cluster, handed_over, undisturbed)
    # On a machine that is busy a short lease may run out once more; what came of it is the same.
    first, second, *_ = cluster.attempts(handed_over)
    assert first.reason == "the worker left"
    # It left a checkpoint at the very step it had reached, not at the last of every five.
    assert second.resumed_from >= before

    cancelled = cluster.submit(steps=100_000)
    cluster.in_training(cancelled)
    engine = cluster.workers[1].engine()
    began = time.monotonic()
    cluster.cancel(cancelled)
    job = cluster.ended(cancelled, 15)
    assert job.status == "cancelled"
    assert time.monotonic() - began < 10
    assert not engine.is_running()
    cluster.nothing_left_behind()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_whose_engine_always_dies_fails_with_the_reason(cluster: Cluster) -> None:
    cluster.worker(attempts_cap="2")
    job_id = cluster.submit(steps=100_000)
    for attempt in (1, 2):
        until(lambda attempt=attempt: (job := cluster.job(job_id)).attempt == attempt and job.progress.get("step"))
        cluster.workers[0].engine().kill()
        until(lambda attempt=attempt: cluster.attempts(job_id)[attempt - 1].ended_at)
    job = cluster.ended(job_id)
    assert job.status == "failed"
    assert job.error["code"] == "attempts_exhausted"
    assert "signal 9" in job.error["message"]
