"""An estimate holds for the next run on the same machine: measured with a real worker and a real engine."""

import pytest
from sqlalchemy import update

from api.folder import inspect
from api.store import jobs, runs
from api.store.records import Run
from api.store.tables import Model
from core.spec.cost import work
from core.spec.job import parse
from tests.chaos.conftest import Cluster

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_run_twice_as_long_takes_what_was_estimated(cluster: Cluster) -> None:
    counted = inspect(str(cluster.model), [cluster.model.parent]).parameters
    with cluster.database.transaction() as session:
        session.execute(update(Model).values(parameters=counted))
    cluster.worker()

    def ran(steps: int) -> Run:
        job = cluster.submit(steps=steps)
        assert cluster.succeeded(job)
        with cluster.database.reading() as session:
            return session.get_one(Run, job)

    first = ran(30)
    assert (first.parameters, first.rows_trained, first.rows_scored) == (counted, 30 * 4 * 2, 2 * 24)
    assert 0 < first.train_seconds + first.score_seconds < first.seconds
    assert first.memory_bytes > first.idle_bytes > 50 << 20

    with cluster.database.reading() as session:
        spec = parse(jobs.get(session, first.job_id).spec)
        amount = work(spec, {"forget": 8, "retain": 16}, steps=60)
        told = runs.estimate(
            session,
            method=spec.method.name,
            optimizer=spec.optimizer.name,
            parameters=counted,
            rows_trained=amount.trained,
            rows_scored=amount.scored,
        )
    assert isinstance(told, runs.Estimate)
    second = ran(60)
    # What else the machine does at the time of one of the two is not foreseen, so the bounds are wide.
    assert told.seconds / 4 < second.seconds < told.seconds * 4
    assert told.train_seconds / 4 < second.train_seconds < told.train_seconds * 4
    assert told.memory_bytes / 1.5 < second.memory_bytes < told.memory_bytes * 1.5
