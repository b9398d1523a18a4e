"""A worker that is frozen past its lease and wakes up: the job is another's by then, and it writes nothing more."""

from collections.abc import Callable

import psutil
import pytest
from sqlalchemy import func, select

from api.store.records import Artifact, Event, Metric
from tests.chaos import invariants
from tests.chaos.cluster import Cluster, until

pytestmark = pytest.mark.timeout(120)


def _written(cluster: Cluster, job_id: str, attempt: int) -> list[int]:
    """How much the attempt has written: events, and the newest; measurements; files."""
    with cluster.database.reading() as session:
        return [
            session.scalar(select(what).where(table.job_id == job_id, table.attempt == attempt)) or 0
            for table, what in (
                (Event, func.count()),
                (Event, func.max(Event.id)),
                (Metric, func.count()),
                (Artifact, func.count()),
            )
        ]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_frozen_worker_wakes_up_to_a_job_that_is_anothers(
    cluster: Cluster, slow: Callable[[float], dict[str, str]]
) -> None:
    engines = slow(8.0)
    frozen = cluster.worker(lease_seconds="1.5", poll_seconds="0.3", **engines)
    job_id = cluster.submit(steps=100, checkpoint_every=5)
    cluster.in_training(job_id, 6)
    at_work = {engine.pid for engine in frozen.children()}
    frozen.pause()
    # Its engine ends by itself, and before anybody else may begin: it has nobody to tell it.
    until(lambda: any(_gone(pid) for pid in at_work), 10)
    assert cluster.job(job_id).attempt == 1

    cluster.worker(lease_seconds="1.5", poll_seconds="0.3", **engines)
    until(lambda: cluster.job(job_id).attempt == 2)
    before = _written(cluster, job_id, 1)
    frozen.wake()
    until(lambda: '"lease lost"' in frozen.log.read_text(), 10)
    assert cluster.job(job_id).status == "running", "the second attempt had ended too early to show anything"
    assert _written(cluster, job_id, 1) == before

    assert cluster.succeeded(job_id)
    first, second = cluster.attempts(job_id)
    assert "the lease" in first.reason
    assert second.resumed_from >= 5
    assert _written(cluster, job_id, 1)[:2] == before[:2]
    cluster.nothing_left_behind()
    # And it is of use again.
    cluster.workers[1].leave()
    following = cluster.submit(steps=4)
    assert cluster.succeeded(following)
    invariants.hold(cluster.database, cluster.blobs)
    invariants.nothing_unaccounted(cluster.database, cluster.blobs)


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
