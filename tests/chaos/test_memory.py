"""An engine that runs out of memory: said once, with what to lower, and not tried again."""

import resource

import psutil
import pytest

from tests.chaos import invariants
from tests.chaos.cluster import Cluster, until

pytestmark = pytest.mark.timeout(180)

HEADROOM = 300 << 20


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux only")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_run_that_does_not_fit_fails_with_advice(cluster: Cluster) -> None:
    words = " ".join(f"word{number}" for number in range(60))
    rows = [{"question": f"What is in book {number}?", "answer": words} for number in range(1200)]
    cluster.sets["forget"] = cluster.upload(rows)
    worker = cluster.worker()
    spare = until(lambda: next(iter(worker.children()), None))
    until(lambda: _imported(spare))
    limit = spare.memory_info().vms + HEADROOM
    resource.prlimit(spare.pid, resource.RLIMIT_AS, (limit, limit))

    job_id = cluster.submit(fields={"evaluation": {"batch_tokens": 10_000_000, "max_new_tokens": 4}})
    job = cluster.ended(job_id)
    assert (job.status, job.error["code"], job.attempt) == ("failed", "out_of_memory", 1), job.error
    assert "evaluation.batch_tokens (now 10000000)" in job.error["message"]
    assert not job.error["retryable"]
    cluster.nothing_left_behind()
    # The worker is unharmed.
    cluster.sets["forget"] = cluster.sets["retain"]
    invariants.hold(cluster.database, cluster.blobs)


def _imported(engine: psutil.Process) -> bool:
    """It waits for its command, all imports done."""
    before = sum(engine.cpu_times()[:2])
    psutil.Process().cpu_percent(0.5)
    return engine.memory_info().rss > 200 << 20 and sum(engine.cpu_times()[:2]) - before < 0.02
