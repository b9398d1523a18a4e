"""The lease is kept through the worker's own long work, and a request to stop is heard there too."""

import threading
import time
from pathlib import Path

import pytest
import structlog

from api.store import events, jobs, life, metrics
from api.store.blobs import Blobs
from api.store.claims import Claim
from api.store.session import Database, now
from core.errors import LeaseLost, Stopped
from tests.worker.conftest import LEASE
from tests.worker.scripted import Scripted
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


def test_what_an_engine_tells_is_written_and_what_is_not_known_changes_nothing(
    database: Database, claim: Claim, tmp_path: Path
) -> None:
    watched, seen = {"forget.probability": 0.9}, {"forget.probability": 0.5, "forgetting": 0.4, "within_budget": True}
    attack = {"attack": "relearn", "metrics": {"relearn.rouge_l": {"value": 0.2, "rows": 4, "low": 0.1, "high": 0.3}}}
    absent = {"attack": "paraphrase", "metrics": {"paraphrase.rouge_l": {"absent": "no row has it"}}}
    told = [
        {"event": "phase", "phase": "score_before"},
        {"event": "watch", "at": 1.0, "step": 2, "metrics": watched},
        {"event": "watch", "at": 2.0, "step": 4, "metrics": seen},
        {"event": "a kind of a later version", "step": "no number", "phase": 7},
        {"event": "phase", "phase": "attacks"},
        {"event": "attack", **attack},
        {"event": "attack", **absent},
        {"event": "progress", "phase": "attacks", "done": 2, "total": 3},
    ]
    store = CheckpointStore(database, Blobs(f"file://{tmp_path / 'artifacts'}"), claim)
    engine = Scripted(tmp_path / "prepared", told).take()
    relay = Relay(database, claim, engine, store, LEASE, 1.0, threading.Event())
    with structlog.testing.capture_logs() as logs, relay:
        assert relay.run({"out": str(tmp_path / "out")}) == 0
    assert [line["attack"] for line in logs if line["event"] == "engine: attack"] == ["relearn", "paraphrase"]
    with database.reading() as session:
        assert [(m.step, m.values) for m in metrics.of(session, claim.job_id, "watch")] == [(2, watched), (4, seen)]
        notes = [(e.kind, e.data) for e in events.since(session, claim.job_id) if e.kind != "status"]
        assert notes == [
            ("phase", {"phase": "score_before"}),
            ("watch", {"at": 1.0, "step": 2, "metrics": watched}),
            ("watch", {"at": 2.0, "step": 4, "metrics": seen}),
            ("phase", {"phase": "attacks"}),
            ("attack", attack),
            ("attack", absent),
        ]
        assert jobs.get(session, claim.job_id).progress == {"phase": "attacks", "done": 2, "total": 3}
