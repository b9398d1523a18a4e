"""Two jobs on one alias, with a real worker: the second begins where the first has ended, and looks after its work."""

import json
import time

import pytest

from api.store import aliases, events, models, turn
from core.report.schema import Absent, Report
from tests.chaos.cluster import Cluster, until

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def test_a_job_on_an_alias_waits_begins_at_the_new_model_and_measures_what_was_removed(cluster: Cluster) -> None:
    with cluster.database.transaction() as session:
        aliases.promote(session, "production", cluster.model_id, reason="first", actor="test")
    on_alias = {"model": {"alias": "production"}}
    # Two workers, so that only the alias keeps the second job from running.
    for _ in range(2):
        cluster.worker(poll_seconds="30")
    first = cluster.submit(fields=on_alias, steps=12)
    until(lambda: cluster.job(first).status == "running")
    second = cluster.submit(fields=on_alias, steps=4)

    def waits() -> bool:
        with cluster.database.reading() as session:
            return turn.waits_for(session, cluster.job(second)) == first

    assert waits()
    assert cluster.succeeded(first)
    ended = time.monotonic()
    until(lambda: cluster.job(second).status != "queued")
    # Long before anybody looks at SQL by itself.
    assert time.monotonic() - ended < 20
    assert cluster.succeeded(second)
    with cluster.database.reading() as session:
        one, two = (models.of_job(session, job) for job in (first, second))
        assert one is not None
        assert two is not None
        assert aliases.get(session, "production").model_id == two.id
        kinds = [event.kind for event in events.since(session, second)]
    assert "promoted" in kinds
    assert (cluster.job(first).model_id, cluster.job(second).model_id) == (cluster.model_id, one.id)
    assert [model.parent_id for model in (one, two)] == [cluster.model_id, one.id]
    reports = [json.loads(cluster.blobs.open(cluster.files(job)["report.json"]).read()) for job in (first, second)]
    before, after = (Report.model_validate(report) for report in reports)
    assert before.earlier == []
    assert (after.input_model, after.output_model) == (one.digest, two.digest)
    assert not isinstance(after.earlier, Absent)
    (earlier,) = after.earlier
    assert (earlier.job, earlier.rows, earlier.commitment) == (first, before.forget.rows, before.forget.commitment)
    assert isinstance(earlier.now, dict)
    assert earlier.came_back is False
    cluster.nothing_left_behind()
