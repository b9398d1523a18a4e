"""Redis is a doorbell: emptied, restarted or ringing twice, it neither loses a job nor has one done twice."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos import invariants
from tests.chaos.cluster import Cluster, until

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_every_job_ends_exactly_once_though_redis_forgets_them(cluster: Cluster, noop: dict[str, str]) -> None:
    workers = [cluster.worker(**noop), cluster.worker(**noop)]
    submitted = [cluster.submit(steps=2, checkpoint_every=1) for _ in range(20)]
    # Both consumers are connected and at work when their broker forgets everything and goes away.
    until(lambda: sum(cluster.job(job_id).status == "running" for job_id in submitted) == 2)
    with cluster.redis.client() as client:
        assert client.llen("lethe") > 0
        client.flushall()
    cluster.redis.kill()
    cluster.redis.start()
    submitted.append(cluster.submit(steps=2, checkpoint_every=1))

    for job_id in submitted:
        assert cluster.succeeded(job_id, 200)
        assert cluster.job(job_id).attempt == 1
        assert [a.outcome for a in cluster.attempts(job_id)] == ["succeeded"]
        assert cluster.reports(job_id) == 1
    assert len({cluster.weights(job_id) for job_id in submitted}) == 1
    assert len({a.worker for job_id in submitted for a in cluster.attempts(job_id)}) == 2, "one worker idled"
    assert all(worker.process.poll() is None for worker in workers)
    invariants.hold(cluster.database, cluster.blobs)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_same_id_five_times_at_once_runs_once(cluster: Cluster, noop: dict[str, str]) -> None:
    cluster.worker(**noop)
    cluster.worker(**noop)
    until(lambda: all(worker.children() for worker in cluster.workers))
    job_id = cluster.submit(ring=False, steps=20)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(cluster.ring, [job_id] * 5))
    assert cluster.ended(job_id).status == "succeeded"
    # The late messages have been taken and found nothing to do.
    with cluster.redis.client() as client:
        until(lambda: client.llen("lethe") == 0)
    assert len(cluster.attempts(job_id)) == 1
    assert cluster.job(job_id).attempt == 1
