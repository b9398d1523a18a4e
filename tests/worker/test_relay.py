"""The lease is kept through the worker's own long work, and a request to stop is heard there too."""

import threading
import time
from pathlib import Path

import pytest

from api.store import jobs, life
from api.store.attempts import Claim
from api.store.blobs import Blobs
from api.store.session import Database, now
from core.errors import LeaseLost, Stopped
from tests.worker.conftest import LEASE
from worker.checkpoints import CheckpointStore
from worker.engine import Engine
from worker.relay import Relay

# What the store does differently on PostgreSQL is tested with the store.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def relay(database: Database, claim: Claim, engine: Engine, tmp_path: Path) -> Relay:
    store = CheckpointStore(database, Blobs(f"file://{tmp_path / 'artifacts'}"), claim)
    return Relay(database, claim, engine, store, LEASE, 1.0, threading.Event())


@pytest.mark.parametrize("stopped_for", [None, "leaving"])
def test_the_lease_is_kept_while_files_are_stored(relay: Relay, stopped_for: str | None) -> None:
    relay.stopped_for = stopped_for
    with relay:
        assert relay.meanwhile(lambda: time.sleep(1.5 * LEASE) or "stored") == "stored"
    with relay.database.reading() as session:
        job = jobs.get(session, relay.claim.job_id)
        assert job.lease_until is not None
        assert job.lease_until > now(session)


def _is_stopped(relay: Relay) -> None:
    """Work without end is not waited for."""
    done = threading.Event()
    with relay:
        with pytest.raises(Stopped):
            relay.meanwhile(lambda: done.wait(30))
        done.set()


def test_a_cancelled_job_is_not_waited_for(relay: Relay) -> None:
    with relay.database.transaction() as session:
        life.request_cancel(session, relay.claim.job_id, "somebody")
    _is_stopped(relay)
    assert relay.stopped_for == "cancel"


def test_a_worker_that_leaves_does_not_wait_for_its_files(relay: Relay) -> None:
    relay.leaving.set()
    _is_stopped(relay)
    assert relay.stopped_for == "leaving"


def test_a_job_that_went_to_somebody_else_is_let_go(relay: Relay) -> None:
    with relay.database.transaction() as session:
        job = jobs.get(session, relay.claim.job_id)
        life.give_back(session, job, actor="sweep", reason="the lease ran out", counts=True, cap=3)
    with pytest.raises(LeaseLost), relay:
        relay.meanwhile(lambda: time.sleep(1))
    assert not relay.engine.alive()
